# SPDX-License-Identifier: GPL-3.0-or-later
"""What descriptors say a device is; that decides what is asked for it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.made import CAPTURES, captured, raw_descriptors

from usbipsshd.descriptors import MAX_SIZE, BadDescriptors, is_input_or_network, summarize
from usbipsshd.localusb import LocalUsb

STICK = raw_descriptors(0x46F4, 1, (8, 6, 0x50))


@pytest.fixture(scope="module")
def pi(tmp_path_factory: pytest.TempPathFactory) -> LocalUsb:
    return LocalUsb(captured("pi-before", tmp_path_factory.mktemp("pi")))


@pytest.mark.parametrize(
    ("busid", "ids", "classes", "types"),
    [
        ("1-1", (0x0627, 0x0001), ("030101",), True),
        ("1-3.1", (0x0403, 0x6001), ("ffffff",), False),
        ("2-2", (0x46F4, 0x0001), ("080650",), False),
        ("1-3", (0x0409, 0x55AA), ("090000",), False),
    ],
)
def test_what_a_real_kernel_holds(
    pi: LocalUsb, busid: str, ids: tuple[int, int], classes: tuple[str, ...], types: bool
) -> None:
    assert CAPTURES.is_dir()
    summary = summarize(pi.descriptors(busid))
    assert (summary.vendor_id, summary.product_id) == ids
    assert summary.classes == classes
    assert summary.can_type_or_network is types
    device = pi.device(busid)
    assert device is not None
    assert summary.bcd_device == device.bcd_device
    assert summary.interfaces >= {i.triple for i in device.interfaces}


@pytest.mark.parametrize(
    ("triple", "strict"),
    [
        ((0x03, 0x01, 0x01), True),  # keyboard
        ((0x03, 0x00, 0x00), True),  # any HID
        ((0xE0, 0x01, 0x01), True),  # Bluetooth
        ((0xE0, 0x01, 0x03), True),  # RNDIS
        ((0xEF, 0x04, 0x01), True),  # RNDIS of another spelling
        ((0x02, 0x02, 0xFF), True),  # RNDIS of the first spelling
        ((0x02, 0x06, 0x00), True),  # ECM
        ((0x02, 0x0D, 0x00), True),  # NCM
        ((0x02, 0x0E, 0x00), True),  # MBIM
        ((0x0A, 0x00, 0x01), True),  # NTB
        ((0x0A, 0x00, 0x02), True),
        ((0x02, 0x02, 0x01), False),  # modem, serial
        ((0x0A, 0x00, 0x00), False),  # its data
        ((0x08, 0x06, 0x50), False),  # stick
        ((0xFF, 0xFF, 0xFF), False),
        ((0x09, 0x00, 0x00), False),
        ((0x00, 0x00, 0x00), False),
    ],
)
def test_what_can_type_or_carry_the_network(triple: tuple[int, int, int], strict: bool) -> None:
    assert is_input_or_network(triple) is strict
    assert summarize(raw_descriptors(1, 2, (8, 6, 0x50), triple)).can_type_or_network is strict
    assert summarize(raw_descriptors(1, 2, (8, 6, 0x50), own=triple)).can_type_or_network is strict


def test_a_keyboard_in_a_later_configuration_counts() -> None:
    second = raw_descriptors(1, 2, (3, 1, 1))[18:]
    both = STICK[:17] + b"\x02" + STICK[18:] + second
    assert summarize(both).classes == ("030101", "080650")


def _swap(raw: bytes, at: int, value: int) -> bytes:
    return raw[:at] + bytes([value]) + raw[at + 1 :]


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(STICK[:18], id="no configuration"),
        pytest.param(STICK[:27], id="no interface"),
        pytest.param(STICK[:-1], id="cut short"),
        pytest.param(STICK + b"\x09", id="one byte more"),
        pytest.param(STICK + b"\x00\x00", id="a length of nothing"),
        pytest.param(STICK + b"\x01\x04\x00", id="a length that is less than its header"),
        pytest.param(_swap(STICK, 17, 2), id="a configuration is missing"),
        pytest.param(_swap(STICK, 17, 0), id="more configurations than there are"),
        pytest.param(_swap(STICK, 0, 17), id="a short device descriptor"),
        pytest.param(_swap(STICK, 1, 2), id="no device descriptor"),
        pytest.param(STICK[:18] + STICK[27:36] + STICK[18:], id="an interface before all"),
        pytest.param(STICK + b"\x02\x04", id="an interface without a class"),
        pytest.param(STICK + bytes([2, 5]) * (MAX_SIZE // 2), id="too long"),
    ],
)
def test_malformed(raw: bytes) -> None:
    with pytest.raises(BadDescriptors):
        summarize(raw)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=64), st.integers(0, len(STICK)), st.integers(0, len(STICK)))
def test_any_bytes_are_descriptors_or_bad_descriptors(noise: bytes, start: int, end: int) -> None:
    for raw in (noise, STICK[:start] + noise + STICK[end:], STICK + noise):
        try:
            summary = summarize(raw)
        except BadDescriptors:
            continue
        assert summary.interfaces
        assert all(len(c) == 6 for c in summary.classes)
