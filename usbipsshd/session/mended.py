# SPDX-License-Identifier: GPL-3.0-or-later
"""asyncssh's client connection, mended in one place (tried with 2.10 and 2.24).

What is different from asyncssh's own, and why:

- No SSH_MSG_IGNORE before each packet under an AEAD cipher. It guards against attacks on CBC
  (RFC 4251, section 9.3.1); with AEAD it only doubles the cost of a packet.
- A short cut for channel data under AES-GCM, which is nearly all there is once a
  device is attached: no debug log, no timer, half the copies. Every other packet, and
  every odd one, takes asyncssh's own way.
- Keys come from an ssh-agent socket that is already connected, and from nowhere else; a
  certificate in an agent is offered as one, which asyncssh forgets once it has chosen how to sign.
- Before it is asked for keys, the agent is told which host they are for, with the host's own
  signature: it may have some that are for certain hosts only (ssh-add -h), which asyncssh ignores.
- The host key as it was offered is kept, for the fingerprint in an error.
- The transport's own buffer counts: when it is full, those who write are told.
- Bounds that a hostile server cannot pass: the size of a packet, and what waits for a paused
  channel. asyncssh 2.10 checks each packet against the window but not their sum; 2.24 grants the
  whole window anew as soon as one packet is taken, though the others still wait.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Any

import asyncssh
from asyncssh.channel import SSHTCPChannel, SSHUNIXChannel
from asyncssh.constants import MSG_CHANNEL_DATA, MSG_CHANNEL_WINDOW_ADJUST, MSG_IGNORE
from asyncssh.encryption import BasicEncryption, GCMEncryption
from asyncssh.packet import Boolean, String

from usbipsshd.session.gcm import TAG_SIZE, PacketGcm, Padding
from usbipsshd.signer import EXTENSION, SESSION_BIND

TRANSPORT_HIGH_WATER = 256 * 1024
"""Bytes that may wait for the network before writers are told to pause."""
MAX_RECEIVED_PACKET = 256 * 1024
"""OpenSSH's own limit (PACKET_MAX_SIZE)."""
_MAX_WAITING = 4 * MAX_RECEIVED_PACKET
_BLOCK = 16


_CERTIFICATE = b"-cert-v01@openssh.com"


class _CertificatePair(asyncssh.SSHAgentKeyPair):
    """A certificate in an agent: a login names it by its own algorithm (RFC 8332, section 3)."""

    def set_sig_algorithm(self, sig_algorithm: bytes) -> None:
        super().set_sig_algorithm(sig_algorithm)
        self.algorithm = sig_algorithm + _CERTIFICATE


class PassedAgent(asyncssh.SSHAgentClient):
    """An ssh-agent behind a socket that somebody else connected."""

    def __init__(self, sock: socket.socket, binding: Callable[[], tuple[bytes, ...]]) -> None:
        """``binding`` has the host's key, the session's identifier and the signature over it."""
        super().__init__("")
        self._passed: socket.socket | None = sock
        self._binding = binding

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

    async def get_keys(self, identities: Any = None) -> Any:
        """The keys and certificates that the agent has for this session."""
        if binding := self._binding():
            # An agent that knows nothing of it says so, and has no key that needs it.
            parts = map(String, (SESSION_BIND, *binding))
            await self._make_request(EXTENSION, *parts, Boolean(False))
        return [
            _CertificatePair(
                self, pair.algorithm, pair.public_data, pair.get_comment_bytes() or b""
            )
            if pair.algorithm.endswith(_CERTIFICATE)
            else pair
            for pair in await super().get_keys(identities)
        ]

    async def sign(self, key_blob: bytes, data: bytes, flags: int = 0) -> bytes:
        """A signature. One that the agent refuses is none, and the login goes on with the next key.

        asyncssh would take the refusal for the end of the connection.
        """
        try:
            return bytes(await super().sign(key_blob, data, flags))
        except ValueError:
            return b""

    def close(self) -> None:
        """Close the socket, also when it was never used."""
        if self._passed is not None:
            self._passed.close()
            self._passed = None
        super().close()


