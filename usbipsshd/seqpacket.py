# SPDX-License-Identifier: GPL-3.0-or-later
"""Packets with descriptors over an AF_UNIX SOCK_SEQPACKET socket: one end of the control socket.

Nothing is queued here. A packet stays in the kernel until somebody asks for it, and a
sender waits while the other side does not read, so neither side can make the
other's memory grow. See unix(7) for SCM_RIGHTS and for what EOF looks like.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from usbipsshd.messages import MAX_FDS, MAX_PACKET, BadPacket, Packet, decode, encode

# Room for more descriptors than are allowed, so that all of them arrive and can be closed.
_ANCILLARY = socket.CMSG_SPACE((MAX_FDS + 8) * array.array("i").itemsize)


class Descriptors:
    """Descriptors that came with a packet; those that nobody takes are closed."""

    def __init__(self, fds: Sequence[int] = ()) -> None:
        self._fds: list[int | None] = list(fds)

    def __len__(self) -> int:
        return len(self._fds)

    def take(self, index: int) -> int:
        """Hand over a descriptor, which is the caller's to close; :exc:`BadPacket` if not there."""
        fd = self._fds[index] if 0 <= index < len(self._fds) else None
        if fd is None:
            raise BadPacket("a descriptor is missing")
        self._fds[index] = None
        return fd

    def close(self) -> None:
        """Close what was not taken."""
        for index, fd in enumerate(self._fds):
            if fd is not None:
                self._fds[index] = None
                with contextlib.suppress(OSError):
                    os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class SeqPacket:
    """One end of the control socket, for one reading task and any number of writing ones.

    Takes over ``sock``. Raises ValueError when it is not an AF_UNIX SOCK_SEQPACKET socket.
    """

    def __init__(self, sock: socket.socket) -> None:
        if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_SEQPACKET:
            raise ValueError("not a SOCK_SEQPACKET unix socket")
        sock.setblocking(False)
        self._sock = sock
        self._sending = asyncio.Lock()
        self._receiving = False
        self._waiting: set[asyncio.Future[None]] = set()

    def fileno(self) -> int:
        """The socket's descriptor; -1 once closed."""
        return self._sock.fileno()

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._sock.fileno() < 0

    async def send(self, packet: Packet, fds: Sequence[int] = ()) -> None:
        """Send one packet, whole; ``fds`` stay the caller's.

        Waits while the other side does not read; cancelled, the packet was not sent.
        Raises :exc:`BadPacket` when it is too long and ConnectionError (or another OSError)
        when the other side is gone.
        """
        data = encode(packet)
        if len(fds) > MAX_FDS:
            raise BadPacket("too many descriptors")
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        async with self._sending:
            while True:
                if self.closed:
                    raise ConnectionResetError("control socket is closed")
                try:
                    self._sock.sendmsg([data], rights, socket.MSG_NOSIGNAL)
                except BlockingIOError:
                    await self._wait(write=True)
                else:
                    return

    async def receive(self) -> tuple[Packet, Descriptors] | None:
        """Wait for the next packet; None once the other side has closed.

        The caller closes the descriptors it is given (``with descriptors:``). Cancelled,
        nothing was lost. Raises :exc:`BadPacket` for what is no packet of ours; the next
        call goes on with the packet after it.
        """
        if self._receiving:
            raise RuntimeError("somebody else is receiving")
        self._receiving = True
        try:
            while not self.closed:
                try:
                    return self._receive_now()
                except BlockingIOError:
                    await self._wait(write=False)
                except ConnectionError:
                    return None
            return None
        finally:
            self._receiving = False

    def _receive_now(self) -> tuple[Packet, Descriptors] | None:
        data, ancillary, flags, _ = self._sock.recvmsg(
            MAX_PACKET, _ANCILLARY, socket.MSG_CMSG_CLOEXEC
        )
        fds = array.array("i")
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
        descriptors = Descriptors(fds)
        try:
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or len(fds) > MAX_FDS:
                raise BadPacket("packet too long or too many descriptors")
            if not data:
                descriptors.close()
                return None
            return decode(data), descriptors
        except BaseException:
            descriptors.close()
            raise

    async def _wait(self, *, write: bool) -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        fd = self._sock.fileno()
        remove: Callable[[int], object]
        if write:
            loop.add_writer(fd, _wake, ready)
            remove = loop.remove_writer
        else:
            loop.add_reader(fd, _wake, ready)
            remove = loop.remove_reader
        self._waiting.add(ready)
        try:
            await ready
        finally:
            self._waiting.discard(ready)
            if not self.closed:
                remove(fd)

    def close(self) -> None:
        """Close the socket; a waiting receive returns None, a waiting send fails."""
        if self.closed:
            return
        for ready in self._waiting:
            loop = ready.get_loop()
            loop.remove_reader(self._sock.fileno())
            loop.remove_writer(self._sock.fileno())
            _wake(ready)
        self._sock.close()


def _wake(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
