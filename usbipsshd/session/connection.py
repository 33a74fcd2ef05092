# SPDX-License-Identifier: GPL-3.0-or-later
"""One ssh connection: its host key, its login, its end.

Nothing is read from a home folder, a configuration file or the environment: host keys come as
bytes, private keys stay behind an agent socket, and publickey is the only way to log in.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import asyncssh

from usbipsshd.errors import Code
from usbipsshd.session.failure import Failure
from usbipsshd.session.hostkeys import KEY_FAMILIES, TrustedKeys, fingerprint, key_text
from usbipsshd.session.mended import MendedConnection

log = logging.getLogger(__name__)

CONNECT_LIMIT = 15.0
"""Seconds for name, connection and login together."""
KEEPALIVE_INTERVAL = 3.0
KEEPALIVE_COUNT = 2
"""Noticed as gone after at most interval * (count + 2) = 12 seconds of silence."""
CLOSE_LIMIT = 3.0
MAX_ADDRESSES = 8
DEFAULT_PORT = 22

CIPHERS = (
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "chacha20-poly1305@openssh.com",
    "aes128-ctr",
    "aes192-ctr",
    "aes256-ctr",
)


@dataclass(frozen=True, slots=True)
class Target:
    """Where to connect and as whom."""

    host: str
    port: int
    user: str = "root"
    alias: str = ""
    """The name that its host key is known by, if that is not its address."""


Dial = Callable[[Target, float], Awaitable[socket.socket]]
"""Connects a stream socket to a target within so many seconds; raises :exc:`Failure`."""


class _Watcher(asyncssh.SSHClient):
    """Tells when the connection is gone."""

    def __init__(self) -> None:
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_result(exc)


class Connection:
    """A connection that is logged in.

    ``ssh`` is asyncssh's connection; ``lost`` is done once it has ended for whatever reason.
    """

    def __init__(self, ssh: MendedConnection, watcher: _Watcher) -> None:
        self.ssh = ssh
        self.lost = watcher.lost

    def failure(self) -> Failure:
        """Why the connection is gone, for those who were using it."""
        error = self.lost.result() if self.lost.done() else None
        return Failure(Code.CONNECTION_FAILED, _reason(error) or "the connection was closed")

    async def close(self) -> None:
        """Close in order, by force after :data:`CLOSE_LIMIT` seconds."""
        self.ssh.close()
        with contextlib.suppress(TimeoutError, asyncssh.Error, OSError):
            async with asyncio.timeout(CLOSE_LIMIT):
                await self.ssh.wait_closed()
        self.ssh.abort()


def _reason(error: BaseException | None) -> str:
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()
    return str(error) if error is not None else ""


def _options(
    target: Target, known_hosts: Any, algorithms: Sequence[str], watcher: _Watcher
) -> asyncssh.SSHClientConnectionOptions:
    return asyncssh.SSHClientConnectionOptions(
        config=None,
        client_factory=lambda: watcher,
        host=target.host,
        port=target.port,
        username=target.user,
        known_hosts=known_hosts,
        server_host_key_algs=list(algorithms),
        x509_trusted_certs=None,
        x509_trusted_cert_paths=[],
        client_keys=None,
        client_host_keys=None,
        client_username=target.user,
        agent_path=None,
        agent_forwarding=False,
        pkcs11_provider=None,
        host_based_auth=False,
        public_key_auth=True,
        kbdint_auth=False,
        password_auth=False,
        preferred_auth=["publickey"],
        gss_host=None,
        gss_kex=False,
        gss_auth=False,
        encryption_algs=list(CIPHERS),
        compression_algs=["none"],
        login_timeout=CONNECT_LIMIT,
        keepalive_interval=KEEPALIVE_INTERVAL,
        keepalive_count_max=KEEPALIVE_COUNT,
    )


async def _resolve(host: str, port: int) -> list[tuple[int, Any]]:
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            raise Failure(Code.CONNECTION_FAILED, "its name cannot be looked up now") from None
        raise Failure(Code.CONNECTION_FAILED, "no such host") from None
    except (OSError, UnicodeError):
        raise Failure(Code.CONNECTION_FAILED, "no such host") from None
    return [(family, address) for family, _, _, _, address in found[:MAX_ADDRESSES]]


async def dial_tcp(target: Target, limit: float) -> socket.socket:
    """A connected TCP socket, trying each address with its share of ``limit`` seconds."""
    loop = asyncio.get_running_loop()
    end = loop.time() + limit
    addresses = await _resolve(target.host, target.port)
    failure: OSError | None = None
    for left, (family, address) in zip(range(len(addresses), 0, -1), addresses, strict=True):
        sock: socket.socket | None = None
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout((end - loop.time()) / left):
                await loop.sock_connect(sock, address)
        except OSError as error:  # TimeoutError is one too
            failure = error
            if sock is not None:
                sock.close()
        except BaseException:
            if sock is not None:
                sock.close()
            raise
        else:
            return sock
    if isinstance(failure, TimeoutError):
        raise Failure(Code.TIMED_OUT, "no answer")
    raise Failure(Code.CONNECTION_FAILED, _reason(failure) or "no address")


async def _handshake(
    target: Target,
    options: asyncssh.SSHClientConnectionOptions,
    wait: str,
    agent: socket.socket | None,
    limit: float,
    *,
    dial: Dial,
) -> MendedConnection:
    """Connect and wait for ``kex`` or ``auth``; Failure or asyncssh.Error when it fails.

    Takes over ``agent``.
    """
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()
    options.waiter = waiter
    made: list[MendedConnection] = []

    def make() -> MendedConnection:
        made.append(MendedConnection(loop, options, wait, agent))
        return made[-1]

    done = False
    try:
        async with asyncio.timeout(limit):
            sock = await dial(target, limit)
            try:
                await loop.create_connection(make, sock=sock)
            except BaseException:
                sock.close()
                raise
            await waiter
            done = True
    except TimeoutError:
        raise Failure(Code.TIMED_OUT, "no answer from its ssh server") from None
    except OSError as error:
        raise Failure(Code.CONNECTION_FAILED, _reason(error)) from None
    except asyncssh.Error as error:
        raise _login_failure(error, made[0] if made else None) from None
    except Failure:
        raise
    except Exception as error:
        # asyncssh hands on whatever its parsers stumbled over.
        log.warning("the handshake failed: %s: %s", type(error).__name__, error)
        raise Failure(Code.REMOTE_UNSUPPORTED, "its ssh server does not make sense") from None
    finally:
        if not made and agent is not None:
            agent.close()
        if not done:
            waiter.cancel()
            for conn in made:
                conn.abort()
    return made[0]


def _is_no_greeting(data: bytes) -> bool:
    # Lines before the version are allowed (RFC 4253, 4.2), and OpenSSH says so when it is too busy.
    return data != b"" and b"SSH-" not in data and not data.startswith(b"Exceeded MaxStartups")


def _login_failure(  # noqa: PLR0911
    error: asyncssh.Error, conn: MendedConnection | None
) -> Failure:
    if isinstance(error, asyncssh.HostKeyNotVerifiable):
        key = conn.offered_key if conn is not None else None
        return Failure(Code.HOST_KEY_UNKNOWN, fingerprint(key) if key else "")
    if isinstance(error, asyncssh.PermissionDenied):
        return Failure(Code.SSH_AUTH_FAILED, "it accepts none of the keys")
    if isinstance(error, asyncssh.KeyExchangeFailed):
        return Failure(Code.REMOTE_UNSUPPORTED, "its ssh server has no algorithm in common with us")
    if isinstance(error, asyncssh.ConnectionLost):
        if conn is not None and _is_no_greeting(conn.greeting):
            return Failure(Code.REMOTE_UNSUPPORTED, "what answers there is no ssh server")
        return Failure(Code.CONNECTION_FAILED, "its ssh server closed the connection")
    if isinstance(error, (asyncssh.ProtocolError, asyncssh.ProtocolNotSupported)):
        return Failure(Code.REMOTE_UNSUPPORTED, "what answers there is no ssh server")
    return Failure(Code.CONNECTION_FAILED, str(error))


async def open_connection(
    target: Target,
    agent: socket.socket,
    known_hosts: bytes,
    limit: float = CONNECT_LIMIT,
    dial: Dial = dial_tcp,
) -> Connection:
    """Connect and log in within ``limit`` seconds.

    Takes over ``agent``, a connected ssh-agent socket. Raises :exc:`Failure` with ConnectionFailed,
    TimedOut, HostKeyUnknown or HostKeyMismatch (the detail is the fingerprint of the
    offered key), SshAuthFailed or RemoteUnsupported. Cancelled, nothing stays open.
    """
    try:
        name = (target.alias, DEFAULT_PORT) if target.alias else (target.host, target.port)
        trusted = TrustedKeys(known_hosts, *name)
        watcher = _Watcher()
        options = _options(target, trusted.lookup, trusted.algorithms(), watcher)
    except BaseException as error:
        agent.close()
        if isinstance(error, (ValueError, UnicodeError)):
            raise Failure(Code.INVALID_ARGS, "host, user or known hosts") from None
        raise
    try:
        ssh = await _handshake(target, options, "auth", agent, limit, dial=dial)
    except Failure as failure:
        if failure.code is Code.HOST_KEY_UNKNOWN and trusted.known:
            raise Failure(Code.HOST_KEY_MISMATCH, failure.detail) from None
        raise
    return Connection(ssh, watcher)


async def read_host_key(
    host: str,
    port: int,
    wanted: str = "",
    limit: float = CONNECT_LIMIT,
    dial: Dial = dial_tcp,
) -> str:
    """The host's public key as ``type base64``, without logging in.

    With a ``wanted`` fingerprint, the key types are tried in turn until one
    matches; else, and if none does, it is the first key that was offered. The host has proved
    that it holds the key. Raises :exc:`Failure` as :func:`open_connection` does.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + limit
    first = ""
    failure: Failure | None = None
    for family in KEY_FAMILIES:
        target = Target(host, port, "root")
        options = _options(target, None, family, _Watcher())
        try:
            ssh = await _handshake(target, options, "kex", None, end - loop.time(), dial=dial)
        except Failure as error:
            failure = error
            if error.code is Code.REMOTE_UNSUPPORTED and "algorithm" in error.detail:
                continue
            break
        key = ssh.offered_key or b""
        ssh.abort()
        text = key_text(key)
        first = first or text
        if not wanted or fingerprint(key) == wanted:
            return text
    if first:
        return first
    raise failure or Failure(Code.REMOTE_UNSUPPORTED, "its ssh server offers no host key we know")