class DataChannel:
    """What the forwarded channels of a :class:`MendedConnection` do differently.

    What is granted and what is held while reading is paused never exceed the window together.
    """

    _held = 0
    # asyncssh's, which this is mixed into
    _conn: Any
    _send_state: str
    _send_window: int
    _send_pktsize: int
    _send_chan: Any
    _send_buf: list[Any]
    _recv_state: str
    _recv_paused: bool | str
    _recv_window: int
    _init_recv_window: int
    _recv_buf: list[Any]
    _session: Any
    send_packet: Any

    def write(self, data: bytes, datatype: Any = None) -> None:
        """Send data, by the short cut when it fits into one packet and nothing is in the way."""
        size = len(data)
        if (
            datatype is None
            and 0 < size <= self._send_window
            and size <= self._send_pktsize
            and not self._send_buf
            and self._send_state == "open"
            and self._conn.send_data(self._send_chan, data)
        ):
            self._send_window -= size
        else:
            super().write(data, datatype)  # type: ignore[misc]

    def take_data(self, data: bytes) -> bool:
        """Deliver data that has come by the short cut; False when it must go the long way."""
        size = len(data)
        if (
            self._recv_paused
            or self._recv_state != "open"
            or self._send_state != "open"
            or not 0 < size <= self._recv_window
        ):
            return False
        self._recv_window -= size
        self._hand_on(data)
        return True

    def _accept_data(self, data: bytes, datatype: Any = None) -> None:
        if not data or self._send_state in {"close_pending", "closed"}:
            return
        if len(data) > self._recv_window:
            raise asyncssh.ProtocolError("Window exceeded")
        self._recv_window -= len(data)
        if self._recv_paused:
            self._held += len(data)
            self._recv_buf.append((data, datatype))
        else:
            self._hand_on(data)

    def _deliver_data(self, data: bytes, datatype: Any) -> None:
        # Called for what was held, once reading is resumed.
        self._held -= len(data)
        self._hand_on(data)

    def _hand_on(self, data: bytes) -> None:
        due = self._init_recv_window - self._recv_window - self._held
        if due * 2 >= self._init_recv_window:
            self._recv_window += due
            self.send_packet(MSG_CHANNEL_WINDOW_ADJUST, due.to_bytes(4, "big"))
        if self._session is not None:
            self._session.data_received(data, None)


class _UnixChannel(DataChannel, SSHUNIXChannel[bytes]):
    pass


class _TcpChannel(DataChannel, SSHTCPChannel[bytes]):
    pass


