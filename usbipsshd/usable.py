# SPDX-License-Identifier: GPL-3.0-or-later
"""When an attached device is usable: its drivers have bound and its nodes are there."""

from __future__ import annotations

import re

from usbipsshd.device import Device

BIND_SECONDS = 6.0
"""For drivers to bind, once the device may have some."""
NODES_SECONDS = 15.0
"""For a driver that has bound to make its nodes: a disk has none before it spins."""
UDEV_SECONDS = 15.0
"""For drivers and udev's rules, all in all: most callers of D-Bus wait for 25 s."""

_HAS_NODES = frozenset({0x03, 0x08})
_GENERIC = re.compile(r"sg\d+").fullmatch


def patience(approved: Device, now: Device | None) -> float:
    """How long to wait for nodes of ``now``, which is ``approved`` where it is attached.

    Seconds since it may have drivers; 0 when it has the nodes that it will have. A driver that
    is missing there is no failure: who asks must not wait for ever.
    """
    interfaces = now.interfaces if now is not None else ()
    if not interfaces:
        return BIND_SECONDS
    wanted = {i.number for i in approved.interfaces if i.nodes or i.class_ in _HAS_NODES}
    # What was told of the device may lack one: its driver was just being changed there.
    wanted |= {i.number for i in interfaces if i.class_ in _HAS_NODES}
    # A disk's generic node is there first, its own only once the disk was looked at.
    wanted -= {i.number for i in interfaces if any(not _GENERIC(n) for n in i.nodes)}
    if not wanted:
        return 0.0
    bound = {i.number for i in interfaces if i.driver}
    return NODES_SECONDS if wanted & bound else BIND_SECONDS


def nodes_of(device: Device | None) -> list[str]:
    """The device's nodes as paths (``/dev/sda``); network interfaces have none."""
    found = {n for i in device.interfaces for n in i.nodes} if device is not None else set()
    return sorted("/dev/" + n for n in found if not n.startswith("net/"))
