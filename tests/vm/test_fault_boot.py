# SPDX-License-Identifier: GPL-3.0-or-later
"""A machine boots anew, without a word to anybody: what is kept comes back."""

from __future__ import annotations

import pytest
from vm.faults import (
    DEAD_PEER_SECONDS,
    PERSON,
    STALL_SECONDS,
    STICK,
    Scene,
    eventually,
    reboot,
    state,
)
from vm.testbed.desk import BUS_NAME

from usbipsshd.journal import Happening

BOOT_SECONDS = 240.0


@pytest.mark.long
def test_remote_rebooted(scene: Scene) -> None:
    pi, desk, stick, log = scene.pi, scene.desk, scene.stick, scene.log
    attachment = desk.attach(PERSON, STICK, keep=True)
    stick.begin(attachment)
    with scene.times.row("remote rebooted (reset button) while a file is written") as row:
        begun = reboot(pi, hard=True)
        row.noticed = log.wait(Happening.LOST, STICK, since=begun) - begun
        assert row.noticed < DEAD_PEER_SECONDS + STALL_SECONDS
        count = stick.failed()
        restored = log.wait(Happening.RESTORED, STICK, since=begun, seconds=BOOT_SECONDS)
        row.usable = restored - begun
        stick.check_again(attachment, count)
        row.outcome = "attached again once it has booted, every block that was written is there"
    assert desk.detach(PERSON, attachment) == 1


@pytest.mark.long
def test_desk_rebooted_with_persist(scene: Scene) -> None:
    pi, desk, stick, log = scene.pi, scene.desk, scene.stick, scene.log
    attachment = desk.attach("root", STICK, persist=True)
    stick.begin(attachment)
    count = stick.stop()
    stick.unmount()
    before = desk.attachment(attachment)
    with scene.times.row("desk rebooted (reset button) with persist") as row:
        begun = reboot(desk, hard=True)
        log.again()

        def back() -> bool:
            return any(
                tables.get(f"{BUS_NAME}.Attachment", {}).get("State") == "attached"
                for tables in desk.objects().values()
            )

        row.usable = eventually(back, BOOT_SECONDS, "it is attached again") - begun
        (attachment,) = [path for path in desk.objects() if "/attachment/" in path]
        after = desk.attachment(attachment)
        for name in ("Remote", "Pattern", "OwnerUid", "Keep", "Persist", "Serial"):
            assert after[name] == before[name], name
        stick.check_again(attachment, count)
        row.outcome = "attached again without anybody's doing"
    assert desk.detach("root", attachment) == 1
    assert state(desk, attachment) == ""
    assert pi.exports_left() == []
