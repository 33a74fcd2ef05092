# SPDX-License-Identifier: GPL-3.0-or-later
"""Attachments and hubs as they are written down, and read again with suspicion."""

from __future__ import annotations

from collections.abc import Mapping

from usbipsshd.attachment import Attachment, State
from usbipsshd.hub import Hub
from usbipsshd.importer import Imported
from usbipsshd.messages import (
    BadPacket,
    Json,
    Packet,
    device_from_json,
    device_to_json,
    get_bool,
    get_int,
    get_object,
    get_str,
)

_TIME = (1 << 63) - 1


def _pair(values: tuple[str, str]) -> list[Json]:
    return [values[0], values[1]]


def _read_pair(packet: Mapping[str, Json], name: str) -> tuple[str, str]:
    value = packet.get(name)
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(v, str) for v in value):
        raise BadPacket(f"{name}: not two strings")
    return str(value[0]), str(value[1])


def attachment_to_json(attachment: Attachment) -> Packet:
    """What is needed to go on with an attachment later."""
    return {
        "number": attachment.number,
        "remote": attachment.remote,
        "pattern": attachment.pattern,
        "device": device_to_json(attachment.device),
        "owner_uid": attachment.owner_uid,
        "rebind": attachment.rebind,
        "unmount": attachment.unmount,
        "keep": attachment.keep,
        "persist": attachment.persist,
        "hub": attachment.hub,
        "input_allowed": attachment.input_allowed,
        "attached_at": attachment.attached_at,
        "last_error": _pair(attachment.last_error),
    }


def attachment_from_json(packet: Mapping[str, Json]) -> Attachment:
    """An attachment in WAITING; raise :exc:`BadPacket`."""
    return Attachment(
        number=get_int(packet, "number"),
        remote=get_str(packet, "remote", 512),
        pattern=get_str(packet, "pattern", 512),
        device=device_from_json(get_object(packet, "device")),
        owner_uid=get_int(packet, "owner_uid"),
        rebind=get_bool(packet, "rebind"),
        unmount=get_bool(packet, "unmount"),
        keep=get_bool(packet, "keep"),
        persist=get_bool(packet, "persist"),
        hub=get_int(packet, "hub"),
        input_allowed=get_bool(packet, "input_allowed"),
        state=State.WAITING,
        attached_at=get_int(packet, "attached_at", _TIME),
        last_error=_read_pair(packet, "last_error"),
    )


def imported_to_json(imported: Imported) -> Packet:
    """Where an attached device is."""
    return {"port": imported.port, "devid": imported.devid, "local_busid": imported.local_busid}


def imported_from_json(packet: Mapping[str, Json]) -> Imported:
    """Where an attached device was; raise :exc:`BadPacket`."""
    return Imported(
        get_int(packet, "port"), get_int(packet, "devid"), get_str(packet, "local_busid", 64)
    )


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
    }


def hub_from_json(packet: Mapping[str, Json]) -> Hub:
    """A hub that is not yet watching; raise :exc:`BadPacket`."""
    return Hub(
        number=get_int(packet, "number"),
        remote=get_str(packet, "remote", 512),
        pattern=get_str(packet, "pattern", 512),
        owner_uid=get_int(packet, "owner_uid"),
        persist=get_bool(packet, "persist"),
        unmount=get_bool(packet, "unmount"),
        rebind=get_bool(packet, "rebind"),
    )
