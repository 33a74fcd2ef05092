# SPDX-License-Identifier: GPL-3.0-or-later
"""Sleep, as logind tells of it (org.freedesktop.login1(5), inhibitor locks)."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable

from usbipsshd.bus.connection import Connection
from usbipsshd.bus.values import BusError, Disconnected

log = logging.getLogger(__name__)

_NAME = "org.freedesktop.login1"
_PATH = "/org/freedesktop/login1"
_MANAGER = "org.freedesktop.login1.Manager"

SLEEP_SECONDS = 4.5
"""How long giving devices back may delay the sleep; logind allows 5 s (InhibitDelayMaxSec)."""


class Logind:
    """Delays each sleep until ``before`` is done, and calls ``after`` when it is over.

    vhci refuses to suspend while a port is connected (drivers/usb/usbip/vhci_hcd.c), so without
    this a machine with an attached device would not sleep at all.
    """

    def __init__(
        self,
        bus: Connection,
        *,
        before: Callable[[], Awaitable[None]],
        after: Callable[[], None],
    ) -> None:
        self._bus = bus
        self._before = before
        self._after = after
        self._lock = -1
        self._sleeps: asyncio.Queue[bool] = asyncio.Queue()

    async def run(self) -> None:
        """Watch until cancelled; returns at once on a machine without logind."""
        try:
            await self._bus.listen(_NAME, _PATH, _MANAGER, "PrepareForSleep", self._prepare)
            await self._take_lock()
            while True:
                if await self._sleeps.get():
                    await self._to_sleep()
                else:
                    log.info("awake again: devices come back")
                    self._after()
                    await self._take_lock()
        except (BusError, Disconnected, TimeoutError) as error:
            log.info("no logind: devices are not given back before sleep (%s)", error)
        finally:
            self._drop_lock()

    def _prepare(self, values: tuple[object, ...]) -> None:
        if values in ((True,), (False,)):
            self._sleeps.put_nowait(values == (True,))

    async def _to_sleep(self) -> None:
        log.info("before sleep: giving devices back")
        try:
            async with asyncio.timeout(SLEEP_SECONDS):
                await self._before()
        except TimeoutError:
            log.warning("not every device could be given back before sleep")
        finally:
            self._drop_lock()

    async def _take_lock(self) -> None:
        fds: list[int] = []
        await self._bus.call(
            _NAME,
            _PATH,
            _MANAGER,
            "Inhibit",
            "ssss",
            ["sleep", "usbipsshd", "Gives USB devices back before sleep", "delay"],
            fds=fds,
        )
        self._drop_lock()
        if fds:
            self._lock = fds.pop(0)
        for fd in fds:
            os.close(fd)

    def _drop_lock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
