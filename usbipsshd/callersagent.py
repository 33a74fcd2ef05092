# SPDX-License-Identifier: GPL-3.0-or-later
"""A caller's ssh-agent, on a connected socket that came with its call.

Nothing about it is trusted: what it answers, how fast, how much, or that it answers at all. The
file status flags of the socket are its sender's as well, so none is changed: every call says
MSG_DONTWAIT instead.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct

from usbipsshd.errors import Code, UsbipError
from usbipsshd.signer import (
    EXTENSION,
    IDENTITIES_ANSWER,
    MAX_MESSAGE,
    REQUEST_IDENTITIES,
    SIGN_REQUEST,
    SIGN_RESPONSE,
    SUCCESS,
    BadMessage,
    Reader,
    string,
)

IDENTITIES_SECONDS = 5.0
SIGN_SECONDS = 12.0
"""For a signature: somebody may have to touch a key, or to confirm; a login has 15 s in all."""
MAX_ANSWER = 256 << 10
"""Bytes of one answer, as with OpenSSH (AGENT_MAX_LEN)."""
MAX_KEYS = 32
"""Keys of an agent that are offered; sshd allows six attempts (MaxAuthTries)."""
_MAX_BLOB = MAX_MESSAGE // 2 - 256
"""Bytes of a public key: a request to sign has it twice."""
_PEER = struct.Struct("iII")
"""struct ucred (unix(7), SO_PEERCRED): process, user, group."""


class AgentGone(Exception):
    """The agent has closed its end, was silent for too long, or sent what is no answer."""


def check_agent_socket(fd: int, uid: int) -> None:
    """Raise :exc:`UsbipError` (InvalidArgs) unless ``fd`` is a socket that uid ``uid`` may pass.

    It has to be a connected unix stream socket, and what is at its other end has to belong to the
    same user, unless that is root: whoever is written to by root may take it for root's own word.
    """
    try:
        sock = _copy(fd)
    except OSError:
        raise _no_agent() from None
    with sock:
        try:
            fits = (
                sock.family == socket.AF_UNIX
                and sock.type == socket.SOCK_STREAM
                and not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            )
            sock.getpeername()
            peer = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        except OSError:
            raise _no_agent() from None
    if not fits:
        raise _no_agent()
    if uid not in (0, _PEER.unpack(peer)[1]):
        raise UsbipError(
            Code.INVALID_ARGS, "What is at the other end of ssh-agent belongs to somebody else."
        )


def _copy(fd: int) -> socket.socket:
    # Not socket.dup(), which changes the flags.
    copy = os.dup(fd)
    try:
        return socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise


def _no_agent() -> UsbipError:
    return UsbipError(
        Code.INVALID_ARGS, "The option ssh-agent must be a connected unix stream socket."
    )


class CallersAgent:
    """Asks one agent, one thing at a time. Made and used inside a running event loop."""

    def __init__(self, sock: socket.socket | None) -> None:
        """Take over ``sock``, a socket that passed the check; None for one that is gone."""
        self._sock = sock
        self._lock = asyncio.Lock()
        self._asking: set[asyncio.Task[bytes]] = set()
        self._waiting: asyncio.Future[None] | None = None
        self.gone = sock is None
        """Whether it is of no use any more."""
        self.empty = False
        """Whether it had no keys when it was asked last."""
        self._bound = False
        self.spent = False
        """Whether it was bound to an earlier login: keys that are for certain hosts are good for
        that one only (``ssh-agent.c``, process_ext_session_bind)."""

    @classmethod
    def copy_of(cls, fd: int) -> CallersAgent:
        """One with a descriptor of its own; ``fd`` stays the caller's to close."""
        return cls(_copy(fd))

    def fileno(self) -> int:
        """The descriptor, for the one who keeps it; -1 when it is closed."""
        return self._sock.fileno() if self._sock is not None else -1

    async def bind(self, binding: bytes) -> bool:
        """Tell it which host the next login is for; whether it took that. Not every agent does.

        ``binding`` is an extension's message (see :func:`usbipsshd.signer.check_binding`).
        Raises :exc:`AgentGone`.
        """
        answer = await self._ask(bytes([EXTENSION]) + binding, IDENTITIES_SECONDS)
        taken = answer[0] == SUCCESS
        self.spent = self._bound and not taken
        self._bound = self._bound or taken
        return taken

    async def keys(self) -> list[bytes]:
        """Its public keys and certificates, as they are sent; raise :exc:`AgentGone`."""
        answer = await self._ask(bytes([REQUEST_IDENTITIES]), IDENTITIES_SECONDS)
        try:
            found = parse_keys(answer)
        except BadMessage:
            self._give_up()
            raise AgentGone from None
        self.empty = not found
        return found

    async def sign(self, blob: bytes, data: bytes, flags: int) -> bytes:
        """A signature as it is sent, empty where it refuses; raise :exc:`AgentGone`."""
        request = string(blob) + string(data) + struct.pack(">I", flags)
        answer = await self._ask(bytes([SIGN_REQUEST]) + request, SIGN_SECONDS)
        try:
            return parse_signature(answer)
        except BadMessage:
            self._give_up()
            raise AgentGone from None

    async def _ask(self, message: bytes, seconds: float) -> bytes:
        # Who asks may be cancelled. The answer still comes, and must not be taken for another's.
        task = asyncio.create_task(self._exchange(message, seconds), name="ssh-agent")
        self._asking.add(task)
        task.add_done_callback(self._answered)
        return await asyncio.shield(task)

    def _answered(self, task: asyncio.Task[bytes]) -> None:
        self._asking.discard(task)
        if not task.cancelled():
            task.exception()

    async def _exchange(self, message: bytes, seconds: float) -> bytes:
        async with self._lock:
            if self._sock is None or self.gone:
                raise AgentGone
            try:
                async with asyncio.timeout(seconds):
                    _check_quiet(self._sock)
                    await self._send(self._sock, string(message))
                    size = struct.unpack(">I", await self._read(self._sock, 4))[0]
                    if not 1 <= size <= MAX_ANSWER:
                        raise ConnectionResetError("an answer of no size")
                    return await self._read(self._sock, size)
            except OSError:  # TimeoutError is one too
                self._give_up()
                raise AgentGone from None

    def _give_up(self) -> None:
        self.gone = True

    async def _send(self, sock: socket.socket, data: bytes) -> None:
        while data:
            try:
                data = data[sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) :]
            except BlockingIOError:
                await self._ready(sock, write=True)

    async def _read(self, sock: socket.socket, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            try:
                part = sock.recv(count - len(data), socket.MSG_DONTWAIT)
            except BlockingIOError:
                await self._ready(sock, write=False)
                continue
            if not part:
                raise ConnectionResetError("it has closed its end")
            data += part
        return bytes(data)

    async def _ready(self, sock: socket.socket, *, write: bool) -> None:
        loop = asyncio.get_running_loop()
        ready = self._waiting = loop.create_future()

        def wake() -> None:
            if not ready.done():
                ready.set_result(None)

        (loop.add_writer if write else loop.add_reader)(sock, wake)
        try:
            await ready
        finally:
            # Once it is closed the number may be somebody else's.
            if self._sock is not None:
                (loop.remove_writer if write else loop.remove_reader)(sock)

    def close(self) -> None:
        """Close our end; whoever asks gets :exc:`asyncio.CancelledError`."""
        self.gone = True
        sock, self._sock = self._sock, None
        if sock is None:
            return
        loop = asyncio.get_running_loop()
        loop.remove_reader(sock)
        loop.remove_writer(sock)
        sock.close()
        for task in self._asking:
            task.cancel()


def _check_quiet(sock: socket.socket) -> None:
    """Nothing may have come unasked, nor the end."""
    try:
        sock.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK)
    except BlockingIOError:
        return
    raise ConnectionResetError("it has closed its end, or talks unasked")


def parse_keys(answer: bytes) -> list[bytes]:
    """The keys in an agent's list, ``MAX_KEYS`` at most; raise :exc:`BadMessage`."""
    reader = Reader(answer)
    if reader.take(1)[0] != IDENTITIES_ANSWER:
        raise BadMessage("no list")
    count = struct.unpack(">I", reader.take(4))[0]
    found: list[bytes] = []
    for _ in range(min(count, MAX_KEYS)):
        blob, _comment = reader.string(), reader.string()
        if len(blob) <= _MAX_BLOB and _is_named(blob):
            found.append(blob)
    return found


def parse_signature(answer: bytes) -> bytes:
    """The signature in an agent's answer, empty where it refuses; raise :exc:`BadMessage`."""
    reader = Reader(answer)
    if reader.take(1)[0] != SIGN_RESPONSE:
        return b""
    signature = reader.string()
    reader.end()
    return signature if len(signature) <= MAX_MESSAGE else b""


def _is_named(blob: bytes) -> bool:
    """Whether it begins with the name of a kind of key (RFC 4251, section 6)."""
    try:
        kind = Reader(blob).string()
    except BadMessage:
        return False
    return 0 < len(kind) <= 64 and kind.isascii() and kind.decode().isprintable()
