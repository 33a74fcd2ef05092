# SPDX-License-Identifier: GPL-3.0-or-later
"""The root end of the control socket: requests to one session, and what it reports."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from random import randrange

from usbipsshd.errors import Code
from usbipsshd.messages import (
    MAX_DEVICES,
    BadPacket,
    Json,
    Packet,
    error_from_json,
    get_int,
    get_object,
    get_str,
)
from usbipsshd.seqpacket import Descriptors, SeqPacket

log = logging.getLogger(__name__)

SEND_SECONDS = 5.0


class SessionFailure(Exception):
    """A request that the session could not fulfil, or a session that is gone."""

    def __init__(self, code: Code, detail: str = "") -> None:
        super().__init__(f"{code} {detail}".strip())
        self.code = code
        self.detail = detail


@dataclass(slots=True)
class Reply:
    """What a request brought. Its descriptors are the caller's to take or close."""

    ok: Packet
    rows: list[Packet]
    descriptors: Descriptors


@dataclass(slots=True)
class _Pending:
    future: asyncio.Future[Reply]
    rows: list[Packet] = field(default_factory=list)


OnEvent = Callable[[Packet], None]


class Session:
    """One session process, seen from the root process, which believes nothing it says."""

    def __init__(
        self,
        channel: SeqPacket,
        remote: str,
        on_event: OnEvent,
        first_id: Callable[[], int] = lambda: randrange(1, 1 << 30),  # noqa: S311 - no secret
    ) -> None:
        self._channel = channel
        self._remote = remote
        self._on_event = on_event
        self._pending: dict[int, _Pending] = {}
        # Not from 1: an answer that an earlier process waited for must fit no request of ours.
        self._ids = count(first_id())
        self._gone: SessionFailure | None = None

    @property
    def gone(self) -> bool:
        """Whether the session has ended."""
        return self._gone is not None

    @property
    def ended(self) -> SessionFailure:
        """Why the session ended."""
        return self._gone or SessionFailure(Code.CANCELLED)

    async def run(self) -> None:
        """Read until the session ends or sends what no session of ours sends."""
        reason = SessionFailure(Code.CONNECTION_FAILED, "the connection ended")
        try:
            while (received := await self._channel.receive()) is not None:
                packet, descriptors = received
                with descriptors:
                    self._handle(packet, descriptors)
                if packet.get("event") == "closed":
                    reason = SessionFailure(*error_from_json(get_object(packet, "error")))
        except BadPacket as error:
            log.warning("%s: its session misbehaves and is ended: %s", self._remote, error)
            reason = SessionFailure(Code.FAILED)
        except OSError as error:
            log.warning("%s: lost its session: %s", self._remote, error)
        finally:
            self._gone = reason
            self._channel.close()
            for pending in self._pending.values():
                if not pending.future.done():
                    pending.future.set_exception(reason)
            self._pending.clear()

    def _handle(self, packet: Packet, descriptors: Descriptors) -> None:
        if "event" in packet:
            get_str(packet, "event", 32)
            self._on_event(packet)
            return
        number = get_int(packet, "id")
        pending = self._pending.get(number)
        if pending is None:
            return  # We, or the process before us, stopped waiting for it.
        if "row" in packet:
            if len(pending.rows) >= MAX_DEVICES:
                raise BadPacket("too many rows")
            pending.rows.append(get_object(packet, "row"))
            return
        # What is malformed ends the session, and with it every request, this one included.
        error = ok = None
        if "error" in packet:
            error = SessionFailure(*error_from_json(get_object(packet, "error")))
        else:
            ok = get_object(packet, "ok")
        del self._pending[number]
        if pending.future.done():
            return
        if error is not None:
            pending.future.set_exception(error)
        elif ok is not None:
            mine = Descriptors([descriptors.take(i) for i in range(len(descriptors))])
            pending.future.set_result(Reply(ok, pending.rows, mine))

    async def request(
        self, op: str, *, seconds: float, fds: Sequence[int] = (), **fields: Json
    ) -> Reply:
        """Ask for something and wait for the answer, ``seconds`` at most.

        Raises :exc:`SessionFailure`; TimedOut when the session is silent. When it is, or
        when the caller is cancelled, the session is told to stop.
        """
        if self._gone is not None:
            raise self._gone
        number = next(self._ids)
        pending = _Pending(asyncio.get_running_loop().create_future())
        self._pending[number] = pending
        try:
            async with asyncio.timeout(seconds):
                await self._send({"op": op, "id": number, **fields}, fds)
                return await pending.future
        except TimeoutError:
            await self._cancel(number)
            raise SessionFailure(Code.TIMED_OUT) from None
        except asyncio.CancelledError:
            await self._cancel(number)
            raise
        finally:
            self._pending.pop(number, None)
            if pending.future.done() and not pending.future.cancelled():
                pending.future.exception()  # An answer that came too late is nobody's.

    async def _send(self, packet: Packet, fds: Sequence[int] = ()) -> None:
        try:
            await self._channel.send(packet, fds)
        except OSError:
            raise self._gone or SessionFailure(
                Code.CONNECTION_FAILED, "its session ended"
            ) from None

    async def _cancel(self, number: int) -> None:
        with contextlib.suppress(SessionFailure, TimeoutError):
            async with asyncio.timeout(SEND_SECONDS):
                await self._send({"op": "cancel", "id": next(self._ids), "request": number})

    def close(self) -> None:
        """End the session; it gives everything back by itself."""
        self._channel.close()
