# SPDX-License-Identifier: GPL-3.0-or-later
"""What the root process and a session say to each other.

The control socket is AF_UNIX, SOCK_SEQPACKET. One packet is one JSON object in
UTF-8, at most ``MAX_PACKET`` bytes, with at most ``MAX_FDS`` descriptors.

Requests go from the root process to the session and carry ``op`` and ``id``; the
session answers each with any number of ``row`` packets and then exactly one
``ok`` or ``error`` packet with the same id. Requests run side by side. Packets
with ``event`` and no id come from the session unasked.

======== ======================================================== =====================
op       fields                                                   ``ok`` holds
======== ======================================================== =====================
open     host, port, user, alias, jumps, proxy, sudo               {}
host-key host, port, user, alias, jumps, proxy, fingerprint       {"key": "type base64"}
         ("" or the wanted one)
list     busid ("" for all), descriptors                          {} after rows {"device": …}
export   busid, vendor_id, product_id, devid, unmount, rebind:    {}; fd: a connected stream
         what becomes of it when the connection ends by itself    socket
release  busid, rebind                                            {}
unbind   busid                                                    {}
reset    busid, vendor_id, product_id, devid                      {}
statistics busid                                                  {"received", "sent"}: bytes
exports                                                           {"busids": [...]}: held now
port     busid, speed: as vhci numbers it                         {}: the remote could import it
lend     busid, devid, speed; fd: a connected stream socket,      {"busid", "port"}: there
         whose other end this machine's usbip-host has
loans                                                             {"busids": [...]}: lent now
loan     busid                                                    {} after a row {"device": …}:
                                                                  what it is there
take-back busid                                                   {}
loan-statistics busid                                             {"received", "sent"}: bytes
cancel   request (an id)                                          {}
close                                                             {}; then the session ends
======== ======================================================== =====================

The bus ids of ``port`` to ``loan-statistics`` are this machine's, all others the remote's.

``open`` and ``host-key`` come with descriptors: a connected ssh-agent socket, a file in known_hosts
format, and one more agent socket for each of ``jumps``. Those are jump hosts, in order, as objects
with host, port, user and alias; ``alias`` is the name that a host's key is known by, or empty;
``proxy`` is a command for a shell whose standard input and output lead to the first host, or empty
for TCP.

Events: ``{"event": "closed", "error": …}``: the connection is gone, the session ends;
``{"event": "released", "busid": …, "error": …}``: an export ended by itself and
its device was given back (``error`` is null if nothing went wrong with that);
``{"event": "returned", "busid": …}``: a device of this machine left the remote by itself;
``{"event": "changed"}``: something was plugged there.

An error is ``{"code": …, "detail": …}``: a code of the contract and up to
``MAX_DETAIL`` characters, already cleaned, which the root process cleans again.
For HostKeyUnknown and HostKeyMismatch the detail is the offered key's SHA256 fingerprint.
Each side treats what it receives as coming from a stranger.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TypeAlias

from usbipsshd.device import (
    MAX_INTERFACES,
    MAX_NODES,
    BadDevice,
    Device,
    Interface,
    is_busid,
    is_node,
)
from usbipsshd.errors import Code
from usbipsshd.text import clean

Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"
Packet: TypeAlias = dict[str, Json]

MAX_PACKET = 65536
MAX_FDS = 8
MAX_JUMPS = 5
"""Jump hosts on the way to a remote."""
MAX_DETAIL = 200
MAX_DEVICES = 1024
"""Devices in one listing; USB itself allows 127 on a bus."""


class BadPacket(ValueError):
    """The other side sent something that no side of ours sends."""


def encode(packet: Packet) -> bytes:
    """The packet's bytes; raise :exc:`BadPacket` where it would be too long."""
    data = json.dumps(packet, separators=(",", ":")).encode()
    if len(data) > MAX_PACKET:
        raise BadPacket("packet too long")
    return data


def decode(data: bytes) -> Packet:
    """The packet in ``data``; raise :exc:`BadPacket` for anything but one JSON object."""
    try:
        packet = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        raise BadPacket("not JSON") from None
    if not isinstance(packet, dict):
        raise BadPacket("not an object")
    return packet


def get_str(packet: Mapping[str, Json], name: str, limit: int = 256) -> str:
    """A string field of at most ``limit`` characters; raise :exc:`BadPacket`."""
    value = packet.get(name)
    if not isinstance(value, str) or len(value) > limit:
        raise BadPacket(f"{name}: not a string of at most {limit}")
    return value


def get_int(packet: Mapping[str, Json], name: str, top: int = 0xFFFFFFFF) -> int:
    """A whole number from 0 to ``top``; raise :exc:`BadPacket`."""
    value = packet.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= top:
        raise BadPacket(f"{name}: not a number from 0 to {top}")
    return value


