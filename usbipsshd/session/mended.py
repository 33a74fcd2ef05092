# SPDX-License-Identifier: GPL-3.0-or-later
"""asyncssh's client connection, mended in one place (tried with 2.10 and 2.24).

What is different from asyncssh's own, and why:

- No SSH_MSG_IGNORE before each packet under an AEAD cipher. It guards against attacks on CBC
  (RFC 4251, section 9.3.1); with AEAD it only doubles the cost of a packet.
- Keys come from an ssh-agent socket that is already connected, and from nowhere else.
- The host key as it was offered is kept, for the fingerprint in an error.
- The transport's own buffer counts: when it is full, those who write are told.
- A peer that sends past a paused channel's window is refused. asyncssh checks each packet
  against the window but not their sum, so a hostile server could fill the memory.
- One AES-GCM context per direction instead of one per packet.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import asyncssh
from asyncssh.channel import SSHTCPChannel, SSHUNIXChannel
from asyncssh.constants import MSG_IGNORE
from asyncssh.encryption import BasicEncryption

TRANSPORT_HIGH_WATER = 256 * 1024
"""Bytes that may wait for the network before writers are told to pause."""


class PassedAgent(asyncssh.SSHAgentClient):
    """An ssh-agent behind a socket that somebody else connected."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__("")
        self._passed: socket.socket | None = sock

    async def connect(self) -> None:
        """Use the passed socket; OSError when it was used up."""
        sock, self._passed = self._passed, None
        if sock is None:
            raise ConnectionResetError("the ssh agent is gone")
        try:
            self._reader, self._writer = await asyncio.open_unix_connection(sock=sock)
        except BaseException:
            sock.close()
            raise

    def close(self) -> None:
        """Close the socket, also when it was never used."""
        if self._passed is not None:
            self._passed.close()
            self._passed = None
        super().close()


class _BoundedWindow:
    """For a channel: what waits while reading is paused may not exceed the window."""

    _held = 0

    def _accept_data(self, data: bytes, datatype: Any = None) -> None:
        if self._recv_paused:  # type: ignore[attr-defined]
            self._held += len(data)
            if self._held > self._recv_window:  # type: ignore[attr-defined]
                raise asyncssh.ProtocolError("Window exceeded")
        super()._accept_data(data, datatype)  # type: ignore[misc]

    def _deliver_data(self, data: bytes, datatype: Any) -> None:
        if self._held:
            self._held -= len(data)
        super()._deliver_data(data, datatype)  # type: ignore[misc]


class _UnixChannel(_BoundedWindow, SSHUNIXChannel[bytes]):
    pass


class _TcpChannel(_BoundedWindow, SSHTCPChannel[bytes]):
    pass


class MendedConnection(asyncssh.SSHClientConnection):
    """An ssh client connection with the differences named above."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        options: asyncssh.SSHClientConnectionOptions,
        wait: str,
        agent: socket.socket | None = None,
    ) -> None:
        super().__init__(loop, options, wait=wait)
        self.offered_key: bytes | None = None
        self.congested = False
        self._congestion_watchers: set[Callable[[bool], None]] = set()
        self._aead_for: object = None
        self._aead = False
        if agent is not None:
            self._agent = PassedAgent(agent)
            self._get_agent_keys = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Set the limits of the transport's buffer."""
        if isinstance(transport, asyncio.WriteTransport) or hasattr(
            transport, "set_write_buffer_limits"
        ):
            transport.set_write_buffer_limits(high=TRANSPORT_HIGH_WATER)
        super().connection_made(transport)

    def send_packet(self, pkttype: int, *args: bytes, **kwargs: Any) -> None:
        """Send a packet, leaving out needless SSH_MSG_IGNOREs."""
        if pkttype == MSG_IGNORE:
            cipher = self._send_encryption
            if cipher is not self._aead_for:
                self._aead_for = cipher
                self._aead = cipher is not None and not isinstance(cipher, BasicEncryption)
            if self._aead:
                return
        super().send_packet(pkttype, *args, **kwargs)

    def validate_server_host_key(self, key_data: bytes) -> asyncssh.SSHKey:
        """Keep what was offered, then decide as asyncssh does."""
        self.offered_key = key_data
        return super().validate_server_host_key(key_data)

    def watch_congestion(self, watcher: Callable[[bool], None]) -> Callable[[], None]:
        """Have ``watcher`` called with True when the transport is full and with False when it
        no longer is; returns how to end that."""
        self._congestion_watchers.add(watcher)
        return lambda: self._congestion_watchers.discard(watcher)

    def pause_writing(self) -> None:
        """The transport's buffer is full."""
        self._set_congested(True)

    def resume_writing(self) -> None:
        """The transport's buffer has room again."""
        self._set_congested(False)

    def _set_congested(self, congested: bool) -> None:
        self.congested = congested
        for watcher in tuple(self._congestion_watchers):
            watcher(congested)

    def create_unix_channel(
        self, encoding: str | None = None, errors: str = "strict", window: int = 0,
        max_pktsize: int = 0,
    ) -> SSHUNIXChannel[bytes]:
        """A channel whose window is enforced."""
        return _UnixChannel(self, self._loop, encoding, errors, window, max_pktsize)

    def create_tcp_channel(
        self, encoding: str | None = None, errors: str = "strict", window: int = 0,
        max_pktsize: int = 0,
    ) -> SSHTCPChannel[bytes]:
        """A channel whose window is enforced."""
        return _TcpChannel(self, self._loop, encoding, errors, window, max_pktsize)
