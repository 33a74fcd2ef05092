# SPDX-License-Identifier: GPL-3.0-or-later
"""The connections that one session holds for devices, and who notices that one ended by itself."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from usbipsshd.errors import Code
from usbipsshd.finish import to_the_end
from usbipsshd.session.agent import Agent
from usbipsshd.session.carrier import Carrier
from usbipsshd.session.failure import Failure

log = logging.getLogger(__name__)

MAX_DEVICES = 64
"""Of one remote, for each direction."""

Listen = Callable[[Sequence[str], str], Awaitable[Carrier]]
"""Makes a carrier, from the connectors there and the agent's folder."""
Ended = Callable[[], Coroutine[Any, Any, None]]


class Held:
    """Carriers by the bus id of their device; whoever changes one holds :meth:`device`."""

    def __init__(self, agent: Agent, *, too_many: str, prefix: str = "") -> None:
        """``prefix`` tells these devices from others with the same bus ids, where they are held.

        ``too_many`` is why no more than ``MAX_DEVICES`` are.
        """
        self._agent = agent
        self._too_many = too_many
        self._prefix = prefix
        self._carriers: dict[str, Carrier] = {}
        self._watchers: dict[str, asyncio.Task[None]] = {}

    def __contains__(self, busid: str) -> bool:
        return busid in self._carriers

    def device(self, busid: str) -> AbstractAsyncContextManager[None]:
        """Hold the device: whatever else concerns it waits."""
        return self._agent.device(self._prefix + busid)

    def check_free(self, busid: str) -> None:
        """Return if it may be added; else raise AlreadyAttached or LimitsExceeded."""
        if busid in self._carriers:
            raise Failure(Code.ALREADY_ATTACHED)
        if len(self._carriers) >= MAX_DEVICES:
            raise Failure(Code.LIMITS_EXCEEDED, self._too_many)

    def add(self, busid: str, carrier: Carrier, ended: Ended) -> None:
        """Hold a connection from now on; once it has ended by itself and is closed, do ``ended``.

        That is done while the device is held, and to the end.
        """
        self._carriers[busid] = carrier
        self._watchers[busid] = asyncio.create_task(self._watch(busid, carrier, ended))

    async def _watch(self, busid: str, carrier: Carrier, ended: Ended) -> None:
        why = await asyncio.shield(carrier.ended)
        async with self.device(busid):
            if self._carriers.get(busid) is not carrier or self._agent.ended.done():
                return
            log.info("the connection of %s ended %s", busid, why)
            await to_the_end(self._end_by_itself(busid, carrier, ended))

    async def _end_by_itself(self, busid: str, carrier: Carrier, ended: Ended) -> None:
        del self._carriers[busid]
        del self._watchers[busid]
        await carrier.close()
        await ended()

    def take(self, busid: str) -> Carrier | None:
        """Hold it no longer; whoever takes it closes it."""
        carrier = self._carriers.pop(busid, None)
        if carrier is not None:
            self._watchers.pop(busid).cancel()
        return carrier

    def busids(self) -> Sequence[str]:
        """The devices that have a connection now."""
        return sorted(self._carriers)

    def statistics(self, busid: str) -> tuple[int, int]:
        """Bytes received from the remote and sent to it; NotAttached."""
        carrier = self._carriers.get(busid)
        if carrier is None:
            raise Failure(Code.NOT_ATTACHED)
        return carrier.statistics()

    async def close(self) -> None:
        """Close every connection; the agent gives back what is its part when its input ends."""
        watchers = list(self._watchers.values())
        for watcher in watchers:
            watcher.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)
        carriers = list(self._carriers.values())
        self._carriers.clear()
        self._watchers.clear()
        await asyncio.gather(*(carrier.close() for carrier in carriers))
