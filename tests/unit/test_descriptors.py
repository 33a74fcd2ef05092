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


# Each with what it is, or what a driver makes of it.
TYPES_OR_NETWORK = {
    "030101": "HID: a keyboard",
    "030102": "HID: a mouse, whose buttons press what is under it",
    "030000": "HID: whatever its report descriptor says, a keyboard for one",
    "e00101": "Bluetooth, and with it keyboards and networks",
    "e00103": "RNDIS, as Android tethers",
    "e00202": "wireless USB",
    "ef0101": "ActiveSync: RNDIS",
    "ef0401": "RNDIS over Ethernet",
    "ef0403": "RNDIS over WiMAX",
    "0202ff": "RNDIS, as Microsoft began it",
    "020500": "CDC CAPI: ISDN, a network as much as a line",
    "020600": "CDC Ethernet (ECM)",
    "020700": "CDC ATM",
    "020800": "CDC wireless handset",
    "020a00": "CDC mobile direct line: Ethernet of Zaurus and its like",
    "020c07": "CDC Ethernet emulation (EEM)",
    "020d00": "CDC network control (NCM)",
    "020e00": "CDC mobile broadband (MBIM)",
    "028000": "CDC of a vendor's own kind",
    "0a0001": "network transfer blocks (NCM's data)",
    "0a0002": "network transfer blocks (MBIM's data)",
    "140001": "MCTP, a network interface since Linux 6.15",
    "fe0200": "IrDA",
    "ff5d01": "Xbox 360 gamepad; a keyboard may be plugged into it",
    "ff5d81": "Xbox 360 gamepads by radio",
    "ff47d0": "Xbox One gamepad",
    "fffd01": "iPhone's network",
    "ff0216": "Huawei's NCM",
    "ff0316": "Huawei's NCM, another product's",
}
NEITHER = {
    "000000": "says nothing at device level: its interfaces do",
    "010100": "audio",
    "010300": "MIDI",
    "020000": "CDC at device level: its interfaces say which",
    "020100": "CDC direct line: telephone",
    "020201": "CDC modem (AT commands): a serial line",
    "020200": "CDC serial adapter",
    "020300": "CDC telephone",
    "060101": "camera",
    "070102": "printer",
    "080650": "stick",
    "080662": "disk (UAS)",
    "0a0000": "a serial adapter's data",
    "0b0000": "chip card reader",
    "0e0100": "video",
    "ef0201": "interface associations: its interfaces say what it is",
    "fe0101": "firmware upgrade",
    "fe0301": "measuring instrument",
    "ff0000": "CP210x serial adapter, PL2303",
    "ff0102": "CH340 serial adapter",
    "ff4201": "Android debug bridge",
    "ffffff": "FTDI serial adapter, debug probe, dongle",
}
TABLE = [
    pytest.param(tuple(bytes.fromhex(triple)), strict, id=f"{triple} {why}")
    for table, strict in ((TYPES_OR_NETWORK, True), (NEITHER, False))
    for triple, why in table.items()
]
_STICK = (8, 6, 0x50)


def configuration(*settings: tuple[int, tuple[int, int, int]]) -> bytes:
    """A configuration of interfaces; a number that comes again is an alternate setting."""
    body, seen = b"", list[int]()
    for number, triple in settings:
        body += bytes([9, 4, number, seen.count(number), 0, *triple, 0])
        seen.append(number)
    head = bytes([9, 2]) + (9 + len(body)).to_bytes(2, "little")
    return head + bytes([len(set(seen)), 1, 0, 0x80, 50]) + body


def device(*configurations: bytes, own: tuple[int, int, int] = (0, 0, 0)) -> bytes:
    """A device with these configurations."""
    return (
        raw_descriptors(1, 2, own=own)[:17]
        + bytes([len(configurations)])
        + b"".join(configurations)
    )


@pytest.mark.parametrize(("triple", "strict"), TABLE)
def test_what_can_type_or_carry_the_network(triple: tuple[int, int, int], strict: bool) -> None:
    assert is_input_or_network(triple) is strict
    alone = configuration((0, triple))
    stick = configuration((0, _STICK))
    for raw, where in (
        (device(alone), "its only interface"),
        (device(configuration((0, _STICK), (1, triple))), "one of several"),
        (device(configuration((0, _STICK), (0, triple))), "an alternate setting"),
        (device(stick, alone), "another configuration"),
        (device(stick, own=triple), "the device itself"),
        (
            device(configuration((0, _STICK), (1, triple)), own=(0xEF, 2, 1)),
            "a part of a composite device",
        ),
    ):
        assert summarize(raw).can_type_or_network is strict, where


@pytest.mark.parametrize(
    ("raw", "hub"),
    [
        pytest.param(device(configuration((0, (9, 0, 0))), own=(9, 0, 1)), True, id="a hub"),
        pytest.param(device(configuration((0, _STICK), (1, (9, 0, 0)))), True, id="an interface"),
        pytest.param(
            device(configuration((0, _STICK)), configuration((0, (9, 0, 0)))), True, id="later"
        ),
        pytest.param(device(configuration((0, _STICK))), False, id="no hub"),
    ],
)
def test_what_has_others_behind_it(raw: bytes, hub: bool) -> None:
    # The kernel's hub driver goes by the interface's class as well as by the device's.
    assert summarize(raw).hub is hub


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


@settings(max_examples=200)
@given(st.binary(max_size=64), st.integers(0, len(STICK)), st.integers(0, len(STICK)))
def test_any_bytes_are_descriptors_or_bad_descriptors(noise: bytes, start: int, end: int) -> None:
    for raw in (noise, STICK[:start] + noise + STICK[end:], STICK + noise):
        try:
            summary = summarize(raw)
        except BadDescriptors:
            continue
        assert summary.interfaces
        assert all(len(c) == 6 for c in summary.classes)
