# SPDX-License-Identifier: GPL-3.0-or-later
"""Ways in which a machine may use a stick: partitions, swap, encryption, volumes, an image."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from vm.testbed.usb import UsbMachine

FIRST, SECOND = "/run/first", "/run/second"
TEXT = "still here"


def _partitions(*sizes: int) -> bytes:
    """A partition table with partitions of so many MiB, one after the other from 1 MiB on."""
    table, start = b"", 2048
    for size in sizes:
        table += struct.pack("<B3sB3sII", 0, b"", 0x83, b"", start, size << 11)
        start += size << 11
    return bytes(446) + table.ljust(64, b"\0") + b"\x55\xaa"


@dataclass(frozen=True)
class Use:
    """A way in which a stick is in use. Scripts: $1 is its node, $2 and $3 are folders."""

    make: str
    """Makes what is needed on an empty stick and puts it to use."""
    look: str
    """Prints what there is; the same before and after something that changed nothing."""
    again: str
    """Puts it to use again."""
    done: str
    """Ends the use, whatever state it is in."""
    begins_with: bytes = b""
    parts: int = 0
    """How many partitions it begins with."""


# udev has seen it all, and what it starts for volumes (lvm2's 69-lvm.rules) has ended.
_AT_REST = (
    "udevadm settle --timeout=60; i=0\n"
    "while systemctl -q is-active 'lvm-activate-*'; do\n"
    "i=$((i+1)); [ $i -lt 600 ] || exit 1; sleep 0.1; done\n"
)
_MKFS = "mke2fs -q -F -t ext4 "
_MOUNTS = 'grep -F " $2" /proc/self/mountinfo | cut -d" " -f3-5; '

USES = {
    "partitions": Use(
        begins_with=_partitions(30, 30),
        parts=2,
        make=f'{_MKFS}"$1"1; {_MKFS}"$1"2; mount "$1"1 "$2"; mkdir "$2/in it";'
        ' mount "$1"2 "$2/in it"',
        look=_MOUNTS,
        again='mount "$1"1 "$2"; mount "$1"2 "$2/in it"',
        done='umount -l "$2/in it"; umount -l "$2"',
    ),
    "swap": Use(
        begins_with=_partitions(30, 30),
        parts=2,
        make=f'{_MKFS}"$1"1; mount "$1"1 "$2"; mkswap -q "$1"2 || mkswap "$1"2; swapon "$1"2',
        look=_MOUNTS + 'grep -c "^$1" /proc/swaps',
        again='mount "$1"1 "$2"; swapon "$1"2',
        done='swapoff "$1"2; umount -l "$2"',
    ),
    "encrypted": Use(
        make="echo secret | cryptsetup -q luksFormat --type luks1 --pbkdf-force-iterations 1000"
        ' "$1" -; echo secret | cryptsetup open --key-file - "$1" hidden;'
        f' {_MKFS}/dev/mapper/hidden; mount /dev/mapper/hidden "$2"',
        look=_MOUNTS + "cryptsetup status hidden | grep device",
        again='echo secret | cryptsetup open --key-file - "$1" hidden;'
        ' mount /dev/mapper/hidden "$2"',
        done='umount -l "$2"; cryptsetup close hidden',
    ),
    "volumes": Use(
        make='pvcreate -q "$1"; vgcreate -q stick "$1"; lvcreate -q -y -Wn -L 20M -n part stick;'
        f' {_MKFS}/dev/stick/part; mount /dev/stick/part "$2"',
        look=_MOUNTS + "lvs --noheadings -o lv_path,lv_active stick",
        again='vgchange -q -ay stick; mount /dev/stick/part "$2"',
        done='umount -l "$2"; vgchange -q -an stick',
    ),
    "image": Use(
        make=f'{_MKFS}"$1"; mount "$1" "$2"; truncate -s 16M "$2/an image"; {_MKFS}"$2/an image";'
        ' mount -o loop "$2/an image" "$3"',
        look=_MOUNTS
        + 'grep -F " $3" /proc/self/mountinfo | cut -d" " -f4-5; losetup -n -O BACK-FILE',
        again='mount "$1" "$2"; mount -o loop "$2/an image" "$3"',
        done='umount -l "$3"; losetup -D; umount -l "$2"',
    ),
}


class InUse:
    """The stick with that bus id in one of these uses at its machine."""

    def __init__(self, machine: UsbMachine, busid: str, use: Use) -> None:
        self._machine = machine
        self._busid = busid
        self._use = use
        self._node = machine.disk_of(busid, parts=use.parts)

    def _run(self, script: str) -> str:
        return self._machine.shell(script, self._node, FIRST, SECOND, timeout=180)

    def make(self) -> None:
        """Put it to use."""
        self._run(f"set -e; {self._use.make} >&2; echo '{TEXT}' > \"$2/text\"; sync")
        self._run(_AT_REST)

    def look(self) -> str:
        """What there is now."""
        return self._run(self._use.look)

    def again(self) -> str:
        """Use it again; what is in its file."""
        self._node = self._machine.disk_of(self._busid, parts=self._use.parts)
        self._run(f"{_AT_REST}set -e; {self._use.again} >&2")
        return self._run('cat "$2/text"').strip()

    def done(self) -> None:
        """End the use, whatever state it is in."""
        self._run(f"{{ {self._use.done}; }} 2>/dev/null; :")


@contextmanager
def in_use(machine: UsbMachine, busid: str, use: Use) -> Iterator[InUse]:
    """A stick that is plugged in, and as empty as ``use`` wants it, is in use meanwhile."""
    stick = InUse(machine, busid, use)
    try:
        machine.run("mkdir", "-p", FIRST, SECOND)
        stick.make()
        yield stick
    finally:
        stick.done()


@contextmanager
def busy(machine: UsbMachine, folder: str) -> Iterator[str]:
    """Somebody works in that folder; how that is told."""
    unit = "testbed-busy"
    # With Type=exec it is in that folder, and is sleep, when this returns.
    machine.run("systemd-run", "-q", "--collect", "--unit", unit, "-p", "Type=exec",
                "-p", f"WorkingDirectory={folder}", "sleep", "infinity")  # fmt: skip
    try:
        pid = machine.run("systemctl", "show", "-P", "MainPID", unit).strip()
        yield f"sleep (process {pid}) uses {folder}"
    finally:
        machine.run("systemctl", "stop", unit)
