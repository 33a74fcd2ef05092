# SPDX-License-Identifier: GPL-3.0-or-later
"""The devices of this machine that this session has the remote attach.

The other way round than :mod:`usbipsshd.session.exports`: this machine's usbip-host has its end
of the connection before the remote's vhci is given the other one. A loan is whole or
it is not: whatever fails or is cancelled on the way, the port there is free before the caller
hears of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from usbipsshd.device import Device
from usbipsshd.errors import Code
from usbipsshd.session.agent import Agent
from usbipsshd.session.carrier import Carrier
from usbipsshd.session.exports import MAX_EXPORTS, Listen, to_the_end
from usbipsshd.session.failure import Failure

log = logging.getLogger(__name__)

LEND_LIMIT = 45.0
"""Seconds from the request until the device has an address there, without what undoing takes."""

Returned = Callable[[str], Awaitable[None]]
At = tuple[str, int]
"""A bus id and a port there."""


@dataclass(frozen=True, slots=True)
class Loan:
    """A device of this machine."""

    busid: str
    devid: int
    speed: int
    """As vhci numbers it."""


class Loans:
    """The loans of one connection, by the device's bus id on this machine.

    ``listen`` makes a carrier; ``returned`` is told of loans that ended by themselves.
    """

    def __init__(self, agent: Agent, listen: Listen, returned: Returned) -> None:
        self._agent = agent
        self._listen = listen
        self._returned = returned
        self._held: dict[str, Carrier] = {}
        self._watchers: dict[str, asyncio.Task[None]] = {}

    async def ready(self, busid: str, speed: int) -> str:
        """See that the remote could attach it; the agent's folder. Raises :exc:`Failure`."""
        return await self._agent.port(busid, speed)

    async def lend(self, loan: Loan, ours: socket.socket) -> At:
        """Attach it there, with ``ours``, which is taken over, as the way to its kernel.

        Bus id and port there. Raises :exc:`Failure`.
        """
        with contextlib.ExitStack() as stack:
            stack.callback(ours.close)
            async with self._agent.device(_key(loan.busid)):
                if loan.busid in self._held:
                    raise Failure(Code.ALREADY_ATTACHED)
                if len(self._held) >= MAX_EXPORTS:
                    raise Failure(Code.LIMITS_EXCEEDED, "too many devices for one remote")
                carrier, at = await self._establish(loan, ours, stack)
                self._held[loan.busid] = carrier
                self._watchers[loan.busid] = asyncio.create_task(self._watch(loan.busid, carrier))
                return at

    async def _establish(
        self, loan: Loan, ours: socket.socket, stack: contextlib.ExitStack
    ) -> tuple[Carrier, At]:
        carrier: Carrier | None = None
        attaching: asyncio.Task[At] | None = None
        try:
            async with asyncio.timeout(LEND_LIMIT):
                folder = await self.ready(loan.busid, loan.speed)
                carrier = await self._listen(self._agent.hello.connectors, folder)
                attaching = asyncio.create_task(
                    self._agent.attach(
                        loan.busid,
                        loan.devid,
                        loan.speed,
                        connector=carrier.connector,
                        address=carrier.address,
                        token=carrier.token,
                    )
                )
                # The device cannot start there before the bytes flow, so nobody waits for the
                # answer first.
                if await _first(carrier.established(), attaching):
                    carrier.start_with(ours)
                    stack.pop_all()
                return carrier, await asyncio.shield(attaching)
        except BaseException as error:
            await to_the_end(self._undo(loan.busid, carrier, attaching))
            if isinstance(error, TimeoutError):
                raise Failure(Code.TIMED_OUT, "the device was not ready in time") from None
            raise

    async def _undo(
        self, busid: str, carrier: Carrier | None, attaching: asyncio.Task[At] | None
    ) -> None:
        if carrier is not None:
            await carrier.close()
        if attaching is None:
            return
        await asyncio.wait([attaching])
        if attaching.exception() is None:
            await self._detach(busid)

    async def _detach(self, busid: str) -> None:
        try:
            await self._agent.detach(busid)
        except Failure as failure:
            log.warning("the port of %s was not freed: %s", busid, failure)

    async def _watch(self, busid: str, carrier: Carrier) -> None:
        why = await asyncio.shield(carrier.ended)
        async with self._agent.device(_key(busid)):
            if self._held.get(busid) is not carrier or self._agent.ended.done():
                return
            log.info("the connection of %s ended %s", busid, why)
            await to_the_end(self._end_by_itself(busid, carrier))

    async def _end_by_itself(self, busid: str, carrier: Carrier) -> None:
        del self._held[busid]
        del self._watchers[busid]
        await carrier.close()
        await self._detach(busid)
        if not self._agent.ended.done():
            await self._returned(busid)

    async def take_back(self, busid: str) -> None:
        """Detach it there; NotAttached when it is none of ours. Cancelled, it is finished all the
        same.
        """
        async with self._agent.device(_key(busid)):
            carrier = self._held.pop(busid, None)
            if carrier is None:
                raise Failure(Code.NOT_ATTACHED)
            self._watchers.pop(busid).cancel()
            await to_the_end(self._take_back(busid, carrier))

    async def _take_back(self, busid: str, carrier: Carrier) -> None:
        # The port first: its kernel then ends the connection in order.
        try:
            await self._agent.detach(busid)
        finally:
            await carrier.close()

    async def look(self, busid: str) -> Device:
        """What the device is there: its bus id and nodes; NotAttached."""
        if busid not in self._held:
            raise Failure(Code.NOT_ATTACHED)
        return await self._agent.look(busid)

    def busids(self) -> Sequence[str]:
        """The devices that are lent now."""
        return sorted(self._held)

    def statistics(self, busid: str) -> tuple[int, int]:
        """Bytes received from the remote and sent to it; NotAttached."""
        carrier = self._held.get(busid)
        if carrier is None:
            raise Failure(Code.NOT_ATTACHED)
        return carrier.statistics()

    async def close(self) -> None:
        """Close every connection; the agent frees the ports when its input ends."""
        for watcher in self._watchers.values():
            watcher.cancel()
        await asyncio.gather(*self._watchers.values(), return_exceptions=True)
        carriers = list(self._held.values())
        self._held.clear()
        self._watchers.clear()
        await asyncio.gather(*(carrier.close() for carrier in carriers))


def _key(busid: str) -> str:
    """What is locked: the remote may have a device of its own with that bus id."""
    return f"port {busid}"


async def _first(one: Awaitable[None], other: asyncio.Task[At]) -> bool:
    """Wait for either; whether ``one`` is done. It is cancelled if not."""
    task = asyncio.ensure_future(one)
    try:
        await asyncio.wait([task, other], return_when=asyncio.FIRST_COMPLETED)
        return task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
