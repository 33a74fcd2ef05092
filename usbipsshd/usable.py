# SPDX-License-Identifier: GPL-3.0-or-later
"""When an attached device is usable: its drivers have bound and its nodes are there."""

from __future__ import annotations

import re

from usbipsshd.device import Device

BIND_SECONDS = 6.0
"""For drivers to bind and nodes to appear, once the device may have drivers."""

_HAS_NODES = frozenset({0x03, 0x08})
_GENERIC = re.compile(r"sg\d+").fullmatch


def is_usable(approved: Device, now: Device | None) -> bool:
    """Whether ``now``, which is ``approved`` where it is attached, has the nodes that it will have.

    A driver that is missing there is no failure: who asks must not wait for ever.
    """
    interfaces = now.interfaces if now is not None else ()
    wanted = {i.number for i in approved.interfaces if i.nodes or i.class_ in _HAS_NODES}
    # A disk's generic node is there first, its own only once the disk was looked at.
    have = {i.number for i in interfaces if any(not _GENERIC(n) for n in i.nodes)}
    # What was told of the device may lack one: its driver was just being changed there.
    here = {i.number for i in interfaces if i.class_ in _HAS_NODES}
    return bool(interfaces) and wanted | here <= have


def nodes_of(device: Device | None) -> list[str]:
    """The device's nodes as paths (``/dev/sda``); network interfaces have none."""
    found = {n for i in device.interfaces for n in i.nodes} if device is not None else set()
    return sorted("/dev/" + n for n in found if not n.startswith("net/"))
