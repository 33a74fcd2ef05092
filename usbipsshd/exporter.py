# SPDX-License-Identifier: GPL-3.0-or-later
"""Gives devices that this machine's usbip-host holds back to their own drivers.

Order and formats: drivers/usb/usbip/stub_main.c and stub_dev.c. Unbinding a
device in use can crash the kernel, so its connection is ended first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path

from usbipsshd.device import USBIP_HOST
from usbipsshd.errors import Code, UsbipError
from usbipsshd.localusb import LocalUsb, read_text
from usbipsshd.sysfs import write
from usbipsshd.udev import Events

log = logging.getLogger(__name__)

IN_USE = "2"
IDLE_SECONDS = 10.0
LOOK_SECONDS = 0.1


class LocalExporter:
    """usbip-host below ``sys``; one device at a time."""

    def __init__(self, sys: Path, usb: LocalUsb, events: Events) -> None:
        self._driver = sys / "bus/usb/drivers" / USBIP_HOST
        self._probe = sys / "bus/usb/drivers_probe"
        self._usb = usb
        self._events = events
        self._one_at_a_time = asyncio.Lock()

    def available(self) -> bool:
        """Whether usbip-host is loaded."""
        return self._driver.is_dir()

    async def unbind(self, busid: str) -> None:
        """Give one device back; raise :exc:`UsbipError` (DeviceBusy, DeviceFailed)."""
        async with self._one_at_a_time:
            try:
                await self._unbind(busid)
            except OSError as error:
                raise UsbipError(
                    Code.DEVICE_FAILED,
                    f"This machine could not give {busid} back: {error.strerror}.",
                ) from None

    async def _unbind(self, busid: str) -> None:
        folder = self._usb.path(busid)
        if read_text(folder / "usbip_status") == IN_USE:
            with contextlib.suppress(OSError):
                write(folder / "usbip_sockfd", "-1")
            await self._idle(busid, folder)
        write(self._driver / "unbind", busid)
        with contextlib.suppress(OSError):
            write(self._driver / "match_busid", f"del {busid}")
        try:
            write(self._driver / "rebind", busid)
        except OSError:
            write(self._probe, busid)
        log.info("gave %s back to this machine", busid)

    async def _idle(self, busid: str, folder: Path) -> None:
        try:
            async with asyncio.timeout(IDLE_SECONDS):
                while read_text(folder / "usbip_status") == IN_USE:
                    await self._events.wait(LOOK_SECONDS)
        except TimeoutError:
            raise UsbipError(
                Code.DEVICE_BUSY,
                f"The device {busid} is still in use by another machine; detach it there first.",
            ) from None
