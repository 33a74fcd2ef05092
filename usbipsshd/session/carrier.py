# SPDX-License-Identifier: GPL-3.0-or-later
"""What carries a device's bytes: the one part that knows how they travel.

:class:`Carrier` is all that exports and loans (:mod:`usbipsshd.session.held`) know of it. The
carrier here forwards a socket through the ssh connection: the remote's sshd
listens in the agent's folder (or, for a connector that can only do TCP, on its loopback), the
agent's connector connects there and shows a one-time token, and that connection is
handed to the remote's kernel.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import secrets
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import asyncssh

from usbipsshd.errors import Code
from usbipsshd.session.failure import Failure
from usbipsshd.session.mended import MendedConnection
from usbipsshd.session.relay import Relay

log = logging.getLogger(__name__)

WINDOW = 2 * 1024 * 1024
MAX_PACKET_SIZE = 32768
MAX_STRANGERS = 64
"""Connections that may be waiting to show the token; one more takes the place of any of them.

Whoever fills them all cannot keep ours away: it shows the token at once, and is seldom the one."""
CLOSE_LIMIT = 3.0
TCP_ONLY = frozenset({"bash", "busybox"})
"""Connectors that cannot reach a unix socket; each can reach a port."""
STRANGER_SECONDS = 5.0
"""How long a connection may take to show the token."""

_Channel = asyncssh.SSHUNIXChannel[bytes] | asyncssh.SSHTCPChannel[bytes]


class Carrier(Protocol):
    """Carries the bytes of one device."""

    connector: str
    address: str
    token: str
    """What the agent's ``connect`` is told."""
    ended: asyncio.Future[str]
    """Done when either end has closed, with what went wrong or an empty text."""

    async def established(self) -> None:
        """Wait until the far end has connected and shown the token."""

    def start(self) -> socket.socket:
        """Let the bytes flow; the near end is the caller's to hand on and close."""

    def start_with(self, ours: socket.socket) -> None:
        """Let the bytes flow between the far end and a connected socket, which is taken over."""

    def statistics(self) -> tuple[int, int]:
        """Bytes received from the remote and sent to it."""

    async def close(self) -> None:
        """Close both ends and whatever listens; safe at any time and more than once."""


class SshCarrier:
    """The :class:`Carrier` through the ssh connection."""

    def __init__(self, ssh: MendedConnection) -> None:
        self.connector = ""
        self.address = ""
        self.token = secrets.token_hex(16)
        loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[str] = loop.create_future()
        self._ssh = ssh
        self._listener: asyncssh.SSHListener | None = None
        self._guards: set[_Guard] = set()
        self._chosen: _Guard | None = None
        self._chosen_event = asyncio.Event()

    async def listen_unix(self, connector: str, path: str) -> None:
        """Have sshd listen on a unix socket; asyncssh.ChannelListenError when it refuses."""
        self.connector, self.address = connector, path
        self._listener = await self._ssh.create_unix_server(
            self._accept, path, encoding=None, window=WINDOW, max_pktsize=MAX_PACKET_SIZE
        )

    async def listen_tcp(self, connector: str) -> None:
        """Have sshd listen on its loopback; asyncssh.ChannelListenError when it refuses."""
        self.connector = connector
        self._listener = await self._ssh.create_server(
            lambda _host, _port: self._accept(),
            "127.0.0.1",
            0,
            encoding=None,
            window=WINDOW,
            max_pktsize=MAX_PACKET_SIZE,
        )
        self.address = str(self._listener.get_port())

    def _accept(self) -> _Guard:
        return _Guard(self)

    def admit(self, guard: _Guard) -> bool:
        """Whether one more connection may try to show the token."""
        if self._chosen is not None or self.ended.done():
            return False
        if len(self._guards) >= MAX_STRANGERS:
            evicted = secrets.choice(tuple(self._guards))
            self._guards.discard(evicted)
            evicted.drop()
        self._guards.add(guard)
        return True

    def leave(self, guard: _Guard) -> None:
        """The connection is gone."""
        self._guards.discard(guard)
        if guard is self._chosen:
            self.finish("")

    def choose(self, guard: _Guard) -> bool:
        """The connection has shown the token; whether it is the first to do so."""
        if self._chosen is not None or self.ended.done():
            return False
        self._chosen = guard
        self._chosen_event.set()
        self._stop_listening()
        for other in tuple(self._guards - {guard}):
            other.drop()
        return True

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def established(self) -> None:
        """See :meth:`Carrier.established`."""
        await self._chosen_event.wait()

    def start(self) -> socket.socket:
        """See :meth:`Carrier.start`; Failure when the far end has closed meanwhile."""
        guard = self._open_guard()
        near, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        guard.start(ours, self._ssh)
        return near

    def start_with(self, ours: socket.socket) -> None:
        """See :meth:`Carrier.start_with`; Failure when the far end has closed meanwhile."""
        self._open_guard().start(ours, self._ssh)

    def _open_guard(self) -> _Guard:
        if self._chosen is None or self.ended.done():
            raise Failure(Code.DEVICE_FAILED, "the connection there was closed again")
        return self._chosen

    def finish(self, why: str) -> None:
        """Either end has closed."""
        if not self.ended.done():
            self.ended.set_result(why)

    def statistics(self) -> tuple[int, int]:
        """See :meth:`Carrier.statistics`."""
        relay = self._chosen.relay if self._chosen is not None else None
        return (relay.received, relay.sent) if relay is not None else (0, 0)

    async def close(self) -> None:
        """See :meth:`Carrier.close`."""
        self._stop_listening()
        self.finish("")
        guards = tuple(self._guards)
        for guard in guards:
            guard.close()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_LIMIT):
                    for guard in guards:
                        await guard.wait_closed()
        finally:
            for guard in guards:
                guard.drop()


