# SPDX-License-Identifier: GPL-3.0-or-later
"""Sleep, as logind tells of it (org.freedesktop.login1(5), inhibitor locks)."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from enum import Enum

from usbipsshd.bus.connection import Connection
from usbipsshd.bus.values import BusError, Disconnected, Variant

log = logging.getLogger(__name__)

_NAME = "org.freedesktop.login1"
_PATH = "/org/freedesktop/login1"
_MANAGER = "org.freedesktop.login1.Manager"
_PROPERTIES = "org.freedesktop.DBus.Properties"

SHARE = 0.9
"""How much of what logind allows giving devices back may take."""
USUAL_SECONDS = 5.0
"""What logind allows where nobody has set it (InhibitDelayMaxSec), and it does not say."""
MOST_SECONDS = 300.0
"""Whatever logind allows: nobody waits longer for a machine to sleep."""
ASK_SECONDS = 1.0
"""For logind to say what it allows; it counts as part of that."""


class _News(Enum):
    SLEEP = "the machine is about to sleep"
    AWAKE = "it is awake again"
    BACK = "logind is there, perhaps anew: it knows nothing of an inhibitor"


def allowed(value: object) -> float:
    """How long a sleep may be delayed by logind's InhibitDelayMaxUSec, in seconds."""
    if isinstance(value, Variant):
        value = value.value
    if not isinstance(value, int) or value <= 0:
        return USUAL_SECONDS * SHARE
    return min(value / 1_000_000, MOST_SECONDS) * SHARE


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
        self._asleep = False
        self._news: asyncio.Queue[_News] = asyncio.Queue()

    @property
    def holding(self) -> bool:
        """Whether the machine's next sleep waits for us."""
        return self._lock >= 0

    async def run(self) -> None:
        """Watch until cancelled, or the bus is gone. Logind may come, go and be restarted."""
        try:
            if await self._bus.signals.listen(
                _NAME,
                _PATH,
                _MANAGER,
                "PrepareForSleep",
                self._prepare,
                owner_changed=self._owner_changed,
            ):
                await self._take_lock()
            else:
                log.info("no logind: devices are not given back before sleep")
            while True:
                await self._act(await self._news.get())
        except (BusError, Disconnected, TimeoutError) as error:
            log.info("devices are not given back before sleep: %s", error)
        finally:
            self._drop_lock()

    async def _act(self, news: _News) -> None:
        if news is _News.SLEEP:
            await self._to_sleep()
            return
        if self._asleep:
            # One that was restarted meanwhile does not tell of the end of that sleep.
            self._asleep = False
            log.info("awake again: devices come back")
            self._after()
        await self._take_lock()

    def _owner_changed(self, present: bool) -> None:
        if present:
            self._news.put_nowait(_News.BACK)

    def _prepare(self, values: tuple[object, ...]) -> None:
        if values in ((True,), (False,)):
            self._news.put_nowait(_News.SLEEP if values == (True,) else _News.AWAKE)

    async def _to_sleep(self) -> None:
        log.info("before sleep: giving devices back")
        self._asleep = True
        begun = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(begun + await self._allowed()):
                await self._before()
        except TimeoutError:
            log.warning("not every device could be given back before sleep")
        finally:
            self._drop_lock()

    async def _allowed(self) -> float:
        """Seconds that its sleep may be delayed."""
        try:
            (value,) = await self._bus.call(
                _NAME, _PATH, _PROPERTIES, "Get", "ss", [_MANAGER, "InhibitDelayMaxUSec"],
                timeout=ASK_SECONDS,
            )  # fmt: skip
        except (BusError, Disconnected, TimeoutError, ValueError):
            value = None
        return allowed(value)

    async def _take_lock(self) -> None:
        fds: list[int] = []
        try:
            await self._bus.call(
                _NAME,
                _PATH,
                _MANAGER,
                "Inhibit",
                "ssss",
                ["sleep", "usbipsshd", "Gives USB devices back before sleep", "delay"],
                fds=fds,
            )
        except (BusError, TimeoutError) as error:
            # It may be going just now; its successor is asked when it is there.
            log.warning("logind grants no delay before sleep: %s", error)
        self._drop_lock()
        if fds:
            self._lock = fds.pop(0)
        for fd in fds:
            os.close(fd)

    def _drop_lock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
