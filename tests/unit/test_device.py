# SPDX-License-Identifier: GPL-3.0-or-later
"""Devices made from the text of sysfs, which nobody vouches for."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usbipsshd.device import (
    MAX_INTERFACES,
    BadDevice,
    Interface,
    busid_key,
    device_from_attributes,
    interface_from_attributes,
    is_busid,
)

STICK = {
    "idVendor": "0781",
    "idProduct": "5583",
    "bcdDevice": "0100",
    "bDeviceClass": "00",
    "bDeviceSubClass": "00",
    "bDeviceProtocol": "00",
    "busnum": "10",
    "devnum": "12",
    "speed": "5000",
    "manufacturer": " SanDisk\x1b[2J ",
    "product": "Ultra\nFit",
    "serial": "4C53",
    "driver": "usb",
}
INTERFACE = {
    "bInterfaceNumber": "0a",
    "bInterfaceClass": "08",
    "bInterfaceSubClass": "06",
    "bInterfaceProtocol": "50",
}


@pytest.mark.parametrize("text", ["1-1", "1-1.3", "10-12.4.1", "9999-1", "1-1.2.3.4.5.6"])
def test_bus_ids(text: str) -> None:
    assert is_busid(text)


@pytest.mark.parametrize(
    "text",
    ["", "1", "0-0", "1-0", "01-1", "usb1", "1-1:1.0", "1-1.", "1-1\n", " 1-1", "1-1/..", "1-1;x",
     "1-1.1.1.1.1.1.1.1", "٣-1", "10000-1"],
)  # fmt: skip
def test_what_is_no_bus_id(text: str) -> None:
    assert not is_busid(text)


def test_tree_order_is_by_number() -> None:
    shuffled = ["10-1", "1-10", "1-2", "1-1.10", "2-1", "1-1.2", "1-1"]
    ordered = ["1-1", "1-1.2", "1-1.10", "1-2", "1-10", "2-1", "10-1"]
    assert sorted(shuffled, key=busid_key) == ordered


def test_a_device_from_its_attributes() -> None:
    device = device_from_attributes("10-1", STICK)
    assert (device.vendor_id, device.product_id, device.devid) == (0x0781, 0x5583, 10 << 16 | 12)
    assert (device.vendor, device.product) == ("SanDisk[2J", "Ultra Fit")
    assert (device.hub, device.exported, device.virtual) == (False, False, False)


@pytest.mark.parametrize(
    ("change", "attribute", "value"),
    [
        ({"bDeviceClass": "09"}, "hub", True),
        ({"driver": "usbip-host"}, "exported", True),
        ({"driver": "usbip-host-2"}, "exported", False),
        ({"driver": "../../evil"}, "driver", ""),
        ({"bus_serial": "vhci_hcd.3"}, "virtual", True),
        ({"bus_serial": "0000:00:14.0"}, "virtual", False),
        ({"usbip_status": "3\n"}, "usbip_status", 3),
        ({"usbip_status": "99"}, "usbip_status", 0),
        ({"speed": "1.5"}, "speed", 1.5),
        ({"idVendor": "46D"}, "vendor_id", 0x46D),
    ],
)
def test_attributes_that_decide_something(
    change: dict[str, str], attribute: str, value: object
) -> None:
    assert getattr(device_from_attributes("1-1", STICK | change), attribute) == value


@pytest.mark.parametrize(
    "name", [n for n in STICK if n not in {"manufacturer", "product", "serial", "driver"}]
)
@pytest.mark.parametrize("value", ["", "x", "-1", "1 2", "0x1", "fffffffff", "1g", "nan"])
def test_a_number_that_is_none(name: str, value: str) -> None:
    with pytest.raises(BadDevice):
        device_from_attributes("1-1", STICK | {name: value})


@pytest.mark.parametrize(
    ("name", "value"), [("bDeviceClass", "100"), ("idVendor", "10000"), ("busnum", "65536"),
                        ("busnum", "1a"), ("speed", "0"), ("speed", "-5"), ("speed", "inf")],
)  # fmt: skip
def test_a_number_out_of_range(name: str, value: str) -> None:
    with pytest.raises(BadDevice):
        device_from_attributes("1-1", STICK | {name: value})


def test_neither_a_wrong_bus_id_nor_too_many_interfaces() -> None:
    with pytest.raises(BadDevice):
        device_from_attributes("1-1:1.0", STICK)
    with pytest.raises(BadDevice):
        device_from_attributes("1-1", STICK, [Interface(0, 1, 1, 1)] * (MAX_INTERFACES + 1))


def test_nodes_are_sorted_and_what_is_no_node_is_dropped() -> None:
    nodes = [
        "sdb",
        "sda",
        "sda",
        "../../etc/passwd",
        "a/../b",
        "/dev/sda",
        "x y",
        "input/event5",
        "",
    ]
    interface = interface_from_attributes(INTERFACE | {"driver": "usb-storage"}, nodes)
    assert interface.nodes == ("input/event5", "sda", "sdb")
    assert (interface.number, interface.triple) == (10, (8, 6, 0x50))


def test_interfaces_come_in_the_order_of_their_numbers() -> None:
    interfaces = [Interface(n, 3, 0, 0) for n in (2, 0, 1)]
    device = device_from_attributes("1-1", STICK, interfaces)
    assert [i.number for i in device.interfaces] == [0, 1, 2]


@settings(max_examples=100)
@given(st.dictionaries(st.sampled_from(sorted(STICK)), st.text(max_size=12)))
def test_any_text_makes_a_device_or_bad_device(change: dict[str, str]) -> None:
    try:
        device = device_from_attributes("1-1", STICK | change)
    except BadDevice:
        return
    assert 0 <= device.vendor_id <= 0xFFFF
    assert 0 < device.speed <= 1e6
    assert device.product.isprintable()
