# SPDX-License-Identifier: GPL-3.0-or-later
"""Descriptions of made-up USB devices, some of them ready for use."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

_BCD_USB = {"1.5": 0x0110, "12": 0x0110, "480": 0x0200, "5000": 0x0300, "10000": 0x0310}


@dataclass(frozen=True)
class FakeInterface:
    """One interface.

    In ``nodes`` a ``#`` stands for the next free number and a ``?`` for the next free letter
    on the machine where the device appears: ``input/event#``, ``sd?``, ``net/wlan#``.
    """

    class_: int
    subclass: int
    protocol: int
    driver: str = ""
    label: str = ""
    nodes: tuple[str, ...] = ()
    alternates: tuple[tuple[int, int, int], ...] = ()
    """Further alternate settings, which only the descriptors tell of."""


@dataclass(frozen=True)
class FakeDevice:
    """What a device says it is. ``descriptors``, if given, replaces what follows from the rest."""

    vendor_id: int
    product_id: int
    manufacturer: str = ""
    product: str = ""
    serial: str = ""
    speed: str = "480"
    bcd_device: int = 0x0100
    class_: int = 0
    subclass: int = 0
    protocol: int = 0
    interfaces: tuple[FakeInterface, ...] = ()
    raw_descriptors: str = ""
    """In hex."""
    attributes: dict[str, str] = field(default_factory=dict)
    """Files of the device's folder, in place of what follows from the rest or added to it."""
    dev: dict[str, str] = field(default_factory=dict)
    """``major:minor`` of nodes by name pattern, where a test needs certain ones."""

    @property
    def descriptors(self) -> bytes:
        """What sysfs has in ``descriptors``."""
        return bytes.fromhex(self.raw_descriptors) or make_descriptors(self)

    def but(self, **changes: Any) -> FakeDevice:
        """The same with some fields changed."""
        return replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def device_from_json(values: dict[str, Any]) -> FakeDevice:
    """What :meth:`FakeDevice.to_json` made."""
    interfaces = tuple(
        FakeInterface(
            **{
                **i,
                "nodes": tuple(i["nodes"]),
                "alternates": tuple((a, b, c) for a, b, c in i["alternates"]),
            }
        )
        for i in values["interfaces"]
    )
    return FakeDevice(**{**values, "interfaces": interfaces})


def _u16(value: int) -> bytes:
    return value.to_bytes(2, "little")


def _interface(number: int, alternate: int, triple: tuple[int, int, int], packet: int) -> bytes:
    class_, subclass, protocol = triple
    hid = bytes((9, 0x21, 0x11, 0x01, 0, 1, 0x22, 65, 0)) if class_ == 3 else b""
    address = 0x81 + number
    kind = 3 if class_ in (3, 9) else 2
    endpoint = bytes((7, 5, address, kind)) + _u16(packet) + bytes((10 if kind == 3 else 0,))
    head = bytes((9, 4, number, alternate, 1, class_, subclass, protocol, 0))
    return head + hid + endpoint


def make_descriptors(device: FakeDevice) -> bytes:
    """A device descriptor and one configuration, well formed (USB 2.0, section 9.6)."""
    packet = 8 if device.speed in ("1.5", "12") else 64 if device.speed == "480" else 1024
    body = b""
    for number, interface in enumerate(device.interfaces):
        triples = [(interface.class_, interface.subclass, interface.protocol)]
        triples += interface.alternates
        for alternate, triple in enumerate(triples):
            body += _interface(number, alternate, triple, min(packet, 512))
    count = len(device.interfaces)
    configuration = bytes((9, 2)) + _u16(9 + len(body)) + bytes((count, 1, 0, 0x80, 50))
    strings = [int(bool(s)) for s in (device.manufacturer, device.product, device.serial)]
    head = (
        bytes((18, 1))
        + _u16(_BCD_USB.get(device.speed, 0x0200))
        + bytes((device.class_, device.subclass, device.protocol))
        + bytes((9 if packet == 1024 else packet,))
        + _u16(device.vendor_id)
        + _u16(device.product_id)
        + _u16(device.bcd_device)
        + bytes((strings[0] * 1, strings[1] * 2, strings[2] * 3, 1))
    )
    return head + configuration + body


KEYBOARD = FakeDevice(
    0x046D, 0xC31C, "Logitech", "USB Keyboard", speed="1.5", bcd_device=0x6402,
    interfaces=(
        FakeInterface(3, 1, 1, "usbhid", nodes=("input/event#", "hidraw#")),
        FakeInterface(3, 0, 0, "usbhid", nodes=("input/event#", "input/event#", "hidraw#")),
    ),
)  # fmt: skip

STICK = FakeDevice(
    0x0781, 0x5581, "SanDisk", "Ultra", "4C531001550718", speed="5000",
    interfaces=(FakeInterface(8, 6, 0x50, "usb-storage", nodes=("sd?", "sd?1", "bsg/0:0:0:#")),),
)  # fmt: skip

SERIAL_ADAPTER = FakeDevice(
    0x0403, 0x6001, "FTDI", "FT232R USB UART", "A50285BI", speed="12", bcd_device=0x0600,
    interfaces=(FakeInterface(255, 255, 255, "usbserial", "FT232R USB UART", ("ttyUSB#",)),),
)  # fmt: skip

HUB = FakeDevice(
    0x05E3, 0x0608, "", "USB2.0 Hub", speed="480", class_=9, protocol=1,
    interfaces=(FakeInterface(9, 0, 0, "hub"),),
)  # fmt: skip

BLUETOOTH = FakeDevice(
    0x0A12, 0x0001, "", "CSR8510 A10", speed="12", bcd_device=0x8891, class_=0xE0,
    subclass=1, protocol=1,
    interfaces=(
        FakeInterface(0xE0, 1, 1, "btusb"),
        FakeInterface(0xE0, 1, 1, "btusb", alternates=((0xE0, 1, 1),) * 5),
    ),
)  # fmt: skip

NETWORK = FakeDevice(
    0x0BDA, 0x8153, "Realtek", "USB 10/100/1000 LAN", "000001", speed="5000",
    interfaces=(FakeInterface(255, 255, 0, "r8152", nodes=("net/eth#",)),),
)  # fmt: skip
