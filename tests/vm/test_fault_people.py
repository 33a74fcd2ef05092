# SPDX-License-Identifier: GPL-3.0-or-later
"""Somebody changes their mind in the middle, and what decides or answers is away."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from time import monotonic

import pytest
from vm.faults import PERSON, STICK, Scene, eventually, state
from vm.testbed.desk import BUS_NAME, CallFailed, Desk

from usbipsshd.journal import Happening

DEAD = "dead"
NOBODY = "root@10.77.0.9"
"""An address of the link that no machine has."""
ANSWER_SECONDS = 120.0


def _attachments(desk: Desk) -> list[str]:
    return [path for path in desk.objects() if "/attachment/" in path]


@pytest.mark.parametrize("moment", [0, 1, 2, 4, 8], ids=lambda n: f"look{n}")
def test_detached_while_connecting(scene: Scene, moment: int) -> None:
    """It is detached a few calls after it has appeared."""
    desk = scene.desk
    desk.stop_daemon()
    with (
        ThreadPoolExecutor(1) as pool,
        scene.times.row(f"detached while connecting, at moment {moment}") as row,
    ):
        attaching = pool.submit(desk.attach, PERSON, STICK, keep=True)
        eventually(lambda: _attachments(desk) != [], 60, "the attachment is there")
        (attachment,) = _attachments(desk)
        for _ in range(moment):
            if state(desk, attachment) != "connecting":
                break
        begun = monotonic()
        assert desk.detach(PERSON, attachment) == 1
        row.usable = monotonic() - begun
        try:
            assert attaching.result(timeout=60) == attachment
            how = "it was attached by then"
        except CallFailed as error:
            assert error.name == f"{BUS_NAME}.Error.Cancelled"
            how = "the call ends with Cancelled"
        assert _attachments(desk) == []
        assert scene.pi.interface_drivers(STICK) == {f"{STICK}:1.0": "usb-storage"}
        row.outcome = how


def test_polkitd_killed(scene: Scene) -> None:
    """polkitd comes back by itself when it is asked again; nobody is let in meanwhile."""
    desk, stick, log = scene.desk, scene.stick, scene.log
    attachment = desk.attach(PERSON, STICK, keep=True)
    with stick.written(attachment), scene.times.row("polkitd killed") as row:
        begun = monotonic()
        desk.run("systemctl", "kill", "-s", "KILL", "polkit.service")
        with pytest.raises(CallFailed) as refused:
            desk.list_remote("bob", "pi")
        assert refused.value.name.endswith("AccessDenied")

        def answered() -> bool:
            try:
                return bool(desk.list_remote(PERSON, "pi"))
            except CallFailed as error:
                assert error.name.endswith("AccessDenied")
                return False

        row.usable = eventually(answered, ANSWER_SECONDS, "alice may list again") - begun
        assert not log.has(Happening.LOST, since=begun)
        row.outcome = "nothing is unplugged, nobody else is let in"
    assert desk.detach(PERSON, attachment) == 1


@contextmanager
def _dead_remote(desk: Desk) -> Iterator[None]:
    options: dict[str, tuple[str, object]] = {"address": ("s", NOBODY)}
    desk.manager("root", "AddRemote", DEAD, options=options)
    try:
        yield
    finally:
        desk.manager("root", "RemoveRemote", DEAD, timeout=120)


def test_one_of_two_remotes_is_dead(scene: Scene) -> None:
    desk, stick, log = scene.desk, scene.stick, scene.log
    attachment = desk.attach(PERSON, STICK, keep=True)
    with (
        _dead_remote(desk),
        stick.written(attachment),
        ThreadPoolExecutor(1) as pool,
        scene.times.row("two remotes, one of them dead") as row,
    ):
        begun = monotonic()
        listing = pool.submit(desk.list_remote, "root", DEAD)
        asked = monotonic()
        assert any(device["busid"] == STICK for device in desk.list_remote(PERSON, "pi"))
        row.usable = monotonic() - asked
        with pytest.raises(CallFailed) as failed:
            listing.result(timeout=60)
        row.noticed = monotonic() - begun
        assert failed.value.name in (
            f"{BUS_NAME}.Error.ConnectionFailed",
            f"{BUS_NAME}.Error.TimedOut",
        )
        assert DEAD in failed.value.message
        assert desk.properties(f"/org/usbipssh1/remote/{DEAD}", f"{BUS_NAME}.Remote")["State"] == (
            "unreachable"
        )
        stick.goes_on()
        assert not log.has(Happening.LOST, since=begun)
        row.outcome = "the other one answers meanwhile and goes on"
    assert desk.detach(PERSON, attachment) == 1
