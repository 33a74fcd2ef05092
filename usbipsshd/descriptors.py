# SPDX-License-Identifier: GPL-3.0-or-later
"""What raw USB descriptors say a device is, and what it would be allowed to do.

The format is the USB 2.0 specification's, section 9.6, as the ``descriptors``
file in sysfs holds it: the device descriptor, then every configuration in full.
"""

from __future__ import annotations

from dataclasses import dataclass

from usbipsshd.device import HUB_CLASS

DEVICE = 1
CONFIGURATION = 2
INTERFACE = 4

MAX_SIZE = 65536

Triple = tuple[int, int, int]


class BadDescriptors(ValueError):
    """The bytes are no USB descriptors."""


@dataclass(frozen=True, slots=True)
class Summary:
    """The parts of a device's descriptors that decide which drivers can bind to it."""

    vendor_id: int
    product_id: int
    bcd_device: int
    device: Triple
    interfaces: frozenset[Triple]
    """Of every configuration and alternate setting, not only the active one."""
    numbered: frozenset[tuple[int, Triple]]
    """The same, each with the interface's number."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Every distinct class/subclass/protocol in hex (``030101``), sorted."""
        own = {self.device} - {(0, 0, 0)}
        return tuple(sorted("%02x%02x%02x" % t for t in self.interfaces | own))

    @property
    def modaliases(self) -> tuple[str, ...]:
        """What the kernel asks for to find a driver, for each interface: as in a ``modalias`` file
        (drivers/usb/core/sysfs.c), sorted."""
        own = "usb:v%04Xp%04Xd%04X" % (self.vendor_id, self.product_id, self.bcd_device)
        own += "dc%02Xdsc%02Xdp%02X" % self.device
        return tuple(
            own + "ic%02Xisc%02Xip%02Xin%02X" % (*triple, number)
            for number, triple in sorted(self.numbered)
        )

    @property
    def hub(self) -> bool:
        """Whether a hub's driver would bind, and others' devices appear behind it."""
        return HUB_CLASS in {self.device[0], *(class_ for class_, _, _ in self.interfaces)}

    @property
    def can_type_or_network(self) -> bool:
        """Whether its classes alone tell so: see :func:`is_input_or_network`, and
        :mod:`usbipsshd.drivers` for what they don't."""
        return is_input_or_network(self.device) or any(
            is_input_or_network(t) for t in self.interfaces
        )


def is_input_or_network(triple: Triple) -> bool:
    """Whether an interface of this class can type or carry the network.

    By https://www.usb.org/defined-class-codes and the tables of Linux's drivers: classes where a
    driver makes an input device or a network interface of anything that claims to be one.
    """
    class_, subclass, protocol = triple
    if class_ == 0x02:
        # CDC: all that is no telephone line or modem, and those that are RNDIS by their protocol.
        return subclass > 0x04 or protocol == 0xFF
    if class_ == 0x0A:
        # CDC's data interfaces where they are network transfer blocks by themselves.
        return protocol in (0x01, 0x02)
    return (
        class_ in _STRICT_CLASSES
        or (class_, subclass) in _STRICT_SUBCLASSES
        or triple in _STRICT_TRIPLES
    )


_STRICT_CLASSES = frozenset(
    {
        0x03,  # HID
        0x14,  # MCTP, which is a network interface (mctp-usb)
        0xE0,  # wireless controllers: Bluetooth, RNDIS, ultra wideband
    }
)
_STRICT_SUBCLASSES = frozenset(
    {
        (0xEF, 0x01),  # ActiveSync, which is RNDIS (rndis_host)
        (0xEF, 0x04),  # RNDIS
        (0xFE, 0x02),  # IrDA
        # Vendors' own, which drivers know whatever the product is.
        (0xFF, 0x47),  # Xbox One's gamepads, and the keyboards in them (xpad)
        (0xFF, 0x5D),  # Xbox 360's
        (0xFF, 0xFD),  # iPhone's network (ipheth)
    }
)
# Huawei's NCM and QMI (huawei_cdc_ncm, qmi_wwan).
_STRICT_TRIPLES = frozenset(
    {(0xFF, 0x02, 0x16), (0xFF, 0x02, 0x46), (0xFF, 0x02, 0x76), (0xFF, 0x03, 0x16)}
)


def summarize(raw: bytes) -> Summary:
    """Read descriptors; raise :exc:`BadDescriptors` for what is cut short or malformed."""
    if len(raw) > MAX_SIZE:
        raise BadDescriptors("too long")
    if len(raw) < 18 or raw[0] != 18 or raw[1] != DEVICE:
        raise BadDescriptors("no device descriptor")
    numbered: set[tuple[int, Triple]] = set()
    at = 18
    configurations = 0
    while at < len(raw):
        length, kind = raw[at], raw[at + 1] if at + 1 < len(raw) else 0
        if length < 2 or at + length > len(raw):
            raise BadDescriptors("a descriptor is cut short")
        if kind == CONFIGURATION:
            configurations += 1
        elif kind == INTERFACE:
            if length < 9 or not configurations:
                raise BadDescriptors("an interface descriptor is malformed")
            numbered.add((raw[at + 2], (raw[at + 5], raw[at + 6], raw[at + 7])))
        at += length
    if configurations != raw[17] or not numbered:
        raise BadDescriptors("configurations are missing")
    return Summary(
        vendor_id=int.from_bytes(raw[8:10], "little"),
        product_id=int.from_bytes(raw[10:12], "little"),
        bcd_device=int.from_bytes(raw[12:14], "little"),
        device=(raw[4], raw[5], raw[6]),
        interfaces=frozenset(triple for _, triple in numbered),
        numbered=frozenset(numbered),
    )
