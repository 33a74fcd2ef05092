# SPDX-License-Identifier: GPL-3.0-or-later
"""desk sleeps, with logind's word and its memory alone powered, and wakes up again."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic

import pytest
from vm.exports import PORT, SERIAL, busid_of, disk, export
from vm.faults import KEYBOARD, PERSON, STICK, Scene, eventually, forget, state

SLEEP_SECONDS, WAKE_SECONDS = 90.0, 120.0
ALLOWED_SECONDS = 60
LOGIND = "org.freedesktop.login1"
SETTINGS = "/run/systemd/logind.conf.d/testbed.conf"


def _power(scene: Scene) -> str:
    """What QEMU says of desk: running, or suspended."""
    with scene.desk.qmp() as qmp:
        return str(qmp.command("query-status")["status"])


@pytest.fixture
def unhurried(scene: Scene) -> Iterator[None]:
    """logind lets giving back take longer than 5 s, which emulated machines may need for it."""
    desk = scene.desk

    def reload() -> None:
        desk.run("systemctl", "kill", "-s", "HUP", "systemd-logind.service")

    def is_so() -> bool:
        words = (f"/{LOGIND.replace('.', '/')}", f"{LOGIND}.Manager", "InhibitDelayMaxUSec")
        told = desk.bus("root", "get-property", LOGIND, *words)
        return bool(told == ALLOWED_SECONDS * 1_000_000)

    text = f"[Login]\nInhibitDelayMaxSec={ALLOWED_SECONDS}\n"
    desk.shell('mkdir -p "${1%/*}"; printf %s "$2" >"$1"', SETTINGS, text)
    reload()
    eventually(is_so, 60, "logind has read that")
    yield
    desk.run("rm", SETTINGS)
    reload()


@pytest.fixture
def lent(scene: Scene) -> Iterator[str]:
    """A stick of desk's that is on pi."""
    with scene.desk.spare_stick(SERIAL, PORT):
        busid_of(scene.desk)
        yield export(scene.desk, SERIAL, PERSON, keep=True)
        forget(scene.desk)


@pytest.mark.usefixtures("unhurried")
def test_desk_sleeps(scene: Scene, lent: str) -> None:
    pi, desk, stick = scene.pi, scene.desk, scene.stick
    attachment = desk.attach(PERSON, STICK, keep=True)
    other = desk.attach(PERSON, KEYBOARD, keep=True)
    stick.begin(attachment)
    count = stick.stop()
    stick.unmount()
    with scene.times.row("desk sleeps and wakes up, with two devices") as row:
        begun = monotonic()
        desk.run("systemctl", "suspend", "--no-block")
        eventually(lambda: _power(scene) == "suspended", SLEEP_SECONDS, "desk sleeps")
        slept = monotonic() - begun
        # Given back before, not because the other end fell silent.
        assert pi.exports_left() == []
        assert pi.interface_drivers(STICK) == {f"{STICK}:1.0": "usb-storage"}
        assert pi.taken_ports() == []
        woken = monotonic()
        with desk.qmp() as qmp:
            qmp.command("system_wakeup")
        for path in (attachment, other, lent):
            back = eventually(
                lambda path=path: state(desk, path) == "attached",  # type: ignore[misc]
                WAKE_SECONDS,
                "it is attached again",
            )
        row.usable = back - woken
        assert "PM: suspend exit" in desk.run("dmesg")
        stick.check_again(attachment, count)
        assert pi.run("head", "-c", "512", disk(desk, lent), timeout=60)
        row.outcome = f"asleep {slept:.0f} s after it was told to; given back before, all are back"
    assert desk.detach(PERSON, attachment) == 1
    assert desk.detach(PERSON, other) == 1
    assert desk.detach(PERSON, lent) == 1
