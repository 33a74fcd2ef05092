# SPDX-License-Identifier: GPL-3.0-or-later
"""Calls from others: one task each, limited, and ended when their caller leaves."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from usbipsshd.bus import wire
from usbipsshd.bus.callers import Callers
from usbipsshd.bus.values import (
    BusError,
    Call,
    Disconnected,
    Reply,
    StandardError,
    close_fds,
)
from usbipsshd.errors import Code, UsbipError

_LOG = logging.getLogger(__name__)

Dispatch = Callable[[Call], Awaitable[Reply]]

_MAX_REPLY = 16 << 20
"""Bytes; the system bus refuses messages beyond 32 MiB and hangs up on who sends them."""

_CONSTANTS = wire.library("constants")
_NO_REPLY = _CONSTANTS.MessageFlag.NO_REPLY_EXPECTED
_INTERACTIVE = _CONSTANTS.MessageFlag.ALLOW_INTERACTIVE_AUTHORIZATION
_METHOD_RETURN = _CONSTANTS.MessageType.METHOD_RETURN
_ERROR = _CONSTANTS.MessageType.ERROR


@dataclass(frozen=True, slots=True)
class Limits:
    """How much callers may ask for at a time."""

    calls_per_name: int = 32
    calls_per_uid: int = 64
    """For everybody but root."""
    calls: int = 1024
    strangers: int = 512
    """Calls, among these, of connections whose uid the bus is still being asked for."""
    body: int = 64 << 10
    """Bytes of one incoming message's arguments."""
    unsent: int = 1 << 20
    """Bytes waiting for the bus to take them before we stop reading from it."""
    unsent_top: int = 64 << 20
    """Bytes waiting at which the bus is taken for dead."""


