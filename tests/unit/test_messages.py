# SPDX-License-Identifier: GPL-3.0-or-later
"""Packets of the control socket: what one side says is what the other hears, or BadPacket."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.made import KEYBOARD, STICK

from usbipsshd.device import Device, Interface
from usbipsshd.errors import Code
from usbipsshd.messages import (
    MAX_DETAIL,
    MAX_PACKET,
    BadPacket,
    Json,
    decode,
    device_from_json,
    device_to_json,
    encode,
    error_from_json,
    error_to_json,
    get_bool,
    get_busid,
    get_int,
    get_object,
    get_str,
)
from usbipsshd.text import clean

words = st.text(max_size=40).map(clean)
bytes8 = st.integers(0, 0xFF)
bytes16 = st.integers(0, 0xFFFF)
nodes = st.lists(st.sampled_from(["sda", "input/event3", "ttyUSB0", "net/eth0"]), unique=True)
interfaces = st.builds(
    Interface, bytes8, bytes8, bytes8, bytes8, words, words, nodes.map(sorted).map(tuple)
)
devices = st.builds(
    Device,
    busid=st.from_regex(r"[1-9][0-9]?-[1-9](\.[1-9]){0,3}", fullmatch=True),
    vendor_id=bytes16,
    product_id=bytes16,
    bcd_device=bytes16,
    class_=bytes8,
    subclass=bytes8,
    protocol=bytes8,
    busnum=bytes16,
    devnum=bytes16,
    speed=st.sampled_from([1.5, 12.0, 480.0, 5000.0, 20000.0]),
    vendor=words,
    product=words,
    serial=words,
    driver=words,
    configuration=bytes8,
    usbip_status=st.integers(0, 3),
    virtual=st.booleans(),
    interfaces=st.lists(interfaces, max_size=4).map(tuple),
    descriptors=st.binary(max_size=200),
)
anything: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=40)
@given(devices)
def test_a_device_arrives_as_it_was_sent(device: Device) -> None:
    assert device_from_json(decode(encode(device_to_json(device)))) == device


@settings(max_examples=100)
@given(st.binary(max_size=80) | anything.map(lambda a: json.dumps(a).encode()))
def test_any_bytes_are_an_object_or_bad(data: bytes) -> None:
    try:
        packet = decode(data)
    except BadPacket:
        return
    assert isinstance(packet, dict)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b"\xff\xfe{}", b"{}{}", b"[" * 60000, b'{"a":' * 10000,
     b'{"a":' + b"9" * 5000 + b"}"],
    ids=lambda d: str(d[:8]),
)  # fmt: skip
def test_what_is_no_packet(data: bytes) -> None:
    with pytest.raises(BadPacket):
        decode(data)


def test_the_longest_packet_and_one_byte_more() -> None:
    room = MAX_PACKET - len(encode({"a": ""}))
    assert len(encode({"a": "x" * room})) == MAX_PACKET
    with pytest.raises(BadPacket):
        encode({"a": "x" * (room + 1)})


FIELDS = sorted(device_to_json(STICK))


@pytest.mark.parametrize("field", FIELDS)
def test_a_device_without_one_of_its_fields(field: str) -> None:
    packet = device_to_json(STICK)
    del packet[field]
    with pytest.raises(BadPacket):
        device_from_json(packet)


@settings(max_examples=150)
@given(st.sampled_from(FIELDS), anything)
def test_a_device_with_anything_in_a_field(field: str, value: Any) -> None:
    packet = decode(encode(device_to_json(KEYBOARD)))
    packet[field] = value
    try:
        device = device_from_json(packet)
    except BadPacket:
        return
    assert device_from_json(decode(encode(device_to_json(device)))) == device


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("busid", "../../etc"),
        ("busid", "1-1\n"),
        ("vendor_id", 0x10000),
        ("vendor_id", True),
        ("vendor_id", 1.0),
        ("vendor_id", "1"),
        ("class_", -1),
        ("speed", float("nan")),
        ("speed", float("inf")),
        ("speed", 0),
        ("speed", True),
        ("speed", 10**400),
        ("usbip_status", 4),
        ("virtual", 0),
        ("vendor", "x" * 257),
        ("descriptors", "0g"),
        ("descriptors", "abc"),
        ("interfaces", {}),
        ("interfaces", [[]]),
        ("interfaces", [{}] * 65),
    ],
)
def test_a_device_with_a_field_that_lies(field: str, value: Json) -> None:
    with pytest.raises(BadPacket):
        device_from_json({**device_to_json(STICK), field: value})


def test_texts_are_cleaned_on_arrival() -> None:
    packet = device_to_json(STICK) | {"vendor": "a\x1b]0;title\x07", "product": "\u202eevil\n"}
    device = device_from_json(decode(encode(packet)))
    assert (device.vendor, device.product) == ("a]0;title", "evil")


@pytest.mark.parametrize(
    ("get", "value"),
    [
        (get_str, 1),
        (get_str, None),
        (get_str, "x" * 257),
        (get_int, "1"),
        (get_int, False),
        (get_int, -1),
        (get_int, 2**32),
        (get_int, 1.0),
        (get_bool, 1),
        (get_bool, "true"),
        (get_busid, "usb1"),
        (get_object, []),
        (get_object, "x"),
    ],
)
def test_a_field_of_the_wrong_kind(get: Any, value: Json) -> None:
    with pytest.raises(BadPacket, match=r"^field:"):
        get({"field": value}, "field")
    with pytest.raises(BadPacket):
        get({}, "field")


def test_errors_travel() -> None:
    for code in Code:
        assert error_from_json(error_to_json(code, "why\x07 ")) == (code, "why")
    assert len(error_from_json(error_to_json(Code.FAILED, "x" * 999))[1]) == MAX_DETAIL


@pytest.mark.parametrize(
    "packet",
    [{}, {"code": "Failed"}, {"code": "NoSuch", "detail": ""}, {"code": 1, "detail": ""},
     {"code": "Failed", "detail": "x" * 401}, {"code": "failed", "detail": ""}],
)  # fmt: skip
def test_what_is_no_error(packet: dict[str, Json]) -> None:
    with pytest.raises(BadPacket):
        error_from_json(packet)
