# SPDX-License-Identifier: GPL-3.0-or-later
"""Devices that are in use at pi, or that somebody else exports there."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from vm.testbed.desk import CallFailed, Desk
from vm.testbed.pair import Pair
from vm.testbed.pi import BUSIDS, Pi

pytestmark = pytest.mark.usefixtures("listed")

STICK = BUSIDS["stick"]

# What usbip(8)'s `bind` does.
_EXPORT = """
modprobe usbip-host
cd /sys/bus/usb/drivers
printf %s "$1" > usb/unbind
printf 'add %s' "$1" > usbip-host/match_busid
printf %s "$1" > usbip-host/bind
"""


@pytest.fixture
def mounted_at_pi(pi: Pi) -> Iterator[str]:
    """The stick is mounted at pi, and somebody there has reason to want it so."""
    pi.run("mount", "-o", "ro", pi.disk_of(STICK), "/mnt")
    yield "/mnt"
    pi.shell("! mountpoint -q /mnt || umount /mnt")


def is_mounted(pi: Pi, folder: str) -> bool:
    return pi.ssh.attempt("mountpoint", "-q", folder).code == 0


def test_a_mounted_stick_is_left_alone_if_so_wished(pi: Pi, desk: Desk, mounted_at_pi: str) -> None:
    with pytest.raises(CallFailed) as busy:
        desk.attach("alice", STICK, unmount=False)
    assert busy.value.name == "org.usbipssh1.Error.DeviceBusy"
    assert "pi" in busy.value.message
    assert is_mounted(pi, mounted_at_pi)
    assert pi.interface_drivers(STICK) == {f"{STICK}:1.0": "usb-storage"}
    assert "Greetings" in pi.run("cat", f"{mounted_at_pi}/hello.txt")


def test_a_mounted_stick_is_unmounted_and_attached(pi: Pi, desk: Desk, mounted_at_pi: str) -> None:
    path = desk.attach("alice", STICK)
    assert not is_mounted(pi, mounted_at_pi)
    assert desk.attachment(path)["State"] == "attached"
    assert desk.detach("alice", path) == 1


def test_unbind_gives_back_what_others_left_exported(machines: Pair) -> None:
    pi, desk = machines.pi, machines.desk
    pi.shell(_EXPORT, STICK)
    assert pi.driver(STICK) == "usbip-host"
    (device,) = desk.list_remote("alice", "pi", STICK)
    assert (device["state"], device["driver"]) == ("exported", "usbip-host")
    (busids,) = desk.manager("alice", "Unbind", "pi", STICK)
    assert busids == [STICK]
    assert pi.interface_drivers(STICK) == {f"{STICK}:1.0": "usb-storage"}
    (again,) = desk.manager("alice", "Unbind", "pi", "")
    assert again == []
    # It is as good as new.
    path = desk.attach("alice", STICK)
    assert desk.detach("alice", path) == 1
    # What Attach was to leave without a driver has one again, too.
    desk.attach("alice", STICK, rebind=False)
    (busids,) = desk.manager("alice", "Unbind", "pi", STICK)
    assert busids == [STICK]
    assert pi.interface_drivers(STICK) == {f"{STICK}:1.0": "usb-storage"}
