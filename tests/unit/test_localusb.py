# SPDX-License-Identifier: GPL-3.0-or-later
"""This machine's devices, in made-up trees and in those of real kernels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from unit.made import KEYBOARD, STICK, captured, fill, plug

from usbipsshd.localusb import LocalUsb


def test_the_devices_of_a_real_kernel(tmp_path: Path) -> None:
    usb = LocalUsb(captured("pi-before", tmp_path))
    keyboard, hub, adapter, stick = usb.devices()
    assert [d.busid for d in (keyboard, hub, adapter, stick)] == ["1-1", "1-3", "1-3.1", "2-2"]
    assert hub.hub
    assert not any(d.virtual or d.exported for d in usb.devices())
    assert (keyboard.vendor_id, keyboard.product, keyboard.speed) == (
        0x0627, "QEMU USB Keyboard", 480,
    )  # fmt: skip
    assert [(i.driver, i.nodes) for i in keyboard.interfaces] == [
        ("usbhid", ("hidraw0", "input/event1"))
    ]
    assert [(i.driver, i.nodes) for i in adapter.interfaces] == [("ftdi_sio", ("ttyUSB0",))]
    assert [(i.driver, i.triple) for i in stick.interfaces] == [("usb-storage", (8, 6, 0x50))]
    assert stick.interfaces[0].nodes == ("sda", "sg0")
    assert (stick.serial, stick.devid, stick.speed) == ("STICK0001", 0x20002, 5000)
    assert {d.driver for d in usb.devices()} == {"usb"}


@pytest.mark.parametrize(
    ("name", "exported"),
    [("pi-one-exported", ["2-2"]), ("pi-three-exported", ["1-1", "1-3.1", "2-2"])],
)
def test_what_a_real_kernel_exports(tmp_path: Path, name: str, exported: list[str]) -> None:
    devices = LocalUsb(captured(name, tmp_path)).devices()
    held = [d for d in devices if d.exported]
    assert [d.busid for d in held] == exported
    assert {d.usbip_status for d in held} == {2}
    assert not any(i.nodes for d in held for i in d.interfaces)


def test_what_came_over_a_virtual_bus(tmp_path: Path) -> None:
    usb = LocalUsb(captured("desk-three", tmp_path))
    assert {d.busid: d.virtual for d in usb.devices()} == {
        "1-1": False, "3-1": True, "3-2": True, "4-9": True,
    }  # fmt: skip
    stick = usb.device("4-9", descriptors=True)
    assert stick is not None
    assert stick.interfaces[0].nodes == ("sda", "sg0")
    at_home = LocalUsb(captured("pi-before", tmp_path / "pi"))
    assert stick.descriptors == at_home.descriptors("2-2") != b""


def test_a_made_up_device_is_read_as_it_was_made(tmp_path: Path) -> None:
    adapter = replace(STICK.interfaces[0], nodes=("net/eth1", "ttyACM0"), driver="cdc_ether")
    for device in (KEYBOARD, replace(STICK, interfaces=(adapter,))):
        plug(tmp_path, device)
        assert LocalUsb(tmp_path).device(device.busid, descriptors=True) == device
    assert LocalUsb(tmp_path).device("1-1") == replace(KEYBOARD, descriptors=b"")


def test_what_is_half_gone_or_no_device_is_left_out(tmp_path: Path) -> None:
    folder = plug(tmp_path, STICK)
    plug(tmp_path, KEYBOARD)
    fill(tmp_path / "bus/usb/devices/usb1", serial="x")
    fill(tmp_path / "bus/usb/devices/1-0:1.0", bInterfaceNumber="00")
    (folder / "idVendor").unlink()
    usb = LocalUsb(tmp_path)
    assert [d.busid for d in usb.devices()] == ["1-1"]
    assert usb.device("2-2") is None
    assert usb.device("9-9") is None
    assert usb.descriptors("9-9") == b""


def test_an_interface_that_is_half_gone_costs_that_one_alone(tmp_path: Path) -> None:
    folder = plug(tmp_path, KEYBOARD)
    (folder / "1-1:1.0/bInterfaceClass").unlink()
    device = LocalUsb(tmp_path).device("1-1")
    assert device is not None
    assert [i.number for i in device.interfaces] == [1]


def test_foreign_bytes_are_made_harmless(tmp_path: Path) -> None:
    folder = plug(tmp_path, STICK)
    (folder / "product").write_bytes(b"\xff\xfeDisk\x1b[0m\n")
    (folder / "serial").write_bytes(b"\n\n")
    device = LocalUsb(tmp_path).device("2-2")
    assert device is not None
    assert (device.product, device.serial) == ("\ufffd\ufffdDisk[0m", "")


def test_a_machine_without_usb(tmp_path: Path) -> None:
    assert LocalUsb(tmp_path).devices() == []


def test_what_udev_is_done_with(tmp_path: Path) -> None:
    sys, udev = tmp_path / "sys", tmp_path / "udev"
    folder = plug(sys, replace(STICK, interfaces=()))
    usb = LocalUsb(sys, udev)
    # No udev runs here.
    assert usb.known_to_udev("2-2")
    udev.mkdir()
    assert usb.known_to_udev("2-2")
    disk = fill(folder / "2-2:1.0/host1/target1:0:0/1:0:0:0/block/sda", dev="8:0")
    fill(disk / "sda1", dev="8:1")
    fill(folder / "2-2:1.0/host1/target1:0:0/1:0:0:0/scsi_generic/sg0", dev="21:0")
    for name in ("b8:0", "c21:0", "c8:1"):
        (udev / name).touch()
        assert not usb.known_to_udev("2-2")
    (udev / "b8:1").touch()
    assert usb.known_to_udev("2-2")
    assert LocalUsb(sys).known_to_udev("2-2")
