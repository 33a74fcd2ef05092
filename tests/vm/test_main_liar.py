# SPDX-License-Identifier: GPL-3.0-or-later
"""A remote shows a stick and hands over a keyboard: at once, or after a reset."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from vm.faults import eventually
from vm.testbed import systems
from vm.testbed.desk import BUS_NAME, CallFailed, Desk
from vm.testbed.pi import Pi

pytestmark = pytest.mark.usefixtures("listed")

EXPORTER = Path(__file__).with_name("lying_exporter.py")
PLACE = "/run/testbed-liar.py"
LIE = "/run/testbed-lie"
# Found before the real one: agent.sh looks here first. Everything but connecting is left to perl.
PERL = "/usr/sbin/perl"
MONITOR = "/run/testbed-uevents"

# What a program that may open the device's node can ask for, and a driver that is in trouble does.
_RESET = """
import fcntl, sys
with open(sys.argv[1], "wb") as node:
    try:
        fcntl.ioctl(node, 0x5514)
    except OSError as error:
        print(error)
"""


@pytest.fixture
def liar(pi: Pi, desk: Desk) -> Iterator[None]:
    """pi's perl lies as soon as LIE is there."""
    # A connection that is up has looked for connectors already.
    desk.stop_daemon()
    pi.run("sh", "-c", f"cat >{PLACE}", data=EXPORTER.read_bytes())
    script = (
        f'[ -z "$TARGET" ] || exec {systems.HIDDEN_PYTHON} {PLACE} {LIE}\nexec /usr/bin/perl "$@"\n'
    )
    pi.run("sh", "-c", f"cat >{PERL}; chmod 755 {PERL}", data=f"#!/bin/sh\n{script}")
    try:
        yield
    finally:
        desk.stop_daemon()
        pi.run("rm", "-f", PERL, PLACE, LIE)


@contextmanager
def no_keyboard_appears(desk: Desk) -> Iterator[None]:
    """No input device, HID device or node of one is told of by the kernel, even for a moment."""
    desk.shell(
        f"udevadm monitor --kernel --subsystem-match=input --subsystem-match=hid"
        f" --subsystem-match=hidraw >{MONITOR} 2>&1 & echo $! >{MONITOR}.pid\n"
        f'i=0; until grep -q "^KERNEL" {MONITOR}; do i=$((i+1)); [ $i -lt 300 ] || exit 1;'
        " sleep 0.1; done"
    )
    try:
        yield
    finally:
        desk.run("udevadm", "settle", "--timeout=30")
        # All that it was told of is in its file when it has ended.
        desk.shell(
            f'p=$(cat {MONITOR}.pid); kill "$p"; while [ -e "/proc/$p" ]; do sleep 0.1; done'
        )
    told = desk.run("cat", MONITOR)
    assert re.findall(r"^KERNEL\[.*", told, re.MULTILINE) == []


def held(desk: Desk) -> set[str]:
    """The values of every virtual bus's switch."""
    return set(desk.shell("cat /sys/devices/platform/vhci_hcd.*/usb*/authorized_default").split())


def reset(desk: Desk, busid: str) -> None:
    """Have the kernel reset a device, and wait until it has."""
    numbers = desk.shell('cd /sys/bus/usb/devices/"$1"; cat busnum devnum', busid).split()
    node = "/dev/bus/usb/{:03d}/{:03d}".format(*map(int, numbers))
    desk.run("python3", "-c", _RESET, node, timeout=120)


def disks(desk: Desk, path: str) -> list[str]:
    """The disks that an attachment has now."""
    return [n for n in desk.attachment(path)["DeviceNodes"] if n.startswith("/dev/sd")]


def started(desk: Desk) -> int:
    """How many devices the kernel has been told to start so far."""
    return desk.console_caught_up().count("authorized to connect")


def test_a_keyboard_in_the_place_of_a_stick(pi: Pi, desk: Desk, liar: None) -> None:
    (stick,) = desk.list_remote("alice", "pi", "46f4:1")
    assert [i["class"] for i in stick["interfaces"]] == [8]
    pi.run("touch", LIE)
    before = started(desk)
    with no_keyboard_appears(desk), pytest.raises(CallFailed) as refused:
        desk.attach("alice", "46f4:1")
    assert refused.value.name == f"{BUS_NAME}.Error.DeviceChanged"
    # For that an Attach that failed waits only for some seconds.
    eventually(lambda: held(desk) == {"1"}, 60, "the bus is let go")
    assert "New USB device found, idVendor=0627, idProduct=0002" in desk.console_caught_up()
    assert started(desk) == before


def test_a_stick_that_is_a_keyboard_after_a_reset(pi: Pi, desk: Desk, liar: None) -> None:
    path = desk.attach("alice", "46f4:1")
    told = desk.attachment(path)
    busid = told["LocalBusId"]
    assert desk.node(path)
    assert held(desk) == {"0", "1"}
    before = started(desk)
    pi.run("touch", LIE)
    with no_keyboard_appears(desk):
        reset(desk, busid)
        eventually(lambda: path not in desk.objects(), 60, "the attachment ends")
        eventually(lambda: desk.taken_ports() == [], 60, "its port is free")
    assert started(desk) == before
    line = f"{busid} on port {told['Port']} is not the device that was approved"
    eventually(lambda: line in desk.journal(), 60, "the log says so")
    eventually(lambda: held(desk) == {"1"}, 60, "the bus is let go")


def test_a_stick_that_is_itself_again_after_a_reset_is_started_again(
    pi: Pi, desk: Desk, liar: None
) -> None:
    path = desk.attach("alice", "46f4:1")
    desk.node(path)
    before = started(desk)
    # Empty for a moment it would be another lie.
    pi.run("sh", "-c", f"printf once >{LIE}.new; mv {LIE}.new {LIE}")
    busid = desk.attachment(path)["LocalBusId"]
    reset(desk, busid)
    eventually(lambda: started(desk) == before + 1, 60, "it is authorized anew")
    # The one that it had has gone by then.
    disk = desk.disk_of(busid)
    eventually(lambda: disks(desk, path) == [disk], 60, "its disk is told of again")
    assert desk.run("head", "-c", "512", disk, timeout=120)
    assert desk.attachment(path)["State"] == "attached"
    assert desk.detach("alice", path) == 1
    eventually(lambda: held(desk) == {"1"}, 60, "the bus is let go")
