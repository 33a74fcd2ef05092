# SPDX-License-Identifier: GPL-3.0-or-later
"""What raw USB descriptors say a device is, and what it would be allowed to do.

The format is the USB 2.0 specification's, section 9.6, as the ``descriptors``
file in sysfs holds it: the device descriptor, then every configuration in full.
"""

from __future__ import annotations

from dataclasses import dataclass

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

    @property
    def classes(self) -> tuple[str, ...]:
        """Every distinct class/subclass/protocol in hex (``030101``), sorted."""
        own = {self.device} - {(0, 0, 0)}
        return tuple(sorted("%02x%02x%02x" % t for t in self.interfaces | own))

    @property
    def can_type_or_network(self) -> bool:
        """Whether polkit's stricter action is asked: see :func:`is_input_or_network`."""
        return is_input_or_network(self.device) or any(
            is_input_or_network(t) for t in self.interfaces
        )


def is_input_or_network(triple: Triple) -> bool:
    """Whether an interface of this class can type or carry the network.

    HID (03), wireless controllers (e0: Bluetooth, RNDIS), the CDC network
    subclasses (02: 06 ECM, 07 ATM is serial-like so included, 08-0e MBIM and
    kin), Microsoft's RNDIS spellings (ef/04/01, 02/02/ff) and CDC data's network protocols
    that stand alone (0a/00/01 NTB). https://www.usb.org/defined-class-codes
    """
    class_, subclass, protocol = triple
    if class_ in (0x03, 0xE0):
        return True
    if class_ == 0x02:
        return 0x05 <= subclass <= 0x0F or (subclass, protocol) == (0x02, 0xFF)
    if class_ == 0x0A:
        return protocol in (0x01, 0x02)
    return (class_, subclass) == (0xEF, 0x04)


def summarize(raw: bytes) -> Summary:
    """Read descriptors; raise :exc:`BadDescriptors` for what is cut short or malformed."""
    if len(raw) > MAX_SIZE:
        raise BadDescriptors("too long")
    if len(raw) < 18 or raw[0] != 18 or raw[1] != DEVICE:
        raise BadDescriptors("no device descriptor")
    interfaces: set[Triple] = set()
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
            interfaces.add((raw[at + 5], raw[at + 6], raw[at + 7]))
        at += length
    if configurations != raw[17] or not interfaces:
        raise BadDescriptors("configurations are missing")
    return Summary(
        vendor_id=int.from_bytes(raw[8:10], "little"),
        product_id=int.from_bytes(raw[10:12], "little"),
        bcd_device=int.from_bytes(raw[12:14], "little"),
        device=(raw[4], raw[5], raw[6]),
        interfaces=frozenset(interfaces),
    )
