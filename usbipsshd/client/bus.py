# SPDX-License-Identifier: GPL-3.0-or-later
"""A program's connection to a message bus: calls with a time limit, signals, and a service.

It is the daemon's own (:mod:`usbipsshd.bus.connection`), with what only clients need.
"""

from __future__ import annotations

from asyncio import Future, get_running_loop
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from usbipsshd.bus import values, wire
from usbipsshd.bus.connection import Connection
from usbipsshd.bus.serving import Limits
from usbipsshd.bus.values import BusError, Call, Disconnected, Reply, StandardError

BUS = values.BUS
BUS_PATH = values.BUS_PATH
CALL_SECONDS = 25.0
_LONGEST = 16 << 20
"""Bytes of one message; what the daemon itself sends at most."""


@dataclass(frozen=True, slots=True)
class Signal:
    """A signal that arrived; ``sender`` is a unique name, ``body`` plain values."""

    sender: str
    path: str
    interface: str
    member: str
    body: tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """A method call that arrived, for :meth:`Bus.serve`."""

    sender: str
    path: str
    interface: str
    member: str
    body: tuple[object, ...]


class _Refused(StandardError):
    """An error by its whole name."""

    def __init__(self, error: BusError) -> None:
        super().__init__("Failed", error.message)
        self.dbus_name = error.name


class Bus:
    """One connection. :meth:`connect` first, :meth:`close` at the end."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._connection: Connection | None = None
        self._listeners: list[Callable[[Signal], None]] = []
        self._service: Callable[[Asked], Reply] | None = None
        self.gone: Future[None] = get_running_loop().create_future()
        """Done when the connection has ended."""

    @property
    def name(self) -> str:
        """The unique name of this connection."""
        return str(self._connection.unique_name) if self._connection is not None else ""

    async def connect(self) -> None:
        """Log in; raise :exc:`Disconnected`."""
        connection: Connection | None = None
        try:
            connection = Connection(self._address, Limits(body=_LONGEST))
            connection.hear = self._hear
            # Whoever has a menu open may come and go; nobody's call here takes long.
            await connection.start(self._answer, follow_callers=False)
        except Exception as error:
            self._end()
            if connection is not None:
                await connection.stop(0)
            raise Disconnected(f"no message bus: {error}") from error
        connection.when_ended(self._end)
        self._connection = connection

    def _end(self) -> None:
        if not self.gone.done():
            self.gone.set_result(None)

    async def close(self) -> None:
        """End the connection; calls under way raise :exc:`Disconnected`."""
        if self._connection is not None:
            await self._connection.stop(0)
        self._end()

    async def call(  # noqa: PLR0917
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        body: Sequence[object] = (),
        *,
        timeout: float = CALL_SECONDS,  # noqa: ASYNC109
        interactive: bool = False,
        start: bool = True,
        fds: Sequence[int] = (),
        at_once: Callable[[tuple[object, ...]], None] | None = None,
    ) -> tuple[object, ...]:
        """Call a method and return its values, within ``timeout`` seconds.

        ``interactive`` allows that somebody is asked for a password; ``start`` that the bus starts
        the service. ``fds`` go along, and stay the caller's to close. ``at_once`` gets the values
        before anything that arrives after them is looked at.

        Raises :exc:`BusError`, :exc:`Disconnected`, :exc:`TimeoutError`.
        """
        if self._connection is None:
            raise Disconnected("no connection to the message bus")
        return await self._connection.call(
            destination, path, interface, member, signature, body,
            timeout=timeout, interactive=interactive, start=start, send_fds=fds, at_once=at_once,
        )  # fmt: skip

    async def subscribe(self, **rule: str) -> None:
        """Receive the signals that match (D-Bus specification, "Match Rules")."""
        text = ",".join(f"{key}='{value}'" for key, value in {"type": "signal", **rule}.items())
        await self.call(BUS, BUS_PATH, BUS, "AddMatch", "s", [text])

    def listen(self, listener: Callable[[Signal], None]) -> Callable[[], None]:
        """Call ``listener`` for each signal that arrives; returns what ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def serve(self, service: Callable[[Asked], Reply]) -> None:
        """Answer calls with ``service``, which may raise :exc:`BusError`."""
        self._service = service

    def emit(
        self,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        body: Sequence[object] = (),
    ) -> None:
        """Send a signal to all who listen."""
        if self._connection is not None:
            self._connection.emit(path, interface, member, signature, body)

    async def owner(self, name: str) -> str:
        """The unique name of who owns ``name``; empty for nobody."""
        try:
            (owner,) = await self.call(BUS, BUS_PATH, BUS, "GetNameOwner", "s", [name])
        except BusError:
            return ""
        return str(owner)

    def _hear(self, message: Any) -> None:
        signal = Signal(
            str(message.sender),
            str(message.path),
            str(message.interface),
            str(message.member),
            tuple(wire.from_wire(value) for value in message.body),
        )
        for listener in list(self._listeners):
            listener(signal)

    async def _answer(self, call: Call) -> Reply:
        if self._service is None:
            raise StandardError("UnknownMethod", "There is no such method.")
        asked = Asked(call.caller.name, call.path, call.interface, call.member, call.args)
        try:
            return self._service(asked)
        except BusError as error:
            raise _Refused(error) from None