def get_bool(packet: Mapping[str, Json], name: str) -> bool:
    """A boolean field; raise :exc:`BadPacket`."""
    value = packet.get(name)
    if not isinstance(value, bool):
        raise BadPacket(f"{name}: not a boolean")
    return value


def get_busid(packet: Mapping[str, Json], name: str = "busid") -> str:
    """A bus id; raise :exc:`BadPacket`."""
    value = get_str(packet, name)
    if not is_busid(value):
        raise BadPacket(f"{name}: not a bus id")
    return value


def get_busids(packet: Mapping[str, Json], name: str = "busids") -> list[str]:
    """A list of bus ids; raise :exc:`BadPacket`."""
    values = get_list(packet, name, MAX_DEVICES)
    return [get_busid({"busid": value}) for value in values]


def get_object(packet: Mapping[str, Json], name: str) -> dict[str, Json]:
    """An object; raise :exc:`BadPacket`."""
    value = packet.get(name)
    if not isinstance(value, dict):
        raise BadPacket(f"{name}: not an object")
    return value


def get_list(packet: Mapping[str, Json], name: str, limit: int) -> list[Json]:
    """A list of at most ``limit`` things of any kind; raise :exc:`BadPacket`."""
    value = packet.get(name)
    if not isinstance(value, list) or len(value) > limit:
        raise BadPacket(f"{name}: not a list of at most {limit}")
    return value


def error_to_json(code: Code, detail: str = "") -> Packet:
    """An ``error`` field."""
    return {"code": code.value, "detail": clean(detail, MAX_DETAIL)}


def error_from_json(packet: Mapping[str, Json]) -> tuple[Code, str]:
    """Code and detail of an ``error`` field; raise :exc:`BadPacket`."""
    try:
        code = Code(get_str(packet, "code"))
    except ValueError as error:
        raise BadPacket(f"code: {error}") from None
    return code, clean(get_str(packet, "detail", MAX_DETAIL * 2), MAX_DETAIL)


def device_to_json(device: Device) -> Packet:
    """A device as it travels; descriptors as hex."""
    packet: Packet = asdict(device)
    packet["descriptors"] = device.descriptors.hex()
    return packet


def _interface_from_json(value: Json) -> Interface:
    if not isinstance(value, dict):
        raise BadPacket("interface: not an object")
    nodes = get_list(value, "nodes", MAX_NODES)
    return Interface(
        number=get_int(value, "number", 0xFF),
        class_=get_int(value, "class_", 0xFF),
        subclass=get_int(value, "subclass", 0xFF),
        protocol=get_int(value, "protocol", 0xFF),
        driver=clean(get_str(value, "driver")),
        label=clean(get_str(value, "label")),
        nodes=tuple(n for n in nodes if isinstance(n, str) and is_node(n)),
    )


def device_from_json(packet: Mapping[str, Json]) -> Device:
    """The device in ``packet``; raise :exc:`BadPacket` unless every field is what it must be."""
    speed = packet.get("speed")
    if not isinstance(speed, (int, float)) or isinstance(speed, bool) or not 0 < speed <= 1e6:
        raise BadPacket("speed: out of range")
    try:
        descriptors = bytes.fromhex(get_str(packet, "descriptors", MAX_PACKET))
        return Device(
            busid=get_busid(packet),
            vendor_id=get_int(packet, "vendor_id", 0xFFFF),
            product_id=get_int(packet, "product_id", 0xFFFF),
            bcd_device=get_int(packet, "bcd_device", 0xFFFF),
            class_=get_int(packet, "class_", 0xFF),
            subclass=get_int(packet, "subclass", 0xFF),
            protocol=get_int(packet, "protocol", 0xFF),
            busnum=get_int(packet, "busnum", 0xFFFF),
            devnum=get_int(packet, "devnum", 0xFFFF),
            speed=float(speed),
            vendor=clean(get_str(packet, "vendor")),
            product=clean(get_str(packet, "product")),
            serial=clean(get_str(packet, "serial")),
            driver=clean(get_str(packet, "driver")),
            # Records of an earlier version do not have it.
            configuration=get_int({"configuration": 0, **packet}, "configuration", 0xFF),
            usbip_status=get_int(packet, "usbip_status", 3),
            virtual=get_bool(packet, "virtual"),
            interfaces=tuple(
                _interface_from_json(i) for i in get_list(packet, "interfaces", MAX_INTERFACES)
            ),
            descriptors=descriptors,
        )
    except (BadDevice, ValueError) as error:
        raise BadPacket(str(error)) from None
