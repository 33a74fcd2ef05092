# SPDX-License-Identifier: GPL-3.0-or-later
"""Made-up devices and sysfs trees for unit tests, and the trees captured from real kernels."""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from usbipsshd.device import Device, Interface
from usbipsshd.errors import Code, UsbipError

CAPTURES = Path(__file__).resolve().parent.parent / "vm/captures"

Triple = tuple[int, int, int]

_BLOB = b"\x00\x00\x00\x0bssh-ed25519\x00\x00\x00\x20" + bytes(range(32))
HOST_KEY = "ssh-ed25519 " + base64.b64encode(_BLOB).decode()
"""A host key, as known_hosts has it."""


def run(main: Coroutine[Any, Any, None], seconds: float = 60) -> None:
    """Run a test's coroutine, bounded in time; afterwards no task of its may be left."""

    async def bounded() -> None:
        async with asyncio.timeout(seconds):
            await main
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left

    asyncio.run(bounded())


async def settle() -> None:
    """Let everything run that can run without waiting for the outside."""
    for _ in range(12):
        await asyncio.sleep(0)


@contextmanager
def refused(code: Code, about: str = "") -> Iterator[None]:
    """The block must raise this error of the contract, with ``about`` in its sentence."""
    with pytest.raises(UsbipError) as caught:
        yield
    assert caught.value.code is code
    assert about in caught.value.message
    assert caught.value.message.isprintable()
    assert caught.value.message.endswith(".") or code is Code.MODULE_UNAVAILABLE


def raw_descriptors(
    vendor_id: int, product_id: int, *triples: Triple, own: Triple = (0, 0, 0)
) -> bytes:
    """What sysfs holds for a device with one configuration and these interfaces."""
    body = b"".join(
        bytes([9, 4, n, 0, 1, *t, 0]) + bytes([7, 5, 0x81 + n, 2, 0, 2, 0])
        for n, t in enumerate(triples)
    )
    total = (9 + len(body)).to_bytes(2, "little")
    configuration = bytes([9, 2]) + total + bytes([len(triples), 1, 0, 0x80, 50])
    ids = vendor_id.to_bytes(2, "little") + product_id.to_bytes(2, "little")
    return bytes([18, 1, 0, 2, *own, 64]) + ids + bytes([0, 1, 1, 2, 3, 1]) + configuration + body


STICK = Device(
    busid="2-2",
    vendor_id=0x46F4,
    product_id=0x0001,
    bcd_device=0x0100,
    class_=0,
    subclass=0,
    protocol=0,
    busnum=2,
    devnum=2,
    speed=5000.0,
    vendor="QEMU",
    product="QEMU USB HARDDRIVE",
    serial="STICK0001",
    driver="usb",
    interfaces=(Interface(0, 8, 6, 0x50, driver="usb-storage", nodes=("sda", "sg0")),),
    descriptors=raw_descriptors(0x46F4, 0x0001, (8, 6, 0x50)),
)
KEYBOARD = Device(
    busid="1-1",
    vendor_id=0x046D,
    product_id=0xC31C,
    bcd_device=0x6400,
    class_=0,
    subclass=0,
    protocol=0,
    busnum=1,
    devnum=4,
    speed=1.5,
    vendor="Logitech",
    product="USB Keyboard",
    driver="usb",
    interfaces=(
        Interface(0, 3, 1, 1, driver="usbhid", nodes=("hidraw0", "input/event3")),
        Interface(1, 3, 0, 0, driver="usbhid"),
    ),
    descriptors=raw_descriptors(0x046D, 0xC31C, (3, 1, 1), (3, 0, 0)),
)


