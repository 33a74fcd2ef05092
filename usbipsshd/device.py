# SPDX-License-Identifier: GPL-3.0-or-later
"""A USB device as sysfs tells of it: plain values, made from text and checked.

Used for this machine's devices and for a remote's, so nothing here believes
what it is given: numbers are range-checked and text is cleaned. Attribute names
and formats: Documentation/ABI/stable/sysfs-bus-usb and drivers/usb/core/sysfs.c.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from usbipsshd.text import clean

MAX_INTERFACES = 64
MAX_NODES = 64
HUB_CLASS = 0x09
USBIP_HOST = "usbip-host"

_BUSID = re.compile(r"[1-9][0-9]{0,3}-[1-9][0-9]{0,2}(\.[1-9][0-9]{0,2}){0,6}", re.ASCII)
_NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,63}", re.ASCII)
_DRIVER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_. -]{0,63}", re.ASCII)


class BadDevice(ValueError):
    """The text does not describe a USB device."""


def is_busid(text: str) -> bool:
    """Whether ``text`` is a bus id such as ``1-1.3`` (USB allows at most seven tiers)."""
    return _BUSID.fullmatch(text) is not None


def is_node(text: str) -> bool:
    """Whether ``text`` can be a device node below /dev, or a network interface (``net/eth0``)."""
    return _NODE.fullmatch(text) is not None and ".." not in text


def busid_key(busid: str) -> tuple[int, ...]:
    """A sort key that puts bus ids in tree order: 1-2 before 1-10, 1-1 before 1-1.3."""
    return tuple(int(n) for n in re.split(r"[-.]", busid))


@dataclass(frozen=True, slots=True)
class Interface:
    """One interface of a device's active configuration, in its current alternate setting."""

    number: int
    class_: int
    subclass: int
    protocol: int
    driver: str = ""
    label: str = ""
    """The interface's own string descriptor, cleaned."""
    nodes: tuple[str, ...] = ()
    """Device nodes below /dev, as the kernel names them (``input/event5``, ``sda``), sorted;
    network interfaces as ``net/eth0``."""

    @property
    def triple(self) -> tuple[int, int, int]:
        """Class, subclass and protocol."""
        return (self.class_, self.subclass, self.protocol)


@dataclass(frozen=True, slots=True)
class Device:
    """One USB device, without regard to which machine has it."""

    busid: str
    vendor_id: int
    product_id: int
    bcd_device: int
    class_: int
    subclass: int
    protocol: int
    busnum: int
    devnum: int
    speed: float
    """In Mbit/s."""
    vendor: str = ""
    product: str = ""
    serial: str = ""
    driver: str = ""
    configuration: int = 0
    """The value of the active configuration; 0 if there is none, or it is not known."""
    usbip_status: int = 0
    """1 available, 2 in use, 3 error; 0 when usbip-host has not got it
    (drivers/usb/usbip/usbip_common.h, enum usbip_device_status)."""
    virtual: bool = False
    """Whether it sits on a vhci bus, so is itself somebody else's device."""
    interfaces: tuple[Interface, ...] = ()
    descriptors: bytes = field(default=b"", repr=False)
    """Device descriptor and every configuration, raw; empty where it was not asked for."""

    @property
    def hub(self) -> bool:
        """Whether it is a hub; hubs are listed and never attached."""
        return self.class_ == HUB_CLASS

    @property
    def exported(self) -> bool:
        """Whether usbip-host holds it."""
        return self.driver == USBIP_HOST

    @property
    def devid(self) -> int:
        """What vhci and usbip_host call it: ``busnum << 16 | devnum``."""
        return self.busnum << 16 | self.devnum


def _number(attrs: Mapping[str, str], name: str, base: int, top: int) -> int:
    text = attrs.get(name, "").strip()
    if not re.fullmatch(r"[0-9A-Fa-f]{1,8}", text, re.ASCII):
        raise BadDevice(f"{name} is not a number")
    try:
        value = int(text, base)
    except ValueError:
        raise BadDevice(f"{name} is not a number") from None
    if value > top:
        raise BadDevice(f"{name} is out of range")
    return value


def _speed(attrs: Mapping[str, str]) -> float:
    try:
        value = float(attrs.get("speed", "").strip())
    except ValueError:
        raise BadDevice("speed is not a number") from None
    # An unknown speed is listed as it is; vhci refuses it at attach.
    if not 0 < value <= 1_000_000:
        raise BadDevice("speed is out of range")
    return value


def _driver(attrs: Mapping[str, str]) -> str:
    name = clean(attrs.get("driver", ""), 64)
    return name if _DRIVER.fullmatch(name) else ""


def interface_from_attributes(attrs: Mapping[str, str], nodes: Sequence[str] = ()) -> Interface:
    """Make an :class:`Interface` from sysfs attributes; raise :exc:`BadDevice`."""
    return Interface(
        number=_number(attrs, "bInterfaceNumber", 16, 0xFF),
        class_=_number(attrs, "bInterfaceClass", 16, 0xFF),
        subclass=_number(attrs, "bInterfaceSubClass", 16, 0xFF),
        protocol=_number(attrs, "bInterfaceProtocol", 16, 0xFF),
        driver=_driver(attrs),
        label=clean(attrs.get("interface", "")),
        nodes=tuple(sorted({n for n in nodes[:MAX_NODES] if is_node(n)})),
    )


def device_from_attributes(
    busid: str,
    attrs: Mapping[str, str],
    interfaces: Sequence[Interface] = (),
    descriptors: bytes = b"",
) -> Device:
    """Make a :class:`Device` from sysfs attributes; raise :exc:`BadDevice`.

    ``attrs`` holds the files of the device's folder by name, the name of its
    driver as ``driver`` and, as ``bus_serial``, the ``serial`` of its bus's root hub, which
    is ``vhci_hcd.N`` on a virtual bus (drivers/usb/core/hcd.c, rh_string).
    """
    if not is_busid(busid):
        raise BadDevice("not a bus id")
    if len(interfaces) > MAX_INTERFACES:
        raise BadDevice("too many interfaces")
    status = attrs.get("usbip_status", "").strip()
    configuration = attrs.get("bConfigurationValue", "").strip()
    return Device(
        busid=busid,
        vendor_id=_number(attrs, "idVendor", 16, 0xFFFF),
        product_id=_number(attrs, "idProduct", 16, 0xFFFF),
        bcd_device=_number(attrs, "bcdDevice", 16, 0xFFFF),
        class_=_number(attrs, "bDeviceClass", 16, 0xFF),
        subclass=_number(attrs, "bDeviceSubClass", 16, 0xFF),
        protocol=_number(attrs, "bDeviceProtocol", 16, 0xFF),
        busnum=_number(attrs, "busnum", 10, 0xFFFF),
        devnum=_number(attrs, "devnum", 10, 0xFFFF),
        speed=_speed(attrs),
        vendor=clean(attrs.get("manufacturer", "")),
        product=clean(attrs.get("product", "")),
        serial=clean(attrs.get("serial", "")),
        driver=_driver(attrs),
        # Empty while the device is not configured.
        configuration=_number(attrs, "bConfigurationValue", 10, 0xFF) if configuration else 0,
        usbip_status=int(status) if status in {"1", "2", "3"} else 0,
        virtual=attrs.get("bus_serial", "").startswith("vhci_hcd"),
        interfaces=tuple(sorted(interfaces, key=lambda i: i.number)),
        descriptors=descriptors,
    )
