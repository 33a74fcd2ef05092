# SPDX-License-Identifier: GPL-3.0-or-later
"""Devices are pulled out and plugged in again, where they were or elsewhere."""

from __future__ import annotations

from time import monotonic

from vm.faults import KEYBOARD, PERSON, STICK, Scene, eventually, state

from usbipsshd.journal import Happening

STICK_ELSEWHERE = "2-4"


def test_unplugged_under_load_and_replugged_in_the_same_port(scene: Scene) -> None:
    pi, desk, stick, log = scene.pi, scene.desk, scene.stick, scene.log
    attachment = desk.attach(PERSON, STICK, keep=True)
    stick.begin(attachment)
    with scene.times.row("device unplugged while written to, plugged in again") as row:
        begun = monotonic()
        pi.unplug("stick")
        row.noticed = log.wait(Happening.LOST, STICK, since=begun) - begun
        count = stick.failed()
        eventually(lambda: state(desk, attachment) == "waiting", 60, "it waits")
        back = monotonic()
        pi.plug("stick")
        row.usable = log.wait(Happening.RESTORED, STICK, since=back, seconds=120) - back
        stick.check_again(attachment, count)
        row.outcome = "counted from each of the two; every block that was written is there"
    assert desk.detach(PERSON, attachment) == 1


def test_unplugged_while_idle_and_another_comes_in_its_place(scene: Scene) -> None:
    pi, desk, log = scene.pi, scene.desk, scene.log
    attachment = desk.attach(PERSON, KEYBOARD, keep=True)
    with scene.times.row("device unplugged while idle; another comes, then it comes") as row:
        begun = monotonic()
        pi.unplug("keyboard")
        row.noticed = log.wait(Happening.LOST, KEYBOARD, since=begun) - begun
        pi.plug("mouse", port="1")
        try:
            eventually(
                lambda: desk.attachment(attachment)["LastError"][0].endswith("DeviceChanged"),
                60,
                "the other device is told from the one that was meant",
            )
            assert pi.driver(KEYBOARD) == "usb"
            assert state(desk, attachment) in ("waiting", "connecting")
        finally:
            pi.unplug("mouse")
            back = monotonic()
            pi.plug("keyboard")
        row.usable = log.wait(Happening.RESTORED, KEYBOARD, since=back, seconds=120) - back
        row.outcome = "the other one is left alone"
    assert desk.detach(PERSON, attachment) == 1


def test_replugged_in_another_port(scene: Scene) -> None:
    pi, desk, log = scene.pi, scene.desk, scene.log
    by_pattern = desk.attach(PERSON, "46f4:0001", keep=True)
    with scene.times.row("device plugged into another port, attached by pattern") as row:
        begun = monotonic()
        pi.unplug("stick")
        row.noticed = log.wait(Happening.LOST, STICK, since=begun) - begun
        back = monotonic()
        pi.plug("stick", port="4")
        try:
            restored = log.wait(Happening.RESTORED, STICK_ELSEWHERE, since=back, seconds=120)
            row.usable = restored - back
            assert desk.attachment(by_pattern)["RemoteBusId"] == STICK_ELSEWHERE
            assert desk.detach(PERSON, by_pattern) == 1
            row.outcome = "found there"
        finally:
            pi.unplug("stick")
            pi.plug("stick")
            pi.wait_driver(STICK, "usb")