class _Unlike:
    """A transport over a unix socket, which does not tell what it is over."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """As a transport's, without socket and addresses."""
        return default


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
        self.greeting = b""
        """The first bytes that came, at most 64."""
        self._binding: tuple[bytes, ...] = ()
        self.congested = False
        self._congestion_watchers: set[Callable[[bool], None]] = set()
        self._padding = Padding()
        self._heard = False
        if agent is not None:
            self._agent = PassedAgent(agent, lambda: self._binding)
            self._get_agent_keys = True

    def connection_made(self, transport: Any) -> None:
        """Set the limits of the transport's buffer."""
        transport.set_write_buffer_limits(high=TRANSPORT_HIGH_WATER)
        sock = transport.get_extra_info("socket")
        # asyncssh sets TCP's options on any socket, which one of another kind refuses.
        local = sock is not None and sock.family == socket.AF_UNIX
        shown: Any = _Unlike(transport) if local else transport
        super().connection_made(shown)

    def validate_server_host_key(self, key_data: bytes) -> asyncssh.SSHKey:
        """Keep what was offered, then decide as asyncssh does; keep what it proves itself with."""
        self.offered_key = key_data
        key = super().validate_server_host_key(key_data)
        verify = key.verify

        def keep(data: bytes, sig: bytes) -> bool:
            # The first exchange's hash is the session's identifier (RFC 4253, section 7.2).
            proved = verify(data, sig)
            if proved and not self._binding:
                self._binding = (key_data, data, sig)
            return proved

        key.verify = keep  # type: ignore[method-assign]
        return key

    # Sending

    def send_packet(self, pkttype: int, *args: bytes, **kwargs: Any) -> None:
        """Send a packet, leaving out needless SSH_MSG_IGNOREs."""
        cipher: Any = self._send_encryption
        if type(cipher) is GCMEncryption:
            self._send_encryption = PacketGcm(cipher, encrypt=True)
        if pkttype == MSG_IGNORE and cipher and not isinstance(cipher, BasicEncryption):
            return
        super().send_packet(pkttype, *args, **kwargs)

    def send_data(self, channel: int, data: bytes) -> bool:
        """Send channel data; False when asyncssh must: another cipher, or new keys due."""
        cipher: Any = self._send_encryption
        transport = self._transport
        if (
            type(cipher) is not PacketGcm
            or transport is None
            or not self._kex_complete
            or not self._auth_complete
            or self._compressor is not None
            or self._rekey_bytes_sent >= self._rekey_bytes
            or (self._rekey_seconds and time.monotonic() >= self._rekey_time)
        ):
            return False
        size = len(data)
        padding = -(10 + size) % _BLOCK
        if padding < 4:
            padding += _BLOCK
        packet = b"".join(
            (
                b"%c%c" % (padding, MSG_CHANNEL_DATA),
                channel.to_bytes(4, "big"),
                size.to_bytes(4, "big"),
                data,
                self._padding.take(padding),
            )
        )
        length = len(packet)
        header = length.to_bytes(4, "big")
        transport.write(cipher.seal(header, packet))
        self._send_seq = (self._send_seq + 1) & 0xFFFFFFFF
        self._rekey_bytes_sent += length
        return True

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

    # Receiving

    def data_received(self, data: bytes, datatype: Any = None) -> None:
        """Take bytes from the network."""
        if len(self.greeting) < 64:
            self.greeting = (self.greeting + data)[:64]
        cipher: Any = self._recv_encryption
        if type(cipher) is GCMEncryption:
            cipher = self._recv_encryption = PacketGcm(cipher, encrypt=False)
        if type(cipher) is PacketGcm and self._recv_handler == self._recv_pkthdr:
            buffer = self._inpbuf + data if self._inpbuf else data
            self._inpbuf = b""
            self._receive_packets(cipher, buffer)
        else:
            super().data_received(data, datatype)
        if len(self._inpbuf) > _MAX_WAITING:
            self._force_close(asyncssh.ProtocolError("Max packet size exceeded"))
            self._inpbuf = b""

    def _receive_packets(self, cipher: PacketGcm, buffer: bytes) -> None:
        at, end = 0, len(buffer)
        while end - at >= 4:
            header = buffer[at : at + 4]
            length = int.from_bytes(header, "big")
            after = at + 4 + length + TAG_SIZE
            if length > MAX_RECEIVED_PACKET:
                self._force_close(asyncssh.ProtocolError("Max packet size exceeded"))
                return
            if after > end:
                break
            packet = cipher.open(header, buffer[at + 4 : after])
            if packet is None or length < _BLOCK:
                self._force_close(asyncssh.MACError("MAC verification failed"))
                return
            if not (packet[1] == MSG_CHANNEL_DATA and self._take_data(packet)):
                # asyncssh's own way, with the packet as it came.
                cipher.put_back(packet)
                self._inpbuf = buffer[at:after]
                super().data_received(b"")
                if self._recv_encryption is not cipher or self._recv_handler != self._recv_pkthdr:
                    # New keys, or a packet that is still being worked on.
                    self.data_received(buffer[after:])
                    return
            at = after
            if self._transport is None:
                return
        self._inpbuf = buffer[at:]

    def _take_data(self, packet: bytes) -> bool:
        channel: Any = self._channels.get(int.from_bytes(packet[2:6], "big"))
        if (
            not isinstance(channel, DataChannel)
            or not self._auth_complete
            or self._decompressor is not None
            or int.from_bytes(packet[6:10], "big") != len(packet) - 10 - packet[0]
        ):
            return False
        try:
            taken = channel.take_data(packet[10 : len(packet) - packet[0]])
        except Exception:
            self.internal_error()
            return True
        if taken:
            self._heard = True
            self._recv_seq = (self._recv_seq + 1) & 0xFFFFFFFF
        return taken

    def _keepalive_timer_callback(self) -> None:
        if self._heard:
            # Data came by the short cut, which does not touch the timer.
            self._heard = False
            self._keepalive_count = 0
            self._set_keepalive_timer()
        else:
            super()._keepalive_timer_callback()

    def create_unix_channel(
        self, encoding: str | None = None, errors: str = "strict", window: int = 0,
        max_pktsize: int = 0,
    ) -> SSHUNIXChannel[bytes]:  # fmt: skip
        """A channel of the kind above."""
        return _UnixChannel(self, self._loop, encoding, errors, window, max_pktsize)

    def create_tcp_channel(
        self, encoding: str | None = None, errors: str = "strict", window: int = 0,
        max_pktsize: int = 0,
    ) -> SSHTCPChannel[bytes]:  # fmt: skip
        """A channel of the kind above."""
        return _TcpChannel(self, self._loop, encoding, errors, window, max_pktsize)
