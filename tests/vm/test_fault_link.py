# SPDX-License-Identifier: GPL-3.0-or-later
"""The link between the machines is cut, or bad."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic, sleep

import pytest
from vm.faults import (
    DEAD_PEER_SECONDS,
    GIVEN_BACK_SECONDS,
    PERSON,
    STALL_SECONDS,
    STICK,
    Scene,
    Stick,
    eventually,
    state,
)

from usbipsshd.journal import Happening

SHORT, LONG = 5.0, 90.0
"""Seconds that the link is cut."""
PATIENCE = 60.0
"""Seconds after which what waits on pi gives up."""

# Beside everything else, and in pi's own time: asking it takes longer than it may take.
_NOTICE = """
rm -f /run/testbed-noticed
systemd-run -q --collect sh -c '
    begun=$(cut -d" " -f1 /proc/uptime)
    while [ "$(cat "$1")" = 2 ]; do sleep 0.2; done
    echo "$begun $(cut -d" " -f1 /proc/uptime)" >/run/testbed-noticing
    mv /run/testbed-noticing /run/testbed-noticed' sh "$1"
"""


@contextmanager
def _cut(scene: Scene) -> Iterator[None]:
    scene.pi.link(up=False)
    try:
        yield
    finally:
        scene.pi.link(up=True)


def _noticed_by_pi(scene: Scene) -> float:
    """Seconds after which pi ended the connection that was watched."""
    script = "cat /run/testbed-noticed 2>/dev/null || :"
    eventually(lambda: scene.pi.shell(script) != "", PATIENCE, "pi notices")
    begun, noticed = scene.pi.shell(script).split()
    return float(noticed) - float(begun)


@contextmanager
def _bad_link(scene: Scene, *how: str) -> Iterator[None]:
    """The link delays and loses what pi and desk send (tc-netem(8))."""
    machines = (scene.pi, scene.desk)
    find = 'dev=$(ip -o addr show to "$1" | cut -d" " -f2); shift; '
    for machine in machines:
        script = 'exec tc qdisc replace dev "$dev" root netem "$@"'
        machine.shell(find + script, f"{machine.address}/32", *how)
    try:
        yield
    finally:
        for machine in machines:
            machine.shell(find + 'tc qdisc del dev "$dev" root', f"{machine.address}/32")


def test_link_cut_for_a_moment(scene: Scene) -> None:
    desk, stick, log = scene.desk, scene.stick, scene.log
    attachment = desk.attach(PERSON, STICK, keep=True)
    with scene.times.row(f"link cut for {SHORT:.0f} s while a file is written") as row:
        with stick.written(attachment):
            begun = monotonic()
            with _cut(scene):
                sleep(SHORT)  # this is the fault
            mended = monotonic()
            stick.goes_on(1)
            row.usable = monotonic() - mended
        assert not log.has(Happening.LOST, since=begun)
        row.outcome = "nothing is unplugged, no write fails"
    assert desk.detach(PERSON, attachment) == 1


def test_link_cut_for_long(scene: Scene) -> None:
    pi, desk, stick, log = scene.pi, scene.desk, scene.stick, scene.log
    attachment = desk.attach(PERSON, STICK, keep=True)
    stick.begin(attachment)
    with scene.times.row(f"link cut for {LONG:.0f} s while a file is written") as row:
        pi.shell(_NOTICE, f"/sys/bus/usb/devices/{STICK}/usbip_status")
        begun = monotonic()
        with _cut(scene):
            row.noticed = log.wait(Happening.LOST, STICK, since=begun) - begun
            assert row.noticed < DEAD_PEER_SECONDS + STALL_SECONDS
            noticed_by_pi = _noticed_by_pi(scene)
            assert noticed_by_pi < DEAD_PEER_SECONDS + STALL_SECONDS
            back = eventually(
                lambda: pi.interface_drivers(STICK) == {f"{STICK}:1.0": "usb-storage"},
                GIVEN_BACK_SECONDS,
                "pi takes its device back",
            )
            assert back - begun < GIVEN_BACK_SECONDS
            # Its driver is there a moment before usbip-host has forgotten its name.
            eventually(lambda: pi.exports_left() == [], 60, "nothing is exported there")
            eventually(lambda: pi.agents_left() == [], 60, "the agent goes")
            count = stick.failed()
            assert state(desk, attachment) in ("waiting", "connecting")
            sleep(max(0.0, begun + LONG - monotonic()))  # this is the fault
        mended = monotonic()
        row.usable = log.wait(Happening.RESTORED, STICK, since=mended, seconds=180) - mended
        stick.check_again(attachment, count)
        row.outcome = (
            f"noticed by pi after {noticed_by_pi:.1f} s; attached again, every block that was "
            "written is there"
        )
    assert desk.detach(PERSON, attachment) == 1


@pytest.mark.long
def test_link_that_is_slow_and_loses(scene: Scene) -> None:
    desk, stick, log = scene.desk, Stick(scene.desk, patience=8), scene.log
    with (
        _bad_link(scene, "delay", "100ms", "loss", "5%"),
        scene.times.row("link with a delay of 200 ms that loses 5 %") as row,
    ):
        begun = monotonic()
        attachment = desk.attach(PERSON, STICK, keep=True)
        row.usable = monotonic() - begun
        with stick.written(attachment):
            pass
        assert not log.has(Happening.LOST, since=begun)
        assert desk.detach(PERSON, attachment) == 1
        row.outcome = "attached, written to, checked and detached"
