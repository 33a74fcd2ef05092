# SPDX-License-Identifier: GPL-3.0-or-later
"""Resets of real ports: what the kernels say of them, and what stays."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from vm.testbed.desk import CallFailed, Desk
from vm.testbed.pi import BUSIDS, Pi

pytestmark = pytest.mark.usefixtures("listed")

STICK = BUSIDS["stick"]
OWN = {f"{STICK}:1.0": "usb-storage"}


@pytest.fixture
def mounted_at_pi(pi: Pi) -> Iterator[str]:
    pi.run("mount", "-o", "ro", pi.disk_of(STICK), "/mnt")
    yield "/mnt"
    pi.shell("! mountpoint -q /mnt || umount /mnt")


def reset(desk: Desk, remote: str, pattern: str) -> list[str]:
    (busids,) = desk.manager("alice", "Reset", remote, pattern, timeout=120)
    return list(busids)


def number(pi: Pi | Desk, busid: str) -> int:
    return int(pi.run("cat", f"/sys/bus/usb/devices/{busid}/devnum"))


def resets(pi: Pi, busid: str = STICK) -> int:
    """How often its kernel said that it reset the device, in all that it has ever said."""
    return pi.console_caught_up().count(f"usb {busid}: reset ")


@pytest.mark.parametrize("name", ["perl", "python3"])
def test_a_reset_disturbs_no_file_system_there(
    pi: Pi, desk: Desk, mounted_at_pi: str, name: str
) -> None:
    desk.stop_daemon()
    before, devnum = resets(pi), number(pi, STICK)
    with pi.only_connector(name):
        assert reset(desk, "pi", "HARDDRIVE") == [STICK]
        desk.stop_daemon()
    assert resets(pi) == before + 1
    assert number(pi, STICK) == devnum
    assert pi.interface_drivers(STICK) == OWN
    assert pi.ssh.attempt("mountpoint", "-q", mounted_at_pi).code == 0
    pi.run("sh", "-c", "echo 3 >/proc/sys/vm/drop_caches")
    assert "Greetings" in pi.run("cat", f"{mounted_at_pi}/hello.txt")


def test_without_perl_and_python3_sysfs_will_do(pi: Pi, desk: Desk) -> None:
    desk.stop_daemon()
    keyboard = BUSIDS["keyboard"]
    node = pi.disk_of(STICK)
    with pi.only_connector("bash"):
        pi.run("mount", "-o", "ro", node, "/mnt")
        with pytest.raises(CallFailed) as busy:
            reset(desk, "pi", STICK)
        assert busy.value.name == "org.usbipssh1.Error.DeviceBusy"
        assert pi.interface_drivers(STICK) == OWN
        pi.run("umount", "/mnt")
        assert reset(desk, "pi", STICK) == [STICK]
        assert reset(desk, "pi", keyboard) == [keyboard]
        desk.stop_daemon()
    assert f"{keyboard}:1.0" in pi.interface_drivers(keyboard)
    pi.disk_of(STICK)
    assert pi.interface_drivers(STICK) == OWN


def test_what_is_attached_comes_back(pi: Pi, desk: Desk) -> None:
    path = desk.attach("alice", STICK)
    before = resets(pi)
    first = desk.attachment(path)["AttachedAt"]
    assert reset(desk, "pi", STICK) == [STICK]
    assert resets(pi) == before + 1
    found = desk.attachment(path)
    assert (found["State"], found["Keep"]) == ("attached", False)
    assert found["AttachedAt"] > first
    with desk.mounted(desk.node(path)) as folder:
        assert desk.run("cat", f"{folder}/hello.txt") == "Greetings from pi.\n"
    assert desk.detach("alice", path) == 1
    assert pi.interface_drivers(STICK) == OWN


def test_this_machine(desk: Desk) -> None:
    (mouse,) = desk.list_local("alice", "MOUSE0002")
    busid = mouse["busid"]
    node = f"/dev/{next(n for n in mouse['interfaces'][0]['nodes'] if n.startswith('hidraw'))}"
    made = desk.run("stat", "-c", "%W %Z", node)
    assert reset(desk, "", busid) == [busid]
    desk.wait_there(node)
    # Its drivers began anew.
    assert desk.run("stat", "-c", "%W %Z", node) != made
    assert desk.list_local("alice", busid)[0]["interfaces"][0]["driver"] == "usbhid"
