# SPDX-License-Identifier: GPL-3.0-or-later
"""The connection to the message bus, and the one place that mends dbus-next.

What dbus-next 0.2.3 does, and what happens here instead:

- Handlers see neither sender nor flags: every call arrives as a :class:`Call`.
- An exception sends its traceback to the caller: it stays in our log.
- A full socket ends the connection: see :class:`usbipsshd.bus.wire.Writer`.
- A message that the parser dislikes ends the connection, a long one fills memory,
  parsed signatures are kept for ever, received descriptors are left open and are inherited by
  children: see :mod:`usbipsshd.bus.wire`.
- ``call`` never returns once the bus is gone, has no time limit, and takes an answer from anybody:
  it has a limit, and takes it from who was asked, see :mod:`usbipsshd.bus.answers`.
- A bus that hangs up during the login makes it spin for ever: that is an error.
- Serial numbers run past 32 bits: they start again.
- Objects, properties and introspection are not used at all:
  see :class:`usbipsshd.bus.objects.ObjectTree`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from usbipsshd.bus import wire
from usbipsshd.bus.answers import Answers, Waiting
from usbipsshd.bus.callers import Callers
from usbipsshd.bus.serving import Dispatch, Limits, Server
from usbipsshd.bus.signals import Signals
from usbipsshd.bus.values import BUS, BUS_PATH, BusError, Disconnected, close_fds
from usbipsshd.errors import Code, UsbipError

_LOG = logging.getLogger(__name__)

_LibraryBus = wire.library("aio").MessageBus
_CONSTANTS = wire.library("constants")
_MessageType = _CONSTANTS.MessageType
_NO_FLAG = _CONSTANTS.MessageFlag.NONE
_NO_AUTOSTART = _CONSTANTS.MessageFlag.NO_AUTOSTART
_INTERACTIVE = _CONSTANTS.MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION

SYSTEM_BUS = "unix:path=/run/dbus/system_bus_socket"
"""Where the system bus is unless DBUS_SYSTEM_BUS_ADDRESS says otherwise (D-Bus specification)."""

_CONNECT_SECONDS = 10.0
_FLUSH_SECONDS = 2.0
_FRAMES_AT_ONCE = 32


class Connection(_LibraryBus):  # type: ignore[misc, valid-type]
    """One connection to a message bus.

    Made inside a running event loop; the constructor connects the socket and raises
    :exc:`OSError` or :exc:`ValueError`. Then :meth:`start`, and at the end always :meth:`stop`.
    """

    _disconnected: bool
    _serial: int

    def __init__(self, address: str, limits: Limits | None = None) -> None:
        try:
            super().__init__(bus_address=address, negotiate_unix_fd=True)
        except BaseException:
            self._close_socket()
            raise
        self._limits = limits or Limits()
        self._frames = wire.FrameReader(self._sock, self._limits.body)
        self._out = wire.Writer(self._sock, self._limits.unsent, self._press)
        self._reading = False
        self._writing = False
        self._pending: dict[int, Waiting] = {}
        self._answers: Answers | None = None
        self._came_along: dict[int, list[int]] = {}
        self.signals = Signals(self.call)
        """Who listens to other services' signals."""
        self.hear: Callable[[Any], None] | None = None
        """Gets every signal that arrives, as the library's message; see :attr:`signals`."""
        self._ended: asyncio.Future[str] = self._loop.create_future()
        self._sent = asyncio.Event()
        self.callers = Callers(self.call)
        """Who has called, their uids, and when they leave."""
        self._server = Server(self.send, self.callers, self._limits)

    # Life

    async def start(self, dispatch: Dispatch | None = None, *, follow_callers: bool = True) -> None:
        """Log in and start answering calls with ``dispatch``.

        Without ``follow_callers`` a call goes on when its caller leaves, nobody's joining or
        leaving of the bus wakes this program up, and it leaves to the bus that answers come from
        who was asked.

        Raises :exc:`Disconnected` if that fails or takes longer than ten seconds.
        """
        self._server.dispatch = dispatch
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await self._authenticate()
                self._press(False)
                body = await self.call(BUS, BUS_PATH, BUS, "Hello")
                self.unique_name = str(body[0])
                if follow_callers:
                    # One rule for all names: a rule for each caller would need a check for who
                    # left before it was in place, and a bus allows 512 rules.
                    rule = (
                        f"type='signal',sender='{BUS}',path='{BUS_PATH}',"
                        f"interface='{BUS}',member='NameOwnerChanged'"
                    )
                    await self.call(BUS, BUS_PATH, BUS, "AddMatch", "s", [rule])
                    self._answers = Answers(self._ask_owner)
        except Disconnected:
            raise
        except Exception as error:
            self._finalize(error)
            raise Disconnected("no login on the message bus") from error

    async def own_name(self, name: str) -> None:
        """Become ``name`` on the bus; raise :exc:`BusError` if somebody else is or we may not."""
        # 4: DBUS_NAME_FLAG_DO_NOT_QUEUE; 1: PRIMARY_OWNER (D-Bus specification, RequestName).
        body = await self.call(BUS, BUS_PATH, BUS, "RequestName", "su", [name, 4])
        if body != (1,):
            raise BusError(BUS + ".Error.NameTaken", f"{name} is taken")

    def when_ended(self, call: Callable[[], None]) -> None:
        """Call ``call`` when the connection has ended."""
        self._ended.add_done_callback(lambda _: call())

    async def disconnected(self) -> str:
        """Wait until the connection has ended, and return why in a few words."""
        return await asyncio.shield(self._ended)

    async def stop(self, seconds: float = 30.0) -> None:
        """Cancel the calls under way, tell their callers, and close the connection.

        Waits for the calls to end, at most ``seconds``, and two more for the bus to take the rest.
        """
        await self._server.stop(seconds)
        if not self._disconnected:
            self._flush()
            with suppress(TimeoutError):
                async with asyncio.timeout(_FLUSH_SECONDS):
                    while self._out.queued and not self._disconnected:
                        self._sent.clear()
                        await self._sent.wait()
        self._finalize(None)

    def _finalize(self, err: BaseException | None = None) -> None:
        if self._disconnected:
            return
        self._disconnected = True
        self._press(True)
        if self._writing:
            self._loop.remove_writer(self._fd)
            self._writing = False
        self._frames.close()
        self._out.close()
        self._close_socket()
        for waiting in self._pending.values():
            if not waiting.answer.done():
                waiting.answer.set_exception(
                    Disconnected("the connection to the message bus has ended")
                )
        self._pending.clear()
        self._server.drop()
        self._sent.set()
        if not self._ended.done():
            self._ended.set_result(str(err) if err else "closed")

    def _close_socket(self) -> None:
        # The library wraps the socket in a file; the descriptor closes with the later of the two.
        for name in ("_stream", "_sock"):
            thing = getattr(self, name, None)
            if thing is not None:
                with suppress(OSError):
                    thing.close()

    async def _auth_readline(self) -> str:
        line = b""
        while not line.endswith(b"\r\n"):
            data = await self._loop.sock_recv(self._sock, 1)
            if not data or len(line) > 4096:
                raise EOFError("the bus hung up during the login")
            line += data
        return line[:-2].decode("ascii", "replace")

    # Sending

    def next_serial(self) -> int:
        """A serial number that no pending call of ours has."""
        while True:
            self._serial = self._serial % 0xFFFFFFFF + 1
            if self._serial not in self._pending:
                return int(self._serial)

    def send(self, msg: Any) -> None:
        """Queue ``msg``; raise :exc:`Disconnected`. What it may hold is the caller's business."""
        if self._disconnected:
            raise Disconnected("no connection to the message bus")
        if not msg.serial:
            msg.serial = self.next_serial()
        self._out.put(msg._marshall(negotiate_unix_fd=True), msg.unix_fds)
        if self._out.queued > self._limits.unsent_top:
            self._finalize(OSError("the bus takes nothing any more"))
            raise Disconnected("the bus takes nothing any more")
        if not self._writing:
            self._flush()

    def _flush(self) -> None:
        try:
            done = self._out.flush()
        except OSError as error:
            self._finalize(error)
            return
        if done:
            self._sent.set()
        if done == self._writing:
            self._writing = not done
            if done:
                self._loop.remove_writer(self._fd)
            else:
                self._loop.add_writer(self._fd, self._flush)

    def _press(self, stop: bool) -> None:
        """Stop or go on reading. Every answer is owed to something read, so this bounds them."""
        if stop and self._reading:
            self._loop.remove_reader(self._fd)
        elif not stop and not self._reading and not self._disconnected:
            self._loop.add_reader(self._fd, self._message_reader)
        self._reading = not stop and not self._disconnected

    async def call(  # noqa: PLR0917
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        body: Sequence[object] = (),
        *,
        timeout: float = 25.0,  # noqa: ASYNC109
        fds: list[int] | None = None,
        send_fds: Sequence[int] = (),
        interactive: bool = False,
        start: bool = True,
        at_once: Callable[[tuple[object, ...]], None] | None = None,
    ) -> tuple[object, ...]:
        """Call a method and return its values; see :class:`usbipsshd.bus.values.CallFunction`.

        Descriptors that come with the answer are closed, unless ``fds`` is there to take them.
        Values of type ``h`` are indices into ``send_fds``, which stay the caller's.
        ``interactive`` allows that somebody is asked for a password; without ``start`` a service
        that does not run is not started. ``at_once`` gets the values before anything that arrives
        after them is looked at.
        """
        message = wire.Message(
            destination=destination,
            path=path,
            interface=interface,
            member=member,
            signature=signature,
            body=wire.to_wire(signature, body),
            serial=self.next_serial(),
            flags=(_INTERACTIVE if interactive else _NO_FLAG)
            | (_NO_FLAG if start else _NO_AUTOSTART),
            unix_fds=list(send_fds),
        )
        waiting = Waiting(destination, self._loop.create_future(), at_once)
        if self._answers is not None:
            self._answers.expect(waiting)
        self._pending[message.serial] = waiting
        try:
            self.send(message)
            async with asyncio.timeout(timeout):
                reply = await waiting.answer
        finally:
            self._pending.pop(message.serial, None)
            came = self._came_along.pop(message.serial, [])
            if fds is None:
                close_fds(came)
            else:
                fds.extend(came)
        if reply.message_type is _MessageType.ERROR:
            text = reply.body[0] if reply.body and isinstance(reply.body[0], str) else ""
            raise BusError(str(reply.error_name), text)
        return tuple(wire.from_wire(value) for value in reply.body)

    def emit(
        self, path: str, interface: str, member: str, signature: str, body: Sequence[object]
    ) -> None:
        """Send a signal to all who listen; before :meth:`start` and after the end, to nobody."""
        if not self.unique_name:
            # A bus hangs up on whoever sends anything before its login.
            return
        message = wire.Message(
            message_type=_MessageType.SIGNAL,
            path=path,
            interface=interface,
            member=member,
            signature=signature,
            body=wire.to_wire(signature, body),
        )
        with suppress(Disconnected):
            self.send(message)

    # Receiving

    def _message_reader(self) -> None:
        try:
            for _ in range(_FRAMES_AT_ONCE):
                frame = self._frames.read()
                if frame is None:
                    return
                try:
                    self._receive(frame)
                except Exception:
                    _LOG.exception("a message from the bus could not be handled")
                finally:
                    frame.close()
                if not self._reading:
                    return
        except (EOFError, OSError, wire.BadStream) as error:
            self._finalize(error)

    def _receive(self, frame: wire.Frame) -> None:
        problem: UsbipError | None = None
        try:
            if frame.oversize:
                problem = UsbipError(Code.LIMITS_EXCEEDED, "The message is too long.")
                message = wire.parse(wire.without_body(frame.data))
            else:
                message = wire.parse(frame.data)
        except wire.BadMessage:
            try:
                message = wire.parse(wire.without_body(frame.data))
            except wire.BadMessage as error:
                _LOG.warning("left out a message that cannot be understood: %s", error)
                return
            problem = UsbipError(Code.INVALID_ARGS, "The message's arguments cannot be understood.")
        if message.message_type is _MessageType.METHOD_CALL:
            self._server.receive(message, frame, problem)
        elif message.message_type is _MessageType.SIGNAL:
            self._receive_signal(message)
        else:
            self._receive_answer(message, frame, problem)

    def _receive_answer(self, message: Any, frame: wire.Frame, problem: UsbipError | None) -> None:
        serial = message.reply_serial
        waiting = self._pending.get(serial)
        if waiting is None or not waiting.may_come_from(str(message.sender)):
            _LOG.debug("left out an answer of %s that nobody asked it for", message.sender)
            return
        del self._pending[serial]
        if waiting.answer.done():
            return
        if frame.fds:
            self._came_along[serial], frame.fds = frame.fds, []
        if problem is not None:
            waiting.answer.set_exception(BusError(problem.dbus_name, problem.message))
            return
        waiting.answer.set_result(message)
        if waiting.at_once is not None and message.message_type is not _MessageType.ERROR:
            waiting.at_once(tuple(wire.from_wire(value) for value in message.body))

    def _ask_owner(self, name: str, told: Callable[[str], None]) -> None:
        """Ask the bus who owns a name; it answers before it passes on what is sent after this."""
        message = wire.Message(
            destination=BUS,
            path=BUS_PATH,
            interface=BUS,
            member="GetNameOwner",
            signature="s",
            body=[name],
            serial=self.next_serial(),
        )
        waiting = Waiting(BUS, self._loop.create_future(), lambda body: told(str(body[0])))
        waiting.senders = frozenset({BUS})
        # Nobody awaits it: that the connection has ended, the call itself says.
        waiting.answer.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._pending[message.serial] = waiting
        self.send(message)

    def _receive_signal(self, message: Any) -> None:
        if self.hear is not None:
            self.hear(message)
        if (message.sender, message.interface, message.member, message.signature) == (
            BUS,
            BUS,
            "NameOwnerChanged",
            "sss",
        ):
            name, _old, new = message.body
            if name.startswith(":"):
                if not new:
                    self._server.left(name)
                    self.callers.left(name)
                return
            if self._answers is not None:
                self._answers.owner_is(name, new)
            self.signals.owner_changed(name, new)
            return
        handler = self.signals.find(str(message.interface), str(message.member), message.sender)
        if handler is not None:
            handler(tuple(wire.from_wire(value) for value in message.body))