class Server:
    """Runs ``dispatch`` for every call, and sends what comes of it.

    A call whose caller leaves the bus is cancelled and not answered; one that is cancelled
    otherwise is answered with ``org.usbipssh1.Error.Cancelled``. Whatever else goes wrong in
    ``dispatch`` is logged here, and the caller gets one calm sentence.
    """

    def __init__(self, send: Callable[[Any], None], callers: Callers, limits: Limits) -> None:
        self._send = send
        self._callers = callers
        self._limits = limits
        self.dispatch: Dispatch | None = None
        self._tasks: dict[asyncio.Task[None], str] = {}
        self._unanswered: set[asyncio.Task[None]] = set()
        self._per_name: Counter[str] = Counter()
        self._per_uid: Counter[int] = Counter()
        self._strangers = 0

    def __len__(self) -> int:
        return len(self._tasks)

    def receive(self, message: Any, frame: wire.Frame, problem: UsbipError | None) -> None:
        """Begin to answer a call; takes the frame's descriptors."""
        sender = message.sender or ""
        if problem is None and self.dispatch is None:
            problem = UsbipError(Code.CANCELLED, "usbipsshd is starting or stopping.")
        if problem is None:
            problem = self._too_many(sender)
        if problem is not None:
            self._refuse(message, problem)
            return
        fds, frame.fds = frame.fds, []
        self._per_name[sender] += 1
        task = asyncio.get_running_loop().create_task(
            self._serve(message, fds), name=f"call {message.member}"
        )
        self._tasks[task] = sender
        task.add_done_callback(lambda done: self._served(done, fds))

    def _too_many(self, sender: str) -> UsbipError | None:
        uid = self._callers.uid(sender)
        if uid is not None and uid != 0 and self._per_uid[uid] >= self._limits.calls_per_uid:
            return UsbipError(
                Code.LIMITS_EXCEEDED, "Too many calls of one user at a time; wait for some."
            )
        # Who is known is not kept out by many who are not.
        if (
            self._per_name[sender] >= self._limits.calls_per_name
            or len(self._tasks) >= self._limits.calls
            or (uid is None and self._strangers >= self._limits.strangers)
        ):
            return UsbipError(Code.LIMITS_EXCEEDED, "Too many calls at a time; wait for some.")
        return None

    def left(self, name: str) -> None:
        """Cancel the calls of a name that is no longer on the bus."""
        self._drop([task for task, sender in self._tasks.items() if sender == name])

    def drop(self) -> None:
        """Cancel all calls; there is nobody left to answer."""
        self._drop(list(self._tasks))

    async def stop(self, seconds: float) -> None:
        """Take no more calls, cancel those under way and wait for them to end."""
        self.dispatch = None
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            _done, left = await asyncio.wait(list(self._tasks), timeout=seconds)
            for task in left:
                _LOG.error("%s did not end when it was cancelled", task.get_name())

    def _drop(self, tasks: list[asyncio.Task[None]]) -> None:
        for task in tasks:
            self._unanswered.add(task)
            task.cancel()

    def _served(self, task: asyncio.Task[None], fds: list[int]) -> None:
        sender = self._tasks.pop(task)
        self._unanswered.discard(task)
        self._per_name[sender] -= 1
        if not self._per_name[sender]:
            del self._per_name[sender]
        close_fds(fds)
        if not task.cancelled() and task.exception() is not None:
            _LOG.error("a call could not be answered", exc_info=task.exception())

    async def _serve(self, message: Any, fds: list[int]) -> None:
        stranger = self._callers.uid(message.sender) is None
        self._strangers += stranger
        try:
            caller = await self._callers.get(message.sender)
        except (BusError, Disconnected, TimeoutError):
            return
        finally:
            self._strangers -= stranger
        uid = caller.uid
        if uid != 0 and self._per_uid[uid] >= self._limits.calls_per_uid:
            problem = "Too many calls of one user at a time; wait for some."
            self._refuse(message, UsbipError(Code.LIMITS_EXCEEDED, problem))
            return
        self._per_uid[uid] += 1
        call = Call(
            caller=caller,
            path=message.path,
            interface=message.interface or "",
            member=message.member,
            signature=message.signature,
            args=tuple(wire.from_wire(value) for value in message.body),
            interactive=bool(message.flags & _INTERACTIVE),
            fds=fds,
        )
        try:
            await self._run(call, message)
        finally:
            self._per_uid[uid] -= 1
            if not self._per_uid[uid]:
                del self._per_uid[uid]

    async def _run(self, call: Call, message: Any) -> None:
        dispatch = self.dispatch
        try:
            if dispatch is not None:
                self._answer(message, await dispatch(call))
        except (UsbipError, StandardError) as error:
            self._refuse(message, error)
        except asyncio.CancelledError:
            if asyncio.current_task() not in self._unanswered:
                self._refuse(message, UsbipError(Code.CANCELLED, "The request was cancelled."))
            raise
        except Disconnected:
            _LOG.info("no bus to answer %s on", call.member)
        except Exception:
            _LOG.exception("%s.%s failed", call.interface, call.member)
            problem = "Something unexpected went wrong in usbipsshd; its log says what."
            self._refuse(message, UsbipError(Code.FAILED, problem))

    def _answer(self, message: Any, reply: Reply) -> None:
        if message.flags & _NO_REPLY:
            return
        answer = wire.Message(
            message_type=_METHOD_RETURN,
            reply_serial=message.serial,
            destination=message.sender,
            signature=reply.signature,
            body=wire.to_wire(reply.signature, reply.body),
        )
        if len(answer._marshall()) > _MAX_REPLY:
            raise UsbipError(Code.LIMITS_EXCEEDED, "The answer is too long for the message bus.")
        self._send(answer)

    def _refuse(self, message: Any, error: UsbipError | StandardError) -> None:
        if message.flags & _NO_REPLY:
            return
        answer = wire.Message(
            message_type=_ERROR,
            reply_serial=message.serial,
            destination=message.sender,
            error_name=error.dbus_name,
            signature="s",
            body=wire.to_wire("s", [error.message[:1000]]),
        )
        with suppress(Disconnected):
            self._send(answer)
