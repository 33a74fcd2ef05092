# SPDX-License-Identifier: GPL-3.0-or-later
"""What of a disk is in use on this machine, told from a made-up /proc, /sys and /dev."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from usbipsshd.client.mounted import Mounted
from usbipsshd.client.snapshot import Attachment, Snapshot

UID = 1000
STICK = Attachment(
    "/org/usbipssh1/attachment/1",
    remote="pi",
    remote_bus_id="2-1",
    state="attached",
    local_bus_id="4-1",
    device_nodes=("/dev/sda", "/dev/sda1", "/dev/bsg/0:0:0:0"),
    owner_uid=UID,
    hub="/org/usbipssh1/hub/3",
)
ROOT_DISK = "29 1 252:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n"


class Machine:
    """sda has the partitions sda1 and sda2; vda1 is where everything else lies."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.mounts(ROOT_DISK)
        self.disk("vda1", "252:1")
        self.disk("sda", "8:0")
        for number in (1, 2):
            self.disk(f"sda{number}", f"8:{number}")
            folder = self.put(f"sys/class/block/sda/sda{number}/partition", f"{number}\n").parent
            self.put(f"{folder.relative_to(root)}/dev", f"8:{number}\n")

    def put(self, name: str, text: str) -> Path:
        file = self.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def disk(self, name: str, number: str, *below: str) -> None:
        self.put(f"sys/class/block/{name}/dev", f"{number}\n")
        for lower in below:
            holder = self.root / f"sys/class/block/{lower}/holders/{name}"
            holder.parent.mkdir(exist_ok=True)
            holder.symlink_to(f"../../{name}")

    def mounts(self, *lines: str) -> None:
        self.put("proc/self/mountinfo", "".join(lines))

    def found(self, target: str = "pi/2-1", one: Attachment = STICK, uid: int = UID) -> str | None:
        use = Mounted(self.root).find(target, Snapshot(attachments=(one,)), uid)
        return None if use is None else f"{use.device} {use.mount_point}".strip()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_nothing_of_it_is_in_use(machine: Machine) -> None:
    assert machine.found() is None
    machine.put("proc/swaps", "Filename Type Size Used Priority\n/dev/vda1 partition 1 0 -2\n")
    assert machine.found() is None


def test_a_mounted_partition(machine: Machine) -> None:
    machine.mounts(
        ROOT_DISK, r"50 29 8:2 / /media/A\040B rw shared:9 master:1 - vfat /dev/sda2 rw" "\n"
    )
    assert machine.found() == "sda2 /media/A B"


def test_what_is_mounted_says_nothing_to_a_terminal(machine: Machine) -> None:
    machine.mounts("50 29 8:0 / /media/\x1b[31mred rw - vfat /dev/sda rw\n")
    assert machine.found() == "sda /media/[31mred"


def test_behind_luks_and_lvm(machine: Machine) -> None:
    machine.disk("dm-0", "253:0", "sda1")
    machine.disk("dm-1", "253:1", "dm-0")
    machine.mounts(ROOT_DISK, "50 29 253:1 / /srv rw - ext4 /dev/mapper/vg-srv rw\n")
    assert machine.found() == "dm-1 /srv"


def test_a_file_system_with_a_number_of_its_own(machine: Machine) -> None:
    machine.disk("dm-0", "253:0", "sda1")
    (machine.put("dev/mapper/control", "").parent / "luks").symlink_to("../dm-0")
    machine.mounts("50 29 0:45 /@ /srv rw - btrfs /dev/mapper/luks rw\n")
    assert machine.found() == "dm-0 /srv"


def test_swap(machine: Machine) -> None:
    machine.put("proc/swaps", "Filename Type Size Used Priority\n/dev/sda2 partition 1 0 -2\n")
    assert machine.found() == "sda2"


@pytest.mark.parametrize("target", [STICK.path, STICK.hub, "4-1", "all"])
def test_each_way_to_name_it(machine: Machine, target: str) -> None:
    machine.mounts("50 29 8:0 / /mnt rw - vfat /dev/sda rw\n")
    assert machine.found(target) == "sda /mnt"


def test_what_is_not_meant(machine: Machine) -> None:
    machine.mounts("50 29 8:0 / /mnt rw - vfat /dev/sda rw\n")
    assert machine.found("pi/2-2") is None
    assert machine.found("all", uid=UID + 1) is None
    assert machine.found("all", uid=0) == "sda /mnt"
    # What it waits for is not sda any more, whatever that is now.
    assert machine.found("all", replace(STICK, state="waiting")) is None
    # What is exported has its nodes on another machine.
    assert machine.found("all", replace(STICK, direction="export")) is None


@pytest.mark.parametrize("text", ["", "\n", "a b c\n", "1 2 8:0 - x\n", "1 2 3 4 5 6 - a\n"])
def test_what_cannot_be_understood_stops_nobody(machine: Machine, text: str) -> None:
    machine.mounts(text)
    assert machine.found() is None
