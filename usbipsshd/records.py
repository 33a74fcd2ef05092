# SPDX-License-Identifier: GPL-3.0-or-later
"""Attachments and hubs as they are written down, and read again with suspicion."""

from __future__ import annotations

from collections.abc import Mapping

from usbipsshd.attachment import Attachment, Direction, State
from usbipsshd.device import MAX_INTERFACES, MAX_NODES, is_busid
from usbipsshd.doing import Lent, Where
from usbipsshd.hub import Hub, Plug
from usbipsshd.importer import Imported
from usbipsshd.messages import (
    MAX_DEVICES,
    BadPacket,
    Json,
    Packet,
    device_from_json,
    device_to_json,
    get_bool,
    get_busid,
    get_int,
    get_list,
    get_object,
    get_str,
)
from usbipsshd.text import clean

_TIME = (1 << 63) - 1
_TOP_NUMBER = 999_999_999
"""As many digits as an object path may have."""
_MAX_MESSAGE = 1024


def _pair(values: tuple[str, str]) -> list[Json]:
    return [values[0], values[1]]


def _read_pair(packet: Mapping[str, Json], name: str) -> tuple[str, str]:
    value = packet.get(name)
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(v, str) for v in value):
        raise BadPacket(f"{name}: not two strings")
    return clean(str(value[0])), clean(str(value[1]), _MAX_MESSAGE)


def _number(packet: Mapping[str, Json]) -> int:
    number = get_int(packet, "number", _TOP_NUMBER)
    if not number:
        raise BadPacket("number: not one of ours")
    return number


def _private(packet: Mapping[str, Json]) -> int:
    # Records of an earlier version do not have it.
    return get_int({"private": 0, **packet}, "private", _TOP_NUMBER)


def _text(packet: Mapping[str, Json], name: str) -> str:
    """What was a caller's argument once, so nothing that cannot be printed is in it."""
    text = get_str(packet, name, 512)
    if not text.isprintable():
        raise BadPacket(f"{name}: not printable")
    return text


def _read_plugs(packet: Mapping[str, Json], name: str) -> list[Plug]:
    values = packet.get(name)
    if not isinstance(values, list) or len(values) > MAX_DEVICES:
        raise BadPacket(f"{name}: not a list of devices")
    found: list[Plug] = []
    for value in values:
        if not isinstance(value, list) or len(value) != 2:
            raise BadPacket(f"{name}: not a list of devices")
        plug: Packet = {"busid": value[0], "devnum": value[1]}
        found.append((get_busid(plug), get_int(plug, "devnum", 0xFFFF)))
    return found


def attachment_to_json(attachment: Attachment) -> Packet:
    """What is needed to go on with an attachment later."""
    return {
        "number": attachment.number,
        "remote": attachment.remote,
        "direction": attachment.direction.value,
        "pattern": attachment.pattern,
        "device": device_to_json(attachment.device),
        "owner_uid": attachment.owner_uid,
        "rebind": attachment.rebind,
        "unmount": attachment.unmount,
        "keep": attachment.keep,
        "persist": attachment.persist,
        "approved": None if attachment.approved is None else device_to_json(attachment.approved),
        "hub": attachment.hub,
        "private": attachment.private,
        "bound_to": attachment.bound_to,
        "input_allowed": attachment.input_allowed,
        "attached_at": attachment.attached_at,
        "last_error": _pair(attachment.last_error),
    }


def attachment_from_json(packet: Mapping[str, Json]) -> Attachment:
    """An attachment in WAITING; raise :exc:`BadPacket`."""
    try:
        # Records of an earlier version do not have it.
        direction = Direction(get_str({"direction": "import", **packet}, "direction"))
    except ValueError:
        raise BadPacket("direction: unknown") from None
    device = device_from_json(get_object(packet, "device"))
    return Attachment(
        number=_number(packet),
        remote=_text(packet, "remote"),
        pattern=_text(packet, "pattern"),
        device=device,
        owner_uid=get_int(packet, "owner_uid"),
        rebind=get_bool(packet, "rebind"),
        unmount=get_bool(packet, "unmount"),
        keep=get_bool(packet, "keep"),
        persist=get_bool(packet, "persist"),
        approved=None
        if packet.get("approved") is None
        else device_from_json(get_object(packet, "approved")),
        hub=get_int(packet, "hub", _TOP_NUMBER),
        private=_private(packet),
        bound_to=_text(packet, "bound_to"),
        input_allowed=get_bool(packet, "input_allowed"),
        direction=direction,
        state=State.WAITING,
        local_busid=device.busid if direction is Direction.EXPORT else "",
        attached_at=get_int(packet, "attached_at", _TIME),
        last_error=_read_pair(packet, "last_error"),
    )


def where_to_json(where: Where) -> Packet:
    """Where an attached device is, to be added to its attachment's record."""
    if isinstance(where, Imported):
        return {
            "imported": {
                "port": where.port,
                "devid": where.devid,
                "local_busid": where.local_busid,
            }
        }
    nodes: list[Json] = [*where.nodes]
    return {
        "lent": {"busid": where.busid, "there": where.there, "port": where.port, "nodes": nodes}
    }


def where_from_json(record: Mapping[str, Json]) -> Where | None:
    """Where an attached device was, by its attachment's record; raise :exc:`BadPacket`."""
    if isinstance(record.get("imported"), dict):
        packet = get_object(record, "imported")
        busid = get_str(packet, "local_busid")
        if busid and not is_busid(busid):
            raise BadPacket("local_busid: not a bus id")
        return Imported(get_int(packet, "port"), get_int(packet, "devid"), busid)
    if isinstance(record.get("lent"), dict):
        packet = get_object(record, "lent")
        nodes = [
            n for n in get_list(packet, "nodes", MAX_NODES * MAX_INTERFACES) if isinstance(n, str)
        ]
        return Lent(
            get_busid(packet),
            get_busid(packet, "there"),
            get_int(packet, "port"),
            tuple(clean(node, 64) for node in nodes),
        )
    return None


def hub_to_json(hub: Hub) -> Packet:
    """What is needed to go on with a hub later."""
    return {
        "number": hub.number,
        "remote": hub.remote,
        "pattern": hub.pattern,
        "owner_uid": hub.owner_uid,
        "persist": hub.persist,
        "unmount": hub.unmount,
        "rebind": hub.rebind,
        "private": hub.private,
        "bound_to": hub.bound_to,
        "aside": [[busid, devnum] for busid, devnum in hub.aside],
    }


def hub_from_json(packet: Mapping[str, Json]) -> Hub:
    """A hub that is not yet watching; raise :exc:`BadPacket`."""
    return Hub(
        number=_number(packet),
        remote=_text(packet, "remote"),
        pattern=_text(packet, "pattern"),
        owner_uid=get_int(packet, "owner_uid"),
        persist=get_bool(packet, "persist"),
        unmount=get_bool(packet, "unmount"),
        rebind=get_bool(packet, "rebind"),
        private=_private(packet),
        # Records of an earlier version do not have it.
        bound_to=_text({"bound_to": "", **packet}, "bound_to"),
        aside=_read_plugs(packet, "aside"),
    )
