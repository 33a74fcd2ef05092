# SPDX-License-Identifier: GPL-3.0-or-later
"""Names from usb.ids."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.made import STICK

from usbipsshd.usbids import UsbIds

TEXT = b"""# comment
# 046d  Not this
0001  Fry's Electronics
\t7778  Counterfeit flash drive [Kingston]
046d  Logitech, Inc.
\t0082  Acer Aspire 5672 Webcam
\t\t00  An interface
\tc31c  Keyboard K120
\tc31d  Gr\xc3\xb6\xc3\x9fe \xff\x1b[0m
0781  SanDisk Corp.
# between
\t5583  Hidden behind a comment

C 03  Human Interface Device
\t01  Boot Interface Subclass
ffff  Last
\tffff  Without a newline"""


@pytest.fixture
def ids(tmp_path: Path) -> UsbIds:
    (tmp_path / "usb.ids").write_bytes(TEXT)
    return UsbIds([tmp_path / "none", tmp_path / "usb.ids"])


@pytest.mark.parametrize(
    ("vendor_id", "product_id", "names"),
    [
        (0x046D, 0xC31C, ("Logitech, Inc.", "Keyboard K120")),
        (0x046D, 0x0082, ("Logitech, Inc.", "Acer Aspire 5672 Webcam")),
        (0x046D, 0xC31D, ("Logitech, Inc.", "Größe \ufffd[0m")),
        (0x046D, 0x7778, ("Logitech, Inc.", "")),
        (0x0001, 0x7778, ("Fry's Electronics", "Counterfeit flash drive [Kingston]")),
        (0xFFFF, 0xFFFF, ("Last", "Without a newline")),
        (0xFFFF, 0x0001, ("Last", "")),
        (0x1234, 0xC31C, ("", "")),
    ],
)
def test_names(ids: UsbIds, vendor_id: int, product_id: int, names: tuple[str, str]) -> None:
    assert ids.names(vendor_id, product_id) == names


def test_what_a_person_is_asked_about(ids: UsbIds) -> None:
    assert ids.title(0x046D, 0xC31C) == "Logitech, Inc. Keyboard K120 (046d:c31c)"
    assert ids.title(0x046D, 0x0001) == "Logitech, Inc. (046d:0001)"
    assert ids.title(0x1234, 0x0001) == "1234:0001"


def test_a_device_keeps_the_names_it_tells_itself(ids: UsbIds) -> None:
    device = replace(STICK, vendor_id=0x046D, product_id=0xC31C)
    assert ids.named(device) is device
    silent = ids.named(replace(device, vendor="", product=""))
    assert (silent.vendor, silent.product) == ("Logitech, Inc.", "Keyboard K120")
    half = ids.named(replace(device, vendor=""))
    assert (half.vendor, half.product) == ("Logitech, Inc.", STICK.product)


@pytest.mark.parametrize("content", [None, b"", b"\n", b"\x00" * 10])
def test_without_a_useful_file_every_name_is_empty(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "usb.ids"
    if content is not None:
        path.write_bytes(content)
    assert UsbIds([path]).names(1, 1) == ("", "")


def test_a_file_that_goes_away(tmp_path: Path) -> None:
    path = tmp_path / "usb.ids"
    path.write_bytes(TEXT)
    ids = UsbIds([path])
    path.unlink()
    assert ids.title(0x046D, 0xC31C) == "046d:c31c"


@settings(max_examples=60)
@given(st.binary(max_size=80))
def test_any_file_is_read(tmp_path_factory: pytest.TempPathFactory, noise: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.ids"
    path.write_bytes(b"\n0001  " + noise + b"\n\t0002  " + noise)
    vendor, product = UsbIds([path]).names(1, 2)
    assert (vendor + product).isprintable()
