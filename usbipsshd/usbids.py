# SPDX-License-Identifier: GPL-3.0-or-later
"""Names of vendors and products, from this machine's usb.ids."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from usbipsshd.device import Device
from usbipsshd.text import clean

PLACES = (
    Path("/usr/share/misc/usb.ids"),
    Path("/usr/share/hwdata/usb.ids"),
    Path("/var/lib/usbutils/usb.ids"),
)


class UsbIds:
    """Looks names up in the file itself: 0.2 ms for one, and nothing kept in memory.

    Format: http://www.linux-usb.org/usb-ids.html. Without a file every name is empty.
    """

    def __init__(self, places: Sequence[Path] = PLACES) -> None:
        self._path = next((p for p in places if p.is_file()), None)

    def names(self, vendor_id: int, product_id: int) -> tuple[str, str]:
        """Names of vendor and product; empty where the file has none."""
        if self._path is None:
            return "", ""
        try:
            with (
                self._path.open("rb") as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
            ):
                return _lookup(data, vendor_id, product_id)
        except (OSError, ValueError):
            return "", ""

    def named(self, device: Device) -> Device:
        """The device with the names that it does not tell itself filled in."""
        if device.vendor and device.product:
            return device
        vendor, product = self.names(device.vendor_id, device.product_id)
        return replace(device, vendor=device.vendor or vendor, product=device.product or product)

    def title(self, vendor_id: int, product_id: int) -> str:
        """What a person is told in a prompt: this machine's word for it, never the device's."""
        vendor, product = self.names(vendor_id, product_id)
        ids = f"{vendor_id:04x}:{product_id:04x}"
        name = " ".join(n for n in (vendor, product) if n)
        return f"{name} ({ids})" if name else ids


def _text(line: bytes) -> str:
    return clean(line.decode("utf-8", "replace"))


def _lookup(data: mmap.mmap, vendor_id: int, product_id: int) -> tuple[str, str]:
    start = data.find(b"\n%04x  " % vendor_id)
    if start < 0:
        return "", ""
    end = data.find(b"\n", start + 1)
    vendor = _text(data[start + 7 : end])
    wanted = b"\t%04x  " % product_id
    while end >= 0 and data[end + 1 : end + 2] == b"\t":
        next_end = data.find(b"\n", end + 1)
        line = data[end + 1 : next_end if next_end >= 0 else len(data)]
        if line.startswith(wanted):
            return vendor, _text(line[len(wanted) :])
        end = next_end
    return vendor, ""
