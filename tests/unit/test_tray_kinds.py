# SPDX-License-Identifier: GPL-3.0-or-later
"""What sort of thing a device is called."""

from __future__ import annotations

import pytest

from usbipssh_tray.kinds import Kind, kind, kind_of_nodes, words
from usbipsshd.client.snapshot import Device, Interface


def interface(triple: str, *nodes: str) -> Interface:
    class_, subclass, protocol = bytes.fromhex(triple)
    return Interface(class_=class_, subclass=subclass, protocol=protocol, nodes=nodes)


@pytest.mark.parametrize(
    ("wanted", "device"),
    [
        (Kind.KEYBOARD, Device(interfaces=(interface("030101"), interface("030000")))),
        (Kind.MOUSE, Device(interfaces=(interface("030102"),))),
        (Kind.INPUT, Device(product="Gamepad", interfaces=(interface("030000"),))),
        (Kind.SECURITY_KEY, Device(product="YubiKey OTP+FIDO", interfaces=(interface("030101"),))),
        (Kind.DISK, Device(interfaces=(interface("080650", "sda"),))),
        (Kind.SERIAL, Device(interfaces=(interface("020201", "ttyACM0"), interface("0a0000")))),
        (Kind.SERIAL, Device(vendor_id=0x0403, interfaces=(interface("ffffff"),))),
        (Kind.SERIAL, Device(interfaces=(interface("ff0000", "ttyUSB3"),))),
        (Kind.SERIAL, Device(product="USB UART", interfaces=(interface("ff0000"),))),
        (Kind.CAMERA, Device(interfaces=(interface("0e0100"), interface("010100")))),
        (Kind.PHONE, Device(interfaces=(interface("060101"), interface("ff4201")))),
        (Kind.CAMERA, Device(interfaces=(interface("060101"),))),
        (Kind.PRINTER, Device(interfaces=(interface("070102"),))),
        (Kind.AUDIO, Device(interfaces=(interface("010100"), interface("030000")))),
        (Kind.NETWORK, Device(interfaces=(interface("020600"), interface("0a0000")))),
        (Kind.NETWORK, Device(product="USB 10/100 LAN", interfaces=(interface("ffff00"),))),
        (Kind.BLUETOOTH, Device(class_=0xE0, subclass=1, protocol=1)),
        (Kind.SMARTCARD, Device(interfaces=(interface("0b0000"),))),
        (Kind.DEBUG_PROBE, Device(
            vendor_id=0x0483, product_id=0x374B, interfaces=(interface("080650"),))),
        (Kind.DEBUG_PROBE, Device(vendor_id=0x1366, interfaces=(interface("ffffff"),))),
        (Kind.DEBUG_PROBE, Device(product="CMSIS-DAP", interfaces=(interface("ff0000"),))),
        (Kind.FIRMWARE, Device(interfaces=(interface("fe0102"),))),
        (Kind.OTHER, Device(interfaces=(interface("ff0000"),))),
        (Kind.OTHER, Device()),
    ],
)  # fmt: skip
def test_kinds(wanted: Kind, device: Device) -> None:
    assert kind(device) is wanted


def test_nodes_alone() -> None:
    assert kind_of_nodes(["/dev/sda", "/dev/sda1"]) is Kind.DISK
    assert kind_of_nodes(["/dev/bus/usb/001/002"]) is None


def test_each_kind_has_a_word() -> None:
    assert len({words(each) for each in Kind}) == len(Kind)
