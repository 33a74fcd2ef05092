# SPDX-License-Identifier: GPL-3.0-or-later
"""A client's connection to a message bus: calls with a time limit, signals, and a service.

dbus-next 0.2.3 by itself never ends a call when the bus goes, and hands a caller the library's own
variants; here a call always ends, and values are plain (see :mod:`usbipsshd.bus.values`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from usbipsshd.bus import wire
from usbipsshd.bus.values import BusError, Disconnected, Reply

log = logging.getLogger(__name__)

_LibraryBus = wire.library("aio").MessageBus
_constants = wire.library("constants")
_Type, _Flag = _constants.MessageType, _constants.MessageFlag

BUS = "org.freedesktop.DBus"
BUS_PATH = "/org/freedesktop/DBus"
CONNECT_SECONDS = 10.0
CALL_SECONDS = 25.0


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


class _Library(_LibraryBus):  # type: ignore[misc, valid-type]
    def send(self, msg: Any) -> Any:
        # That a bus is gone is told by `gone`; a future nobody looks at would be told of on stderr.
        future = super().send(msg)
        future.add_done_callback(lambda sent: sent.cancelled() or sent.exception())
        return future


class Bus:
    """One connection. :meth:`connect` first, :meth:`close` at the end."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._library: Any = None
        self._watch: asyncio.Task[None] | None = None
        self._pending: dict[int, Callable[[Any], None]] = {}
        self._listeners: list[Callable[[Signal], None]] = []
        self._service: Callable[[Asked], Reply] | None = None
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the connection has ended."""

    @property
    def name(self) -> str:
        """The unique name of this connection."""
        return str(self._library.unique_name)

    async def connect(self) -> None:
        """Log in; raise :exc:`Disconnected`."""
        try:
            self._library = _Library(bus_address=self._address, negotiate_unix_fd=True)
            self._library.add_message_handler(self._receive)
            async with asyncio.timeout(CONNECT_SECONDS):
                await self._library.connect()
        except Exception as error:
            self._end()
            raise Disconnected(f"no message bus: {error}") from error
        self._watch = asyncio.create_task(self._until_gone(), name="bus")

    async def _until_gone(self) -> None:
        # The library raises here what ended the connection.
        with suppress(Exception):
            await self._library.wait_for_disconnect()
        self._end()

    def _end(self) -> None:
        if not self.gone.done():
            self.gone.set_result(None)
        pending, self._pending = self._pending, {}
        for done in pending.values():
            done(None)

    async def close(self) -> None:
        """End the connection; calls under way raise :exc:`Disconnected`."""
        if self._watch is not None:
            self._library.disconnect()
            with suppress(TimeoutError):
                async with asyncio.timeout(CONNECT_SECONDS):
                    await self._watch
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
        if self._library is None or self.gone.done():
            raise Disconnected("no connection to the message bus")
        flags = _Flag.ALLOW_INTERACTIVE_AUTHORIZATION if interactive else _Flag.NONE
        if not start:
            flags |= _Flag.NO_AUTOSTART
        message = wire.Message(
            destination=destination,
            path=path,
            interface=interface,
            member=member,
            signature=signature,
            body=wire.to_wire(signature, body),
            flags=flags,
            unix_fds=list(fds),
            serial=self._library.next_serial(),
        )
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def arrived(reply: Any) -> None:
            if future.done():
                return
            if at_once is not None and reply is not None and reply.message_type is not _Type.ERROR:
                at_once(_plain(reply.body))
            future.set_result(reply)

        self._pending[message.serial] = arrived
        try:
            self._library.send(message)
            async with asyncio.timeout(timeout):
                reply = await future
        finally:
            self._pending.pop(message.serial, None)
        if reply is None:
            raise Disconnected("the connection to the message bus has ended")
        if reply.message_type is _Type.ERROR:
            text = reply.body[0] if reply.body and isinstance(reply.body[0], str) else ""
            raise BusError(str(reply.error_name), text)
        return _plain(reply.body)

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
        if self._library is None or self.gone.done():
            return
        message = wire.Message(
            message_type=_Type.SIGNAL,
            path=path,
            interface=interface,
            member=member,
            signature=signature,
            body=wire.to_wire(signature, body),
        )
        self._library.send(message)

    async def owner(self, name: str) -> str:
        """The unique name of who owns ``name``; empty for nobody."""
        try:
            (owner,) = await self.call(BUS, BUS_PATH, BUS, "GetNameOwner", "s", [name])
        except BusError:
            return ""
        return str(owner)

    def _receive(self, message: Any) -> Any:
        # Whatever a peer sends: an exception here would end the connection.
        try:
            return self._sort(message)
        except Exception:
            log.exception("a message from the bus could not be handled")
            return None

    def _sort(self, message: Any) -> Any:
        kind = message.message_type
        if kind in (_Type.METHOD_RETURN, _Type.ERROR):
            arrived = self._pending.pop(message.reply_serial, None)
            if arrived is not None:
                arrived(message)
            return arrived is not None
        if kind is _Type.SIGNAL:
            signal = Signal(
                str(message.sender),
                str(message.path),
                str(message.interface),
                str(message.member),
                _plain(message.body),
            )
            for listener in list(self._listeners):
                listener(signal)
            return None
        return self._answer(message)

    def _answer(self, message: Any) -> Any:
        if self._service is None:
            return None
        asked = Asked(
            str(message.sender),
            str(message.path),
            str(message.interface or ""),
            str(message.member),
            _plain(message.body),
        )
        try:
            reply = self._service(asked)
        except BusError as error:
            return wire.Message.new_error(message, error.name, error.message)
        body = wire.to_wire(reply.signature, reply.body)
        return wire.Message.new_method_return(message, reply.signature, body)


def _plain(body: Sequence[object]) -> tuple[object, ...]:
    return tuple(wire.from_wire(value) for value in body)
