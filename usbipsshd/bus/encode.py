# SPDX-License-Identifier: GPL-3.0-or-later
"""Devices, attachments and remotes as the D-Bus contract has them."""

from __future__ import annotations

import re

from usbipsshd.attachment import Attachment, State
from usbipsshd.bus.values import Variant
from usbipsshd.device import Device, Interface
from usbipsshd.hub import Hub
from usbipsshd.link import LinkStatus
from usbipsshd.preflight import Finding
from usbipsshd.remotes import Remote
from usbipsshd.service import Listed

ROOT = "/org/usbipssh1"
ATTACHMENTS = f"{ROOT}/attachment/"
HUBS = f"{ROOT}/hub/"
REMOTES = f"{ROOT}/remote/"
NO_OBJECT = "/"

_NAMES = {
    (0x03, 0x00, 0x01): "kbd",
    (0x03, 0x00, 0x02): "mouse",
    (0x03, 0x01, 0x01): "kbd",
    (0x03, 0x01, 0x02): "mouse",
    (0xE0, 0x01, 0x01): "bluetooth",
    (0xE0, 0x01, 0x03): "RNDIS",
    (0x02, 0x02): "modem",
    (0x02, 0x06): "ethernet",
    (0x02, 0x0D): "ethernet",
    (0x02, 0x0E): "MBIM",
    (0x01,): "audio",
    (0x02,): "COM",
    (0x03,): "HID",
    (0x06,): "image",
    (0x07,): "printer",
    (0x08,): "UMASS",
    (0x09,): "hub",
    (0x0A,): "CDC",
    (0x0B,): "smartcard",
    (0x0E,): "video",
    (0xE0,): "wireless",
    (0xFE, 0x01): "DFU",
    (0xFF,): "vendor",
}
"""Short names by class, subclass and protocol; the longest that fits counts.
https://www.usb.org/defined-class-codes"""


def interface_name(interface: Interface) -> str:
    """A short name for what an interface is (``kbd``, ``UMASS``, …); empty for an unknown class."""
    triple = interface.triple
    return _NAMES.get(triple) or _NAMES.get(triple[:2]) or _NAMES.get(triple[:1]) or ""


def attachment_path(number: int) -> str:
    """The object path of an attachment."""
    return f"{ATTACHMENTS}{number}"


def attachment_number(path: str) -> int:
    """The number in an attachment's object path; 0 if it is no such path."""
    return _number_in(path, ATTACHMENTS)


def _number_in(path: str, start: str) -> int:
    match = re.fullmatch(re.escape(start) + r"([1-9][0-9]{0,8})", path, re.ASCII)
    return int(match[1]) if match else 0


def hub_path(number: int) -> str:
    """The object path of a hub."""
    return f"{HUBS}{number}"


def hub_number(path: str) -> int:
    """The number in a hub's object path; 0 if it is no such path."""
    return _number_in(path, HUBS)


def remote_path(name: str) -> str:
    """The object path of a remote: what a path cannot hold becomes ``_`` and two hex digits,
    as sd_bus_path_encode(3) does.
    """
    first = True
    out = ""
    for byte in name.encode():
        char = chr(byte)
        plain = char.isascii() and (char.isalpha() or (char.isdigit() and not first))
        out += char if plain else f"_{byte:02x}"
        first = False
    return REMOTES + (out or "_")


def _interface(interface: Interface) -> dict[str, Variant]:
    return {
        "number": Variant("y", interface.number),
        "class": Variant("y", interface.class_),
        "subclass": Variant("y", interface.subclass),
        "protocol": Variant("y", interface.protocol),
        "driver": Variant("s", interface.driver),
        "name": Variant("s", interface_name(interface)),
        "nodes": Variant("as", [n.rpartition("/")[2] for n in interface.nodes]),
    }


def listed_device(listed: Listed) -> dict[str, Variant]:
    """A device's dictionary of ListRemote and ListLocal."""
    device: Device = listed.device
    values = {
        "busid": Variant("s", device.busid),
        "vendor-id": Variant("q", device.vendor_id),
        "product-id": Variant("q", device.product_id),
        "vendor": Variant("s", device.vendor),
        "product": Variant("s", device.product),
        "serial": Variant("s", device.serial),
        "speed": Variant("d", device.speed),
        "class": Variant("y", device.class_),
        "subclass": Variant("y", device.subclass),
        "protocol": Variant("y", device.protocol),
        "busnum": Variant("u", device.busnum),
        "devnum": Variant("u", device.devnum),
        "driver": Variant("s", device.driver),
        "configuration": Variant("y", device.configuration),
        "hub": Variant("b", device.hub),
        "state": Variant("s", listed.state),
        "interfaces": Variant("aa{sv}", [_interface(i) for i in device.interfaces]),
    }
    if listed.attachment:
        values["attachment"] = Variant("o", attachment_path(listed.attachment))
    return values


def finding_entry(finding: Finding) -> dict[str, Variant]:
    """A finding's dictionary of Preflight."""
    values = {
        "id": finding.id,
        "machine": finding.machine,
        "ok": finding.ok.value,
        "summary": finding.summary,
        "remedy": finding.remedy,
    }
    return {name: Variant("s", value) for name, value in values.items()}


def device_name(device: Device) -> str:
    """What a person calls a device."""
    name = " ".join(n for n in (device.vendor, device.product) if n)
    return name or f"{device.vendor_id:04x}:{device.product_id:04x}"


def attachment_properties(attachment: Attachment) -> dict[str, object]:
    """The properties of ``org.usbipssh1.Attachment``."""
    device = attachment.device
    return {
        "Remote": attachment.remote,
        "Pattern": attachment.pattern,
        "Direction": attachment.direction.value,
        "RemoteBusId": attachment.remote_busid,
        "VendorId": device.vendor_id,
        "ProductId": device.product_id,
        "Name": device_name(device),
        "Serial": device.serial,
        "Speed": device.speed,
        "State": attachment.state.value,
        "LocalBusId": attachment.local_busid,
        "Port": attachment.port,
        "DeviceNodes": attachment.device_nodes,
        "Keep": attachment.keep,
        "Persist": attachment.persist,
        "OwnerUid": attachment.owner_uid,
        "Hub": hub_path(attachment.hub) if attachment.hub else NO_OBJECT,
        "AttachedAt": attachment.attached_at if attachment.state is State.ATTACHED else 0,
        "RetryAt": attachment.retry_at,
        "LastError": attachment.last_error,
    }


def hub_properties(hub: Hub) -> dict[str, object]:
    """The properties of ``org.usbipssh1.Hub``."""
    return {
        "Remote": hub.remote,
        "Pattern": hub.pattern,
        "State": hub.state.value,
        "Attachments": [attachment_path(n) for n in hub.attachments],
        "Persist": hub.persist,
        "OwnerUid": hub.owner_uid,
        "RetryAt": hub.retry_at,
        "LastError": hub.last_error,
    }


def remote_properties(remote: Remote, status: LinkStatus) -> dict[str, object]:
    """The properties of ``org.usbipssh1.Remote``."""
    return {
        "Name": remote.name,
        "Label": remote.label,
        "State": status.state.value,
        "OfferedHostKey": status.offered_host_key,
        "LastError": status.last_error,
    }