def fill(folder: Path, **files: object) -> Path:
    """Write files into a folder, each with the newline that sysfs ends its values with."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        (folder / name).write_text(f"{value}\n")
    return folder


def plug(sys: Path, device: Device, *, authorized: bool = True) -> Path:
    """Put a device into a made-up tree, with nodes only if it is authorized."""
    folder = fill(
        sys / "bus/usb/devices" / device.busid,
        idVendor="%04x" % device.vendor_id,
        idProduct="%04x" % device.product_id,
        bcdDevice="%04x" % device.bcd_device,
        bDeviceClass="%02x" % device.class_,
        bDeviceSubClass="%02x" % device.subclass,
        bDeviceProtocol="%02x" % device.protocol,
        busnum=device.busnum,
        devnum=device.devnum,
        speed=f"{device.speed:g}",
        authorized=int(authorized),
    )
    for name in ("manufacturer", "product", "serial"):
        value = device.vendor if name == "manufacturer" else getattr(device, name)
        if value:
            fill(folder, **{name: value})
    (folder / "descriptors").write_bytes(device.descriptors)
    if device.driver:
        link(folder / "driver", sys / "bus/usb/drivers" / device.driver)
    if device.usbip_status:
        fill(folder, usbip_status=device.usbip_status)
    if authorized:
        configure(sys, device)
    return folder


def configure(sys: Path, device: Device) -> None:
    """What the kernel does once a device is authorized: interfaces, drivers and nodes."""
    for interface in device.interfaces:
        folder = fill(
            sys / "bus/usb/devices" / device.busid / f"{device.busid}:1.{interface.number}",
            bInterfaceNumber="%02x" % interface.number,
            bInterfaceClass="%02x" % interface.class_,
            bInterfaceSubClass="%02x" % interface.subclass,
            bInterfaceProtocol="%02x" % interface.protocol,
        )
        if interface.driver:
            link(folder / "driver", sys / "bus/usb/drivers" / interface.driver)
        for node in interface.nodes:
            if node.startswith("net/"):
                (folder / node).mkdir(parents=True)
            else:
                fill(folder / node, dev="8:0", uevent=f"MAJOR=8\nDEVNAME={node}")


def link(at: Path, target: Path) -> None:
    """A symbolic link to a folder, which is made if it is not there."""
    target.mkdir(parents=True, exist_ok=True)
    at.parent.mkdir(parents=True, exist_ok=True)
    at.unlink(missing_ok=True)
    at.symlink_to(target)


def here(device: Device, busid: str, devnum: int = 2) -> Device:
    """The same device as the importing machine sees it."""
    return replace(device, busid=busid, busnum=int(busid.partition("-")[0]), devnum=devnum)


def vhci_tree(sys: Path) -> Path:
    """One controller with two ports of each kind, on buses 3 and 4, all free."""
    vhci = fill(sys / "devices/platform/vhci_hcd.0", attach="", detach="", status=status_text({}))
    for number, speed in ((3, 480), (4, 5000)):
        hub = fill(vhci / f"usb{number}", speed=speed, serial="vhci_hcd.0", authorized_default=1)
        link(sys / f"bus/usb/devices/usb{number}", hub)
    return vhci


def status_text(used: dict[int, str]) -> str:
    """A status file of :func:`vhci_tree`; ``used`` holds the text after a port's number."""
    lines = ["hub port sta spd dev      sockfd local_busid"]
    for number, hub in enumerate(("hs", "hs", "ss", "ss")):
        rest = used.get(number, "004 000 00000000 000000 0-0")
        lines.append(f"{hub}  {number:04d} {rest}")
    return "\n".join(lines)


_ESCAPE = re.compile(rb"\\x([0-9a-f]{2})")


def captured(name: str, root: Path) -> Path:
    """Build a tree that was captured from a virtual machine; return what stands for /sys."""
    made: set[Path] = set()
    for line in (CAPTURES / f"{name}.txt").read_bytes().splitlines():
        path, tab, value = line.partition(b"\t")
        path, arrow, target = path.partition(b" -> ")
        at = root / path.decode().lstrip("/")
        if at.parent not in made:
            at.parent.mkdir(parents=True, exist_ok=True)
            made.add(at.parent)
        if arrow:
            at.symlink_to(target.decode())
        elif tab:
            raw = _ESCAPE.sub(lambda m: bytes([int(m[1], 16)]), value)
            at.write_bytes(raw if at.name == "descriptors" else raw + b"\n")
            if at.name == "nports":
                # These can be written only, so the capture has not got them.
                fill(at.parent, attach="", detach="")
    return root / "sys"
