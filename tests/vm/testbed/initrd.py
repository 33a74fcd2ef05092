# SPDX-License-Identifier: GPL-3.0-or-later
"""A small initrd: busybox, one script and the modules on the way to the disk.

Debian's own initrd carries much more and takes longer to load than the rest of the boot.
The archive format is "newc", described in the kernel's
Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from pathlib import Path

WANTED = ("virtio_pci", "virtio_blk", "virtio_net", "crc32c_generic", "ext4")


def _entry(inode: int, name: str, mode: int, data: bytes, device: tuple[int, int]) -> bytes:
    encoded = name.encode() + b"\0"
    numbers = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0)
    head = b"070701" + b"".join(b"%08X" % number for number in numbers) + encoded
    head += b"\0" * (-len(head) % 4)
    return head + data + b"\0" * (-len(data) % 4)


def dependencies(modules: Path) -> dict[str, list[str]]:
    """From modules.dep: the module's path -> what has to be loaded first, innermost last."""
    table = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, needed = line.partition(":")
        table[path] = needed.split()
    return table


def module_name(path: str) -> str:
    """The name by which the kernel knows the module in this file."""
    return path.rsplit("/", 1)[-1].split(".", 1)[0].replace("-", "_")


def loading_order(modules: Path, wanted: Iterable[str]) -> list[str]:
    """Paths of the wanted modules and of all they need, in the order to load them."""
    table = dependencies(modules)
    paths = {module_name(path): path for path in table}
    order: list[str] = []
    for name in wanted:
        if name not in paths:
            continue  # built into this kernel
        path = paths[name]
        for each in (*reversed(table[path]), path):
            if each not in order:
                order.append(each)
    return order


def build(target: Path, *, init: Path, busybox: Path, modules: Path) -> None:
    """Write the initrd for the kernel whose modules are in `modules`."""
    order = loading_order(modules, WANTED)
    names = [path.rsplit("/", 1)[-1] for path in order]
    folder = stat.S_IFDIR | 0o755
    entries: list[tuple[str, int, bytes, tuple[int, int]]] = [
        ("bin", folder, b"", (0, 0)),
        ("dev", folder, b"", (0, 0)),
        ("dev/console", stat.S_IFCHR | 0o600, b"", (5, 1)),
        ("modules", folder, b"", (0, 0)),
        ("bin/busybox", stat.S_IFREG | 0o755, busybox.read_bytes(), (0, 0)),
        ("init", stat.S_IFREG | 0o755, init.read_bytes(), (0, 0)),
        ("modules/order", stat.S_IFREG | 0o644, "".join(f"{n}\n" for n in names).encode(), (0, 0)),
    ]
    for name, path in zip(names, order, strict=True):
        data = (modules / path).read_bytes()
        entries.append((f"modules/{name}", stat.S_IFREG | 0o644, data, (0, 0)))
    entries.append(("TRAILER!!!", 0, b"", (0, 0)))
    with target.open("wb") as file:
        for inode, (name, mode, data, device) in enumerate(entries, start=1):
            file.write(_entry(inode, name, mode, data, device))
