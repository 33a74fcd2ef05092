# SPDX-License-Identifier: GPL-3.0-or-later
"""Resets a USB device of this machine, by sysfs alone: this process has no device nodes.

Its authorization is taken and given back, which pulls it out for its drivers and resets its
configuration. (To switch its port off and on would do more, and, where the host controller tells
nothing of it, lose the device.)
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from usbipsshd.device import Device
from usbipsshd.errors import Code, UsbipError
from usbipsshd.exporter import IN_USE, LocalExporter
from usbipsshd.localusb import LocalUsb, driver_of, read_text
from usbipsshd.mounts import mounts
from usbipsshd.sysfs import this_one, write
from usbipsshd.udev import Events

BACK_SECONDS = 10.0
LOOK_SECONDS = 0.1


class LocalResetter:
    """One device after the other."""

    def __init__(
        self, usb: LocalUsb, exporter: LocalExporter, events: Events, mountinfo: Path
    ) -> None:
        self._usb = usb
        self._exporter = exporter
        self._events = events
        self._mountinfo = mountinfo
        self._one_at_a_time = asyncio.Lock()

    async def reset(self, device: Device) -> None:
        """Reset; return when it is back. Raises :exc:`UsbipError` (DeviceBusy, DeviceFailed)."""
        async with self._one_at_a_time:
            folder = self._usb.path(device.busid)
            if read_text(folder / "usbip_status") == IN_USE:
                raise _busy(device.busid, "another machine uses it")
            # What a caller was told of it is a while ago: an export may have been paused since.
            now = self._usb.device(device.busid)
            if now is not None and now.exported:
                # Pulling it out would leave usbip-host with its name.
                await self._exporter.unbind(device.busid)
            if self._mounted(folder):
                raise _busy(device.busid, "it is mounted")
            had_driver = bool(driver_of(folder))
            try:
                with this_one(folder) as itself:
                    # One that was not let through, by us or by somebody else, must not be now.
                    if read_text(itself / "authorized") != "1":
                        raise _busy(device.busid, "it is not authorized")
                    write(itself / "authorized", "0")
                    write(itself / "authorized", "1")
            except OSError as error:
                raise _failed(device.busid, f" ({error.strerror})") from None
            await self._back(device.busid, had_driver=had_driver)

    async def _back(self, busid: str, *, had_driver: bool) -> None:
        try:
            async with asyncio.timeout(BACK_SECONDS):
                while (device := self._usb.device(busid)) is None or (
                    had_driver and not device.driver
                ):
                    await self._events.wait(LOOK_SECONDS)
        except TimeoutError:
            raise _failed(busid, " (it did not come back)") from None

    def _mounted(self, folder: Path) -> bool:
        """Whether a file system, or another block device, lies on one of its disks."""
        numbers, nodes = set(), set()
        for path, folders, files in os.walk(folder):
            if "dev" in files and "/block/" in path:
                numbers.add(read_text(Path(path) / "dev"))
                nodes.add(f"/dev/{Path(path).name}")
            if path.endswith("/holders") and folders:
                return True
        return any(
            mount.number in numbers or mount.source in nodes
            for mount in mounts(read_text(self._mountinfo))
        )


def _busy(busid: str, why: str) -> UsbipError:
    return UsbipError(
        Code.DEVICE_BUSY, f"This machine's device {busid} cannot be reset: {why}; end that first."
    )


def _failed(busid: str, why: str) -> UsbipError:
    return UsbipError(
        Code.DEVICE_FAILED,
        f"This machine could not reset {busid}{why}; unplug it, and plug it in again.",
    )