class _Guard(asyncssh.SSHUNIXSession[bytes], asyncssh.SSHTCPSession[bytes]):
    """A connection to the forwarded socket: a stranger until it has shown the token."""

    def __init__(self, carrier: SshCarrier) -> None:
        self._carrier = carrier
        self._chan: _Channel | None = None
        self._shown = b""
        self._trusted = False
        self._early_eof = False
        self._late: asyncio.TimerHandle | None = None
        self.relay: Relay | None = None

    def connection_made(self, chan: _Channel) -> None:
        self._chan = chan
        if self._carrier.admit(self):
            self._late = asyncio.get_running_loop().call_later(STRANGER_SECONDS, self.drop)
        else:
            chan.abort()

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        if self.relay is not None:
            self.relay.data_received(data)
            return
        self._shown += data
        expected = self._carrier.token.encode() + b"\n"
        if self._trusted or len(self._shown) < len(expected):
            return
        shown, self._shown = self._shown[: len(expected)], self._shown[len(expected) :]
        if not hmac.compare_digest(shown, expected) or not self._carrier.choose(self):
            log.warning("a connection without the token is dropped")
            self.drop()
            return
        self._trusted = True
        if self._late is not None:
            self._late.cancel()
        assert self._chan is not None
        self._chan.pause_reading()

    def start(self, ours: socket.socket, ssh: MendedConnection) -> None:
        """Relay between the channel and ``ours``, which is taken over."""
        assert self._chan is not None
        self.relay = Relay(self._chan, ssh, ours, self._carrier.finish)
        # From here on the relay is asked directly, without a step in between.
        relay = self.relay
        self.data_received = lambda data, datatype: relay.data_received(data)  # type: ignore[method-assign]
        self.pause_writing = relay.pause_writing  # type: ignore[method-assign]
        self.resume_writing = relay.resume_writing  # type: ignore[method-assign]
        early, self._shown = self._shown, b""
        if early:
            relay.data_received(early)
        if self._early_eof:
            relay.eof_received()
        elif not relay.holding:
            self._chan.resume_reading()

    def eof_received(self) -> bool:
        if self.relay is not None:
            self.relay.eof_received()
            return True
        self._early_eof = True
        if not self._trusted:
            self.drop()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._chan = None
        if self._late is not None:
            self._late.cancel()
        if self.relay is not None:
            self.relay.end(str(exc) if exc else "")
        self._carrier.leave(self)

    def close(self) -> None:
        """Close in order: what was written is still sent."""
        if self.relay is not None:
            self.relay.end()
        elif self._chan is not None:
            self._chan.close()

    async def wait_closed(self) -> None:
        """Wait until the other side has agreed to close."""
        if self._chan is not None:
            await self._chan.wait_closed()

    def drop(self) -> None:
        """Close at once."""
        if self._chan is not None:
            self._chan.abort()


class SshCarriers:
    """Makes carriers for one ssh connection, and remembers what its server refuses."""

    def __init__(self, ssh: MendedConnection) -> None:
        self._ssh = ssh
        self._unix_refused = False
        self._forwards: str | None = None

    async def forwards(self, folder: str) -> str:
        """What the server lets this login forward: unix, tcp, both or none.

        Tried once, with sockets that nobody is told of. Raises :exc:`Failure` (ConnectionFailed).
        """
        if self._forwards is None:
            path = f"{folder}/{secrets.token_hex(4)}"
            unix = await self._may(lambda carrier: carrier.listen_unix("", path))
            tcp = await self._may(lambda carrier: carrier.listen_tcp(""))
            found = {(True, True): "both", (True, False): "unix", (False, True): "tcp"}
            self._forwards = found.get((unix, tcp), "none")
        return self._forwards

    async def _may(self, listen: Callable[[SshCarrier], Awaitable[None]]) -> bool:
        carrier = SshCarrier(self._ssh)
        try:
            await listen(carrier)
        except asyncssh.ChannelListenError:
            return False
        except (asyncssh.Error, OSError) as error:
            raise Failure(Code.CONNECTION_FAILED, str(error)) from None
        finally:
            await carrier.close()
        return True

    async def listen(self, connectors: Sequence[str], folder: str) -> SshCarrier:
        """A carrier that listens for the best of ``connectors``.

        Raises :exc:`Failure`: RemoteUnsupported when there is no connector or the server forwards
        nothing that one of them can use. Cancelled, nothing goes on listening.
        """
        carrier = SshCarrier(self._ssh)
        try:
            await self._listen(carrier, connectors, folder)
        except BaseException:
            await carrier.close()
            raise
        return carrier

    async def _listen(self, carrier: SshCarrier, connectors: Sequence[str], folder: str) -> None:
        by_path = next((c for c in connectors if c not in TCP_ONLY), None)
        try:
            if by_path is not None and not self._unix_refused:
                try:
                    await carrier.listen_unix(by_path, f"{folder}/{secrets.token_hex(4)}")
                except asyncssh.ChannelListenError:
                    self._unix_refused = True
                else:
                    return
            if connectors:
                await carrier.listen_tcp(connectors[0])
                return
        except asyncssh.ChannelListenError:
            pass
        except (asyncssh.Error, OSError) as error:
            raise Failure(Code.CONNECTION_FAILED, str(error)) from None
        if not connectors:
            raise Failure(Code.REMOTE_UNSUPPORTED, "nothing there connects a socket")
        raise Failure(Code.REMOTE_UNSUPPORTED, "its ssh server refuses to forward sockets")
