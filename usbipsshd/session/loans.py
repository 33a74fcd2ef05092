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
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from usbipsshd.device import Device
from usbipsshd.errors import Code
from usbipsshd.finish import to_the_end
from usbipsshd.session.agent import Agent
from usbipsshd.session.carrier import Carrier
from usbipsshd.session.failure import Failure
from usbipsshd.session.held import Held, Listen

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
        # The remote may have a device of its own with that bus id.
        self.held = Held(agent, too_many="too many devices for one remote", prefix="port ")
        """What the remote has from this machine now."""

    async def ready(self, busid: str, speed: int) -> str:
        """See that the remote could attach it; the agent's folder. Raises :exc:`Failure`."""
        return await self._agent.port(busid, speed)

    async def lend(self, loan: Loan, ours: socket.socket) -> At:
        """Attach it there, with ``ours``, which is taken over, as the way to its kernel.

        Bus id and port there. Raises :exc:`Failure`.
        """
        with contextlib.ExitStack() as stack:
            stack.callback(ours.close)
            async with self.held.device(loan.busid):
                self.held.check_free(loan.busid)
                carrier, at = await self._establish(loan, ours, stack)
                self.held.add(loan.busid, carrier, lambda: self._ended(loan.busid))
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

    async def _ended(self, busid: str) -> None:
        await self._detach(busid)
        if not self._agent.ended.done():
            await self._returned(busid)

    async def take_back(self, busid: str) -> None:
        """Detach it there; NotAttached when it is none of ours. Cancelled, it is finished all the
        same.
        """
        async with self.held.device(busid):
            carrier = self.held.take(busid)
            if carrier is None:
                raise Failure(Code.NOT_ATTACHED)
            await to_the_end(self._take_back(busid, carrier))

    async def _take_back(self, busid: str, carrier: Carrier) -> None:
        # The port first: its kernel then ends the connection in order.
        try:
            await self._agent.detach(busid)
        finally:
            await carrier.close()

    async def look(self, busid: str) -> Device:
        """What the device is there: its bus id and nodes; NotAttached."""
        if busid not in self.held:
            raise Failure(Code.NOT_ATTACHED)
        return await self._agent.look(busid)


async def _first(one: Awaitable[None], other: asyncio.Task[At]) -> bool:
    """Wait for either; whether ``one`` is done. It is cancelled if not."""
    task = asyncio.ensure_future(one)
    try:
        await asyncio.wait([task, other], return_when=asyncio.FIRST_COMPLETED)
        return task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
