# SPDX-License-Identifier: GPL-3.0-or-later
"""What sort of thing a device is, from what it says of itself."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum
from functools import cache, lru_cache

from usbipssh_tray.text import _
from usbipsshd.client.snapshot import Device


class Kind(Enum):
    """What a person would call it."""

    KEYBOARD = "keyboard"
    MOUSE = "mouse"
    SECURITY_KEY = "security key"
    INPUT = "input device"
    DISK = "disk"
    SERIAL = "serial adapter"
    DEBUG_PROBE = "debug probe"
    CAMERA = "camera"
    PHONE = "phone"
    PRINTER = "printer"
    AUDIO = "audio"
    NETWORK = "network"
    BLUETOOTH = "bluetooth"
    SMARTCARD = "smartcard reader"
    FIRMWARE = "firmware update"
    OTHER = "device"


@cache
def words(kind: Kind) -> str:
    """The kind in words, as the beginning of a line."""
    return {
        Kind.KEYBOARD: _("Keyboard"),
        Kind.MOUSE: _("Mouse"),
        Kind.SECURITY_KEY: _("Security key"),
        Kind.INPUT: _("Input device"),
        Kind.DISK: _("Disk"),
        Kind.SERIAL: _("Serial adapter"),
        Kind.DEBUG_PROBE: _("Debug probe"),
        Kind.CAMERA: _("Camera"),
        Kind.PHONE: _("Phone"),
        Kind.PRINTER: _("Printer"),
        Kind.AUDIO: _("Audio"),
        Kind.NETWORK: _("Network"),
        Kind.BLUETOOTH: _("Bluetooth"),
        Kind.SMARTCARD: _("Smartcard reader"),
        Kind.FIRMWARE: _("Firmware update"),
        Kind.OTHER: _("Device"),
    }[kind]


# By class, subclass and protocol in hex; https://www.usb.org/defined-class-codes, and Android's
# ADB. The first that fits any interface counts: a headset has buttons, and is audio.
_CLASSES = (
    (r"fe0[12].*", Kind.FIRMWARE),
    (r"03..01", Kind.KEYBOARD),
    (r"0e....", Kind.CAMERA),
    (r"01....", Kind.AUDIO),
    (r"07....", Kind.PRINTER),
    (r"ff42..", Kind.PHONE),
    (r"06....", Kind.CAMERA),
    (r"08....", Kind.DISK),
    (r"0b....", Kind.SMARTCARD),
    (r"e00101", Kind.BLUETOOTH),
    (r"e001..|02(06|0d|0e)..|ef0401", Kind.NETWORK),
    (r"0202..", Kind.SERIAL),
    (r"03..02", Kind.MOUSE),
    (r"03....", Kind.INPUT),
)

_PROBES = frozenset(
    {
        (0x0483, 0x3744), (0x0483, 0x3748), (0x0483, 0x374A), (0x0483, 0x374B), (0x0483, 0x374D),
        (0x0483, 0x374E), (0x0483, 0x374F), (0x0483, 0x3752), (0x0483, 0x3753),  # ST-Link
        (0x0D28, 0x0204), (0x1D50, 0x6018), (0x2E8A, 0x000C),  # DAPLink, Black Magic, Pico probe
    }
)  # fmt: skip
_SEGGER = 0x1366
_SERIAL_VENDORS = frozenset({0x0403, 0x067B, 0x10C4, 0x1A86})
"""FTDI, Prolific, Silicon Labs, WCH: their chips have a class of their own."""

_NAMES = (
    (r"cmsis-dap|\bj-link|\bst-?link|debug probe", Kind.DEBUG_PROBE),
    (r"fido|u2f|yubikey|security key|nitrokey|solokey", Kind.SECURITY_KEY),
)
_NAMES_OF_UNKNOWN = (
    (r"uart|serial|rs-?232|rs-?485", Kind.SERIAL),
    (r"\blan\b|ethernet|wlan|wi-?fi|802\.11", Kind.NETWORK),
    (r"printer", Kind.PRINTER),
    (r"scanner|camera|webcam", Kind.CAMERA),
)
_NODES = (
    (r"tty(USB|ACM)\d+", Kind.SERIAL),
    (r"sd[a-z]+|sr\d+|nvme.*", Kind.DISK),
    (r"video\d+", Kind.CAMERA),
    (r"lp\d+", Kind.PRINTER),
)


@lru_cache(maxsize=1024)
def kind(device: Device) -> Kind:
    """The kind of a listed device."""
    name = f"{device.vendor} {device.product}".lower()
    identity = (device.vendor_id, device.product_id)
    found = _first(_NAMES, name)
    if found is not None:
        return found
    if identity in _PROBES or device.vendor_id == _SEGGER:
        return Kind.DEBUG_PROBE
    triples = [interface.triple for interface in device.interfaces]
    if not triples:
        triples = [f"{device.class_:02x}{device.subclass:02x}{device.protocol:02x}"]
    for pattern, each in _CLASSES:
        if any(re.fullmatch(pattern, triple) for triple in triples):
            return each
    nodes = [node for interface in device.interfaces for node in interface.nodes]
    return kind_of_nodes(nodes) or (
        Kind.SERIAL
        if device.vendor_id in _SERIAL_VENDORS
        else _first(_NAMES_OF_UNKNOWN, name) or Kind.OTHER
    )


def kind_of_nodes(nodes: Sequence[str]) -> Kind | None:
    """What its nodes below ``/dev`` tell of a device about which nothing else is known."""
    for pattern, each in _NODES:
        if any(re.fullmatch(pattern, node.rpartition("/")[2]) for node in nodes):
            return each
    return None


def _first(table: tuple[tuple[str, Kind], ...], text: str) -> Kind | None:
    return next((each for pattern, each in table if re.search(pattern, text)), None)
