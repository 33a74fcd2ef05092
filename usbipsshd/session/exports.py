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
from usbipsshd.finish import to_the_end
from usbipsshd.session.agent import Agent
from usbipsshd.session.carrier import Carrier
from usbipsshd.session.failure import Failure
from usbipsshd.session.held import Held, Listen

log = logging.getLogger(__name__)

EXPORT_LIMIT = 20.0
"""Seconds from the request to the near end, without what undoing takes."""

T = TypeVar("T")
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


class Exports:
    """The exports of one connection, by bus id.

    ``listen`` makes a carrier; ``released`` is told of exports that ended by themselves.
    """

    def __init__(self, agent: Agent, listen: Listen, released: Released) -> None:
        self._agent = agent
        self._listen = listen
        self._released = released
        self.held = Held(agent, too_many="too many devices from one remote")
        """What the remote exports for this session now."""

    async def export(self, wanted: Wanted) -> socket.socket:
        """Export a device; the near end of its connection, which the caller closes.

        The remote's kernel has its end by then. Raises :exc:`Failure`.
        """
        async with self.held.device(wanted.busid):
            self.held.check_free(wanted.busid)
            carrier, near = await self._establish(wanted)
            self.held.add(wanted.busid, carrier, lambda: self._ended(wanted))
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

    async def _ended(self, wanted: Wanted) -> None:
        failure = await self._give_back(wanted.busid, rebind=wanted.rebind)
        if not self._agent.ended.done():
            await self._released(wanted.busid, failure)

    async def release(self, busid: str, *, rebind: bool) -> None:
        """End an export and give the device back; NotAttached when it is none of ours.

        Cancelled, it is finished all the same.
        """
        async with self.held.device(busid):
            carrier = self.held.take(busid)
            if carrier is None:
                raise Failure(Code.NOT_ATTACHED)
            await to_the_end(self._release(busid, carrier, rebind))

    async def _release(self, busid: str, carrier: Carrier, rebind: bool) -> None:
        await carrier.close()
        await self._agent.release(busid, rebind=rebind)

    async def unbind(self, busid: str) -> None:
        """Take a device from the remote's usbip-host, ours or not."""
        async with self.held.device(busid):
            carrier = self.held.take(busid)
            if carrier is not None:
                await to_the_end(self._release(busid, carrier, rebind=True))
            else:
                await to_the_end(self._agent.unbind(busid))

    async def reset(self, busid: str, vendor_id: int, product_id: int, devid: int) -> None:
        """Reset a device's port; AlreadyAttached while it is exported here."""
        async with self.held.device(busid):
            if busid in self.held:
                raise Failure(Code.ALREADY_ATTACHED)
            await to_the_end(self._agent.reset(busid, vendor_id, product_id, devid))
