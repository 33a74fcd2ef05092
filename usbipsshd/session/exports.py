# SPDX-License-Identifier: GPL-3.0-or-later
"""The devices that this session has the remote export.

An export is whole or it is not: whatever fails or is cancelled on the way, the
device is given back before the caller hears of it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from usbipsshd.errors import Code
from usbipsshd.session.agent import Agent
from usbipsshd.session.carrier import Carrier
from usbipsshd.session.failure import Failure

log = logging.getLogger(__name__)

EXPORT_LIMIT = 20.0
"""Seconds from the request to the near end, without what undoing takes."""
MAX_EXPORTS = 64

T = TypeVar("T")
Listen = Callable[[Sequence[str], str], Awaitable[Carrier]]
Released = Callable[[str, Failure | None], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which device to export: it must still be this one."""

    busid: str
    vendor_id: int
    product_id: int
    devid: int
    unmount: bool
    rebind: bool
    """Whether its own driver gets it back when the connection ends by itself."""


async def to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Await ``work``, and if cancelled meanwhile let it finish first.

    For work that is bounded in time and must not be left half done.
    """
    task = asyncio.create_task(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        if not task.cancelled() and task.exception() is not None:
            log.info("while being cancelled: %s", task.exception())
        raise asyncio.CancelledError
    return task.result()


class Exports:
    """The exports of one connection, by bus id.

    ``listen`` makes a carrier; ``released`` is told of exports that ended by themselves.
    """

    def __init__(self, agent: Agent, listen: Listen, released: Released) -> None:
        self._agent = agent
        self._listen = listen
        self._released = released
        self._held: dict[str, Carrier] = {}
        self._watchers: dict[str, asyncio.Task[None]] = {}

    async def export(self, wanted: Wanted) -> socket.socket:
        """Export a device; the near end of its connection, which the caller closes.

        The remote's kernel has its end by then. Raises :exc:`Failure`.
        """
        async with self._agent.device(wanted.busid):
            if wanted.busid in self._held:
                raise Failure(Code.ALREADY_ATTACHED)
            if len(self._held) >= MAX_EXPORTS:
                raise Failure(Code.LIMITS_EXCEEDED, "too many devices from one remote")
            carrier, near = await self._establish(wanted)
            self._held[wanted.busid] = carrier
            self._watchers[wanted.busid] = asyncio.create_task(self._watch(wanted, carrier))
            return near

    async def _establish(self, wanted: Wanted) -> tuple[Carrier, socket.socket]:
        # What the agent was asked for goes on when we are cancelled: undoing waits for it.
        asked: list[asyncio.Task[Any]] = []
        carrier: Carrier | None = None

        def ask(work: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
            task = asyncio.create_task(work)
            asked.append(task)
            return asyncio.shield(task)

        try:
            async with asyncio.timeout(EXPORT_LIMIT):
                folder = await ask(
                    self._agent.bind(
                        wanted.busid,
                        wanted.vendor_id,
                        wanted.product_id,
                        wanted.devid,
                        unmount=wanted.unmount,
                    )
                )
                carrier = await self._listen(self._agent.hello.connectors, folder)
                await ask(
                    self._agent.connect(
                        wanted.busid, carrier.connector, carrier.address, carrier.token
                    )
                )
                # The kernel has a socket by now. That it is ours is what the token tells.
                await carrier.established()
                return carrier, carrier.start()
        except BaseException as error:
            await to_the_end(self._undo(wanted.busid, asked, carrier))
            if isinstance(error, TimeoutError):
                raise Failure(Code.TIMED_OUT, "the device was not ready in time") from None
            raise

    async def _undo(
        self, busid: str, asked: Sequence[asyncio.Task[Any]], carrier: Carrier | None
    ) -> None:
        if carrier is not None:
            await carrier.close()
        if asked:
            await asyncio.wait(asked)
        bind_error = asked[0].exception() if asked else None
        if bind_error is not None:
            return  # the agent has undone its part itself
        for task in asked[1:]:
            task.exception()
        await self._give_back(busid)

    async def _give_back(self, busid: str, *, rebind: bool = True) -> Failure | None:
        try:
            await self._agent.release(busid, rebind=rebind)
        except Failure as failure:
            log.warning("%s was not given back: %s", busid, failure)
            return failure
        return None

    async def _watch(self, wanted: Wanted, carrier: Carrier) -> None:
        busid = wanted.busid
        why = await asyncio.shield(carrier.ended)
        async with self._agent.device(busid):
            if self._held.get(busid) is not carrier or self._agent.ended.done():
                return
            log.info("the connection of %s ended %s", busid, why)
            await to_the_end(self._end_by_itself(wanted, carrier))

    async def _end_by_itself(self, wanted: Wanted, carrier: Carrier) -> None:
        busid = wanted.busid
        del self._held[busid]
        del self._watchers[busid]
        await carrier.close()
        failure = await self._give_back(busid, rebind=wanted.rebind)
        if not self._agent.ended.done():
            await self._released(busid, failure)

    async def release(self, busid: str, *, rebind: bool) -> None:
        """End an export and give the device back; NotAttached when it is none of ours.

        Cancelled, it is finished all the same.
        """
        async with self._agent.device(busid):
            carrier = self._held.pop(busid, None)
            if carrier is None:
                raise Failure(Code.NOT_ATTACHED)
            watcher = self._watchers.pop(busid)
            watcher.cancel()
            await to_the_end(self._release(busid, carrier, rebind))

    async def _release(self, busid: str, carrier: Carrier, rebind: bool) -> None:
        await carrier.close()
        await self._agent.release(busid, rebind=rebind)

    async def unbind(self, busid: str) -> None:
        """Take a device from the remote's usbip-host, ours or not."""
        async with self._agent.device(busid):
            carrier = self._held.pop(busid, None)
            if carrier is not None:
                self._watchers.pop(busid).cancel()
                await to_the_end(self._release(busid, carrier, rebind=True))
            else:
                await to_the_end(self._agent.unbind(busid))

    async def reset(self, busid: str, vendor_id: int, product_id: int, devid: int) -> None:
        """Reset a device's port; AlreadyAttached while it is exported here."""
        async with self._agent.device(busid):
            if busid in self._held:
                raise Failure(Code.ALREADY_ATTACHED)
            await to_the_end(self._agent.reset(busid, vendor_id, product_id, devid))

    def busids(self) -> list[str]:
        """The devices that are exported now."""
        return sorted(self._held)

    def statistics(self, busid: str) -> tuple[int, int]:
        """Bytes received and sent for an export; NotAttached."""
        carrier = self._held.get(busid)
        if carrier is None:
            raise Failure(Code.NOT_ATTACHED)
        return carrier.statistics()

    async def close(self) -> None:
        """Close every connection; the agent gives the devices back when its input ends."""
        watchers = list(self._watchers.values())
        for watcher in watchers:
            watcher.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)
        carriers = list(self._held.values())
        self._held.clear()
        self._watchers.clear()
        await asyncio.gather(*(carrier.close() for carrier in carriers))
