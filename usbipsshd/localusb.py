# SPDX-License-Identifier: GPL-3.0-or-later
"""This machine's USB devices, read from sysfs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from usbipsshd.descriptors import MAX_SIZE
from usbipsshd.device import (
    BadDevice,
    Device,
    Interface,
    busid_key,
    device_from_attributes,
    interface_from_attributes,
    is_busid,
)

_DEVICE_FILES = (
    "idVendor", "idProduct", "bcdDevice", "bDeviceClass", "bDeviceSubClass", "bDeviceProtocol",
    "busnum", "devnum", "speed", "manufacturer", "product", "serial", "usbip_status",
    "bConfigurationValue",
)  # fmt: skip
_INTERFACE_FILES = (
    "bInterfaceNumber", "bInterfaceClass", "bInterfaceSubClass", "bInterfaceProtocol", "interface",
)  # fmt: skip


def read_text(path: Path) -> str:
    """The file's text without its final newline; empty if it is not there (any more)."""
    try:
        return path.read_bytes().decode("utf-8", "replace").rstrip("\n")
    except OSError:
        return ""


def driver_of(folder: Path) -> str:
    """The name of the driver bound to a device or interface; empty if none is."""
    try:
        return (folder / "driver").readlink().name
    except OSError:
        return ""


class LocalUsb:
    """Reads ``sys/bus/usb/devices``; ``sys`` may be a made-up tree.

    ``udev`` is the folder of udev's database, a file for each device that its rules have run for.
    """

    def __init__(self, sys: Path, udev: Path | None = None) -> None:
        self._folder = sys / "bus/usb/devices"
        self._udev = udev

    def path(self, busid: str) -> Path:
        """The device's folder."""
        return self._folder / busid

    def devices(self) -> list[Device]:
        """Every device but the root hubs, in tree order; what vanishes meanwhile is left out."""
        try:
            names = [n for n in os.listdir(self._folder) if is_busid(n)]  # noqa: PTH208
        except OSError:
            return []
        found = (self.device(n) for n in sorted(names, key=busid_key))
        return [d for d in found if d is not None]

    def device(self, busid: str, *, descriptors: bool = False) -> Device | None:
        """One device, or None if it is not there or half gone."""
        folder = self._folder / busid
        attrs = {name: read_text(folder / name) for name in _DEVICE_FILES}
        attrs["driver"] = driver_of(folder)
        bus = busid.partition("-")[0]
        attrs["bus_serial"] = read_text(self._folder / f"usb{bus}" / "serial")
        try:
            raw = self.descriptors(busid) if descriptors else b""
            return device_from_attributes(busid, attrs, list(self._interfaces(folder)), raw)
        except BadDevice:
            return None

    def known_to_udev(self, busid: str) -> bool:
        """Whether udev is done with all of the device's nodes: owners, links and what it looks for.

        The kernel tells it of a disk when the partitions are there, too. True where no udev runs.
        """
        if self._udev is None or not self._udev.is_dir():
            return True
        for path, _, files in os.walk(self._folder / busid):
            if "dev" in files and (number := read_text(Path(path) / "dev")):
                kind = "b" if "/block/" in path else "c"
                if not (self._udev / f"{kind}{number}").exists():
                    return False
        return True

    def descriptors(self, busid: str) -> bytes:
        """The raw descriptors; empty if they cannot be read."""
        try:
            with (self._folder / busid / "descriptors").open("rb") as file:
                return file.read(MAX_SIZE)
        except OSError:
            return b""

    def _interfaces(self, folder: Path) -> Iterator[Interface]:
        prefix = folder.name + ":"
        try:
            names = sorted(n for n in os.listdir(folder) if n.startswith(prefix))  # noqa: PTH208
        except OSError:
            return
        for name in names:
            path = folder / name
            attrs = {n: read_text(path / n) for n in _INTERFACE_FILES}
            attrs["driver"] = driver_of(path)
            try:
                yield interface_from_attributes(attrs, list(_nodes(path)))
            except BadDevice:
                continue


def _nodes(folder: Path) -> Iterator[str]:
    """Names below /dev of everything below ``folder``; network interfaces as ``net/NAME``."""
    for path, folders, files in os.walk(folder):
        if path.endswith("/net"):
            yield from (f"net/{name}" for name in folders)
            folders.clear()
        elif "dev" in files:
            uevent = read_text(Path(path) / "uevent")
            for line in uevent.splitlines():
                if line.startswith("DEVNAME=") and not line.startswith("DEVNAME=bsg/"):
                    yield line.removeprefix("DEVNAME=")
