# SPDX-License-Identifier: GPL-3.0-or-later
"""Notices from udev that something appeared, changed or vanished here.

They are only a hint to look again: what is true is read from sysfs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol

import pyudev

log = logging.getLogger(__name__)

SUBSYSTEMS = (
    "usb", "block", "input", "hidraw", "tty", "net", "usbmisc", "sound", "video4linux", "printer",
)  # fmt: skip


class Events:
    """Wakes whoever waits for the next notice, and tells listeners of each burst once."""

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[None]] = set()
        self._listeners: list[Callable[[], None]] = []
        self._scheduled = False

    def listen(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` after each burst of notices."""
        self._listeners.append(listener)

    def notify(self) -> None:
        """Something happened: wake everyone waiting."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._waiters.clear()
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_later(0.05, self._tell)

    def _tell(self) -> None:
        self._scheduled = False
        for listener in self._listeners:
            listener()

    async def wait(self, seconds: float) -> None:
        """Wait for the next notice, ``seconds`` at most."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            async with asyncio.timeout(seconds):
                await waiter
        except TimeoutError:
            pass
        finally:
            self._waiters.discard(waiter)


class EventSource(Protocol):
    """Where notices come from; tests have their own."""

    def running(self, events: Events) -> contextlib.AbstractAsyncContextManager[None]:
        """Deliver notices while the context lasts."""
        ...


class Udev:
    """Notices from udevd, sent after its rules have run, so that nodes have their owners."""

    @asynccontextmanager
    async def running(self, events: Events) -> AsyncIterator[None]:
        """Deliver notices while the context lasts."""
        monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source="udev")
        for name in SUBSYSTEMS:
            monitor.filter_by(name)
        monitor.start()
        loop = asyncio.get_running_loop()

        def readable() -> None:
            try:
                while monitor.poll(timeout=0) is not None:
                    pass
            except OSError as error:
                # ENOBUFS: notices were lost under load. Looking again is the cure.
                log.debug("udev monitor: %s", error)
            events.notify()

        loop.add_reader(monitor.fileno(), readable)
        try:
            yield
        finally:
            loop.remove_reader(monitor.fileno())
