# SPDX-License-Identifier: GPL-3.0-or-later
"""Device nodes below an interface: their numbers, and the folders where sysfs shows them."""

from __future__ import annotations

import itertools
import string
from collections.abc import Iterator
from dataclasses import dataclass

from fakekernel.devices import FakeDevice, FakeInterface
from fakekernel.tree import Folder


@dataclass(frozen=True)
class Node:
    """A device node, or a network interface."""

    name: str
    path: str
    """Below the interface's folder."""
    subsystem: str


class NodeNumbers:
    """Which names are taken on a machine."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def take(self, pattern: str, letters: dict[str, str]) -> str:
        """A free name; ``letters`` holds what ``?`` already stands for in this interface."""
        if "?" in pattern:
            prefix = pattern.partition("?")[0]
            if prefix in letters:
                name = pattern.replace("?", letters[prefix])
                self._taken.add(name)
                return name
            for letter in string.ascii_lowercase:
                name = pattern.replace("?", letter)
                if name not in self._taken:
                    letters[prefix] = letter
                    self._taken.add(name)
                    return name
        if "#" in pattern:
            for number in itertools.count():
                name = pattern.replace("#", str(number))
                if name not in self._taken:
                    self._taken.add(name)
                    return name
        self._taken.add(pattern)
        return pattern

    def release(self, name: str) -> None:
        """Make a name free again."""
        self._taken.discard(name)


def _place(name: str, device: FakeDevice) -> tuple[str, str]:
    """Where a node's folder is and its subsystem."""
    hid = f"0003:{device.vendor_id:04X}:{device.product_id:04X}.0001"
    scsi = "host0/target0:0:0/0:0:0:0"
    base = name.rpartition("/")[2]
    disk = name.rstrip(string.digits)
    partition = "" if name == disk else f"/{name}"
    number = base.lstrip(string.ascii_lowercase)
    places = (
        ("input/", f"{hid}/input/input{number}/{base}", "input"),
        ("hidraw", f"{hid}/hidraw/{name}", "hidraw"),
        ("bsg/", f"{scsi}/bsg/{base}", "bsg"),
        ("sd", f"{scsi}/block/{disk}{partition}", "block"),
        ("tty", f"{name}/tty/{name}", "tty"),
        ("net/", f"net/{base}", "net"),
        ("", f"misc/{base}", "misc"),
    )
    return next((path, kind) for prefix, path, kind in places if name.startswith(prefix))


def build_nodes(
    folder: Folder, device: FakeDevice, interface: FakeInterface, numbers: NodeNumbers
) -> Iterator[Node]:
    """Make the folders of an interface's nodes."""
    letters: dict[str, str] = {}
    for minor, pattern in enumerate(interface.nodes):
        name = numbers.take(pattern, letters)
        path, subsystem = _place(name, device)
        place = folder.folder(path)
        if subsystem == "net":
            place.attribute("ifindex", "7")
            place.attribute("uevent", f"INTERFACE={name[4:]}\nIFINDEX=7")
        else:
            major = {"block": 8, "input": 13, "tty": 188}.get(subsystem, 250)
            dev = device.dev.get(pattern, f"{major}:{minor}")
            place.attribute("dev", dev)
            major_text, _, minor_text = dev.partition(":")
            place.attribute("uevent", f"MAJOR={major_text}\nMINOR={minor_text}\nDEVNAME={name}")
        if subsystem == "block":
            place.folder("holders")
        if subsystem == "input":
            folder.folder(path.rpartition("/")[0]).attribute(
                "uevent",
                f'PRODUCT=3/{device.vendor_id:x}/{device.product_id:x}/110\nNAME="{device.product}"',
            )
        yield Node(name, path, subsystem)
