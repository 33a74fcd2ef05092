# SPDX-License-Identifier: GPL-3.0-or-later
"""pi's stick as desk's disk: read, written, given back, and attached again and again."""

from __future__ import annotations

import hashlib

import pytest
from vm.testbed.desk import Desk
from vm.testbed.pair import Pair
from vm.testbed.pi import BUSIDS, Pi
from vm.testbed.systems import stick_files

pytestmark = pytest.mark.usefixtures("listed")

STICK = BUSIDS["stick"]
OWN_DRIVER = {f"{STICK}:1.0": "usb-storage"}
EXPECTED = {name: hashlib.sha256(data).hexdigest() for name, data in stick_files().items()}


def test_its_file_system_is_read_and_written(pi: Pi, desk: Desk) -> None:
    path = desk.attach("alice", "46f4:0001")
    found = desk.attachment(path)
    assert found["State"] == "attached"
    assert (found["Remote"], found["RemoteBusId"]) == ("pi", STICK)
    assert (found["VendorId"], found["ProductId"], found["Speed"]) == (0x46F4, 1, 5000.0)
    assert found["Serial"] == "STICK0001"
    assert found["OwnerUid"] == int(desk.run("id", "-u", "alice"))
    node = desk.node(path)
    (port,) = desk.taken_ports()
    assert (port.hub, port.number, port.busid) == ("ss", found["Port"], found["LocalBusId"])
    assert "usb-storage, 5000M" in desk.usb_tree()
    assert pi.usbip_status(STICK) == 2
    (listed,) = desk.list_remote("alice", "pi", STICK)
    assert (listed["state"], listed["attachment"]) == ("attached", path)

    with desk.mounted(node, write=True) as folder:
        sums = {k: v for k, v in desk.checksums(folder).items() if k in EXPECTED}
        assert sums == EXPECTED
        made = "head -c 1500000 /dev/urandom > $1/from-desk && sync && sha256sum < $1/from-desk"
        written = desk.shell(made, folder, timeout=120).split()[0]
    assert desk.detach("alice", path) == 1
    desk.wait_gone(node)

    assert pi.interface_drivers(STICK) == OWN_DRIVER
    there = pi.shell(
        'mount "$1" /mnt && sha256sum < /mnt/from-desk && rm /mnt/from-desk; umount /mnt',
        pi.disk_of(STICK),
    )
    assert there.split()[0] == written


def test_it_can_be_attached_again_and_again(machines: Pair) -> None:
    pi, desk = machines.pi, machines.desk
    for _ in range(3):
        path = desk.attach("alice", STICK)
        with desk.mounted(desk.node(path)) as folder:
            assert desk.run("cat", f"{folder}/hello.txt") == "Greetings from pi.\n"
        assert desk.detach("alice", f"pi/{STICK}") == 1
        # What Detach promises is so when it returns.
        assert machines.devices_left() == []
        assert pi.interface_drivers(STICK) == OWN_DRIVER
