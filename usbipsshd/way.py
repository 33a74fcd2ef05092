# SPDX-License-Identifier: GPL-3.0-or-later
"""What a session is given to get to a remote: the hops, the host keys, somebody who signs.

A session sees no private key and no file: for each hop it gets a socket to ask for signatures.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from typing import Protocol

from usbipsshd.errors import Code, UsbipError
from usbipsshd.explain import explain
from usbipsshd.identities import load_identities
from usbipsshd.messages import Json, Packet
from usbipsshd.ownkey import Key
from usbipsshd.remotes import Remote
from usbipsshd.signer import Signer, SigningKey
from usbipsshd.sshconfig import Hop, Route, SshConfig


class Signers(Protocol):
    """Who signs for the logins of a connection."""

    async def to(self, hop: Hop, remote: str, *, jump: bool) -> Signer:
        """Who signs for one hop's login, at a jump host or not; ``remote`` is named in the log.

        Raises :exc:`UsbipError` where nobody can.
        """
        ...

    def refused(self, remote: str) -> UsbipError:
        """The error for a login that was refused (SshAuthFailed): why, and what to do."""
        ...


class OwnKeys:
    """Signs with what root configured for a hop, and with the daemon's own key."""

    def __init__(self, key: Key) -> None:
        self._key = key

    async def to(self, hop: Hop, remote: str, *, jump: bool) -> Signer:
        """See :class:`Signers`."""
        return Signer(await self.keys(hop), remote)

    async def keys(self, hop: Hop) -> list[SigningKey]:
        """The private keys for one hop, in the order to try them."""
        keys: list[SigningKey] = []
        if hop.identities:
            keys += await asyncio.to_thread(load_identities, hop.identities, hop.certificates)
        return [*keys, self._key] if hop.own_key else keys

    def refused(self, remote: str) -> UsbipError:
        """See :class:`Signers`."""
        return explain(remote, Code.SSH_AUTH_FAILED)


class Way:
    """The way to one remote, for one connection."""

    def __init__(self, route: Route, known_hosts: bytes, signers: Sequence[Signer]) -> None:
        self._route = route
        self._known_hosts = known_hosts
        self._signers = signers
        """One for each hop."""

    @property
    def fields(self) -> Packet:
        """What a session is told of it: see :mod:`usbipsshd.messages`."""
        last = _hop(self._route.last)
        jumps: list[Json] = [_hop(hop) for hop in self._route.hops[:-1]]
        return {**last, "jumps": jumps, "proxy": self._route.proxy}

    @asynccontextmanager
    async def offered(self) -> AsyncIterator[tuple[int, ...]]:
        """Descriptors for a session: a signer's socket, known hosts, then the jump hosts' signers.

        There are signatures for as long as the context lasts.
        """
        tasks: list[asyncio.Task[None]] = []
        with ExitStack() as stack:
            theirs: list[int] = []
            for signer in (self._signers[-1], *self._signers[:-1]):
                ours, other = socket.socketpair()
                theirs.append(stack.enter_context(other).fileno())
                tasks.append(asyncio.create_task(signer.serve(ours)))
            known = known_hosts_file(self._known_hosts)
            stack.callback(os.close, known)
            try:
                yield theirs[0], known, *theirs[1:]
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)


class Ways:
    """Finds the way to a remote anew for each connection."""

    def __init__(
        self,
        config: SshConfig,
        signers: Signers,
        known_hosts: Callable[[Remote, Route], bytes],
    ) -> None:
        self._config = config
        self._signers = signers
        self._known_hosts = known_hosts

    def signed_by(self, signers: Signers) -> Ways:
        """The same ways, with somebody else's keys."""
        return Ways(self._config, signers, self._known_hosts)

    def refused(self, remote: str) -> UsbipError:
        """The error for a login there that was refused."""
        return self._signers.refused(remote)

    async def to(self, remote: Remote) -> Way:
        """The way to ``remote``; raise :exc:`UsbipError` (Failed, SshAuthFailed)."""
        route = await self._config.route(remote.address)
        signers = [
            await self._signers.to(hop, remote.name, jump=hop is not route.last)
            for hop in route.hops
        ]
        return Way(route, self._known_hosts(remote, route), signers)


def _hop(hop: Hop) -> Packet:
    return {"host": hop.host, "port": hop.port, "user": hop.user, "alias": hop.alias}


def known_hosts_file(text: bytes) -> int:
    """A descriptor of an anonymous read-only file with ``text`` in it."""
    fd = os.memfd_create("known_hosts", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.write(fd, text)
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd
