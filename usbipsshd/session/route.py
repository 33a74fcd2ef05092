# SPDX-License-Identifier: GPL-3.0-or-later
"""The way to a remote that is not one TCP connection: jump hosts, and a ProxyCommand.

Each step ends in a connected socket for the ssh connection after it. Host keys are checked
and logins made at every hop, by the rules of :mod:`usbipsshd.session.connection`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass

import asyncssh

from usbipsshd.errors import Code
from usbipsshd.messages import MAX_JUMPS, BadPacket, Packet, get_int, get_str
from usbipsshd.session.connection import (
    CONNECT_LIMIT,
    Connection,
    Dial,
    Target,
    dial_tcp,
    open_connection,
)
from usbipsshd.session.failure import Failure
from usbipsshd.session.mended import MendedConnection
from usbipsshd.session.relay import Relay

SHELL = "/bin/sh"
MAX_PROXY = 1024
PROXY_END_LIMIT = 3.0
"""Seconds that a ProxyCommand has to end once its connection is closed."""

_JUMP_FAILURES = {
    Code.HOST_KEY_UNKNOWN: "its jump host has a host key that is not known here",
    Code.HOST_KEY_MISMATCH: "its jump host has another host key than the known one",
    Code.SSH_AUTH_FAILED: "its jump host does not accept the key",
}


@dataclass(frozen=True, slots=True)
class Route:
    """What the root process says of the way; ``target`` is the remote itself."""

    target: Target
    jumps: tuple[Target, ...] = ()
    proxy: str = ""

    @classmethod
    def parse(cls, packet: Packet) -> Route:
        """The route in a request; raise :exc:`BadPacket`."""
        jumps = packet.get("jumps", [])
        if not isinstance(jumps, list) or len(jumps) > MAX_JUMPS:
            raise BadPacket("jumps: not a list of hosts")
        proxy = get_str({"proxy": "", **packet}, "proxy", MAX_PROXY)
        return cls(_target(packet), tuple(_target(j) for j in jumps), proxy)


def _target(value: object) -> Target:
    if not isinstance(value, dict):
        raise BadPacket("jumps: not a list of hosts")
    return Target(
        get_str(value, "host"),
        get_int(value, "port", 65535),
        get_str({"user": "root", **value}, "user"),
        get_str({"alias": "", **value}, "alias"),
    )


class Approach:
    """Everything between this machine and the last hop."""

    def __init__(self, route: Route, limit: float = CONNECT_LIMIT) -> None:
        self._route = route
        self._limit = limit
        self._connections: list[Connection] = []
        self._proxy: asyncio.subprocess.Process | None = None

    async def run(self, agents: Sequence[socket.socket], known_hosts: bytes) -> Dial:
        """Log in at every jump host; how to connect to the last hop.

        Takes over ``agents``, one for each jump host. Raises :exc:`Failure`; what is open then
        is closed by :meth:`close`.
        """
        left = list(agents)
        dial = self._dial_first()
        try:
            for jump in self._route.jumps:
                if not left:
                    raise BadPacket("an agent socket for each jump host")
                connection = await self._log_in(jump, left.pop(0), known_hosts, dial)
                self._connections.append(connection)
                dial = _through(connection.ssh)
        finally:
            for agent in left:
                agent.close()
        return dial

    async def _log_in(
        self, jump: Target, agent: socket.socket, known_hosts: bytes, dial: Dial
    ) -> Connection:
        try:
            return await open_connection(jump, agent, known_hosts, self._limit, dial)
        except Failure as failure:
            detail = _JUMP_FAILURES.get(failure.code, "its jump host cannot be reached")
            raise Failure(Code.CONNECTION_FAILED, detail) from None

    def _dial_first(self) -> Dial:
        return self._start_proxy if self._route.proxy else dial_tcp

    async def _start_proxy(self, target: Target, limit: float) -> socket.socket:
        """Run the command; the end of a socketpair whose other end it reads and writes."""
        await self._end_proxy()
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._proxy = await asyncio.create_subprocess_exec(
                    SHELL, "-c", f"exec {self._route.proxy}",
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    env={"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/nonexistent"},
                    start_new_session=True,
                )  # fmt: skip
            except BaseException as error:
                ours.close()
                if isinstance(error, OSError):
                    raise Failure(
                        Code.CONNECTION_FAILED, "its ProxyCommand cannot be started"
                    ) from None
                raise
        ours.setblocking(False)
        return ours

    async def close(self) -> None:
        """Close the connections to the jump hosts, the last one first, and end the command."""
        while self._connections:
            await self._connections.pop().close()
        await self._end_proxy()

    async def _end_proxy(self) -> None:
        proxy, self._proxy = self._proxy, None
        if proxy is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            # Under systemd a session may signal nobody: there the end of its socket ends the
            # command, and systemd what does not heed that.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(proxy.pid, number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PROXY_END_LIMIT):
                    await proxy.wait()
                    return


def _through(ssh: MendedConnection) -> Dial:
    """How to connect from the machine at the far end of ``ssh``."""

    async def dial(target: Target, limit: float) -> socket.socket:
        ours, theirs = socket.socketpair()
        tunnel: _Tunnel | None = None

        def make() -> _Tunnel:
            nonlocal tunnel
            tunnel = _Tunnel(ssh, theirs)
            return tunnel

        try:
            async with asyncio.timeout(limit):
                await ssh.create_connection(make, target.host, target.port, encoding=None)
        except BaseException as error:
            ours.close()
            theirs.close()
            if isinstance(error, (asyncssh.Error, OSError)) and not isinstance(error, TimeoutError):
                raise Failure(Code.CONNECTION_FAILED, "its jump host does not reach it") from None
            raise
        ours.setblocking(False)
        return ours

    return dial


class _Tunnel(asyncssh.SSHTCPSession[bytes]):
    """A channel to the next hop, relayed to a socket."""

    def __init__(self, ssh: MendedConnection, sock: socket.socket) -> None:
        self._ssh = ssh
        self._sock = sock
        self._chan: asyncssh.SSHTCPChannel[bytes] | None = None
        self._relay: Relay | None = None

    def connection_made(self, chan: asyncssh.SSHTCPChannel[bytes]) -> None:
        self._chan = chan

    def session_started(self) -> None:
        assert self._chan is not None
        self._relay = Relay(self._chan, self._ssh, self._sock, lambda _why: None)

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        if self._relay is not None:
            self._relay.data_received(data)

    def eof_received(self) -> bool:
        if self._relay is not None:
            self._relay.eof_received()
        return True

    def pause_writing(self) -> None:
        if self._relay is not None:
            self._relay.pause_writing()

    def resume_writing(self) -> None:
        if self._relay is not None:
            self._relay.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._relay is not None:
            self._relay.end(str(exc) if exc else "")
