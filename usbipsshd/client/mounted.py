# SPDX-License-Identifier: GPL-3.0-or-later
"""What of an attachment's disks this machine uses, also behind partitions, LUKS, LVM and RAID.

Pulling a disk whose file system is mounted loses what was not written yet. The daemon does what it
is told; a program where people click or type looks here first, as those who use udisks expect.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from usbipsshd.client.snapshot import Attachment, Snapshot
from usbipsshd.mounts import mounts, unescaped
from usbipsshd.text import clean


@dataclass(frozen=True, slots=True)
class Use:
    """A disk that is in use here."""

    attachment: Attachment
    device: str
    """The block device's name, such as sda1."""
    mount_point: str
    """Where it is mounted; empty if it is swap space."""


class Mounted:
    """Looks at ``root``'s proc, sys and dev, which may be made up. Needs no privileges."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._proc = root / "proc"
        self._block = root / "sys/class/block"
        self._dev = root / "dev"

    def find(self, target: str, snapshot: Snapshot, uid: int) -> Use | None:
        """What is in use of the devices here that ``Detach`` of ``target`` is about, if anything.

        Of ``all`` these are the ones that ``uid`` may detach unasked.
        """
        uses = (use for one in _meant(target, snapshot, uid) for use in self._uses(one))
        return next(uses, None)

    def _uses(self, one: Attachment) -> Iterator[Use]:
        names = {Path(node).name for node in one.device_nodes}
        numbers = {_text(self._block / n / "dev"): n for n in self._behind(names)}
        for mount in mounts(_text(self._proc / "self/mountinfo")):
            name = numbers.get(mount.number) or self._name(mount.source)
            if name in numbers.values():
                yield Use(one, name, clean(mount.point))
        for line in _text(self._proc / "swaps").splitlines()[1:]:
            name = self._name(unescaped(line.partition(" ")[0]))
            if name in numbers.values():
                yield Use(one, name, "")

    def _behind(self, names: Iterable[str]) -> Iterator[str]:
        """Each disk, its partitions, and what is made of them.

        ``holders``: Documentation/ABI/stable/sysfs-block of the kernel.
        """
        seen: set[str] = set()
        left = list(names)
        while left:
            name = left.pop()
            folder = self._block / name
            if name in seen or not _text(folder / "dev"):
                continue
            seen.add(name)
            yield name
            left += [part for part in _entries(folder) if _text(folder / part / "partition")]
            left += _entries(folder / "holders")

    def _name(self, path: str) -> str:
        """The kernel's name for a device file, also for /dev/mapper/NAME; else empty."""
        if not path.startswith("/dev/"):
            return ""
        return (self._dev / path.removeprefix("/dev/")).resolve().name


def _meant(target: str, snapshot: Snapshot, uid: int) -> list[Attachment]:
    here = [one for one in snapshot.attachments if one.state == "attached" and not one.exported]
    if target == "all":
        return [one for one in here if uid in (0, one.owner_uid)]
    return [
        one
        for one in here
        if target in (one.path, one.hub, one.local_bus_id, f"{one.remote}/{one.remote_bus_id}")
    ]


def _entries(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in folder.iterdir()]
    except OSError:
        return []


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return ""
