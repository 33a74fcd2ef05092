# SPDX-License-Identifier: GPL-3.0-or-later
"""All the links: one for each listed remote, and for others while they are in use.

Beside these, a caller that brings an ssh-agent has a link of its own, for as long as what it asked
for lasts.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Protocol

from usbipsshd.agentkeys import AgentKeys
from usbipsshd.callersagent import CallersAgent
from usbipsshd.errors import Code, UsbipError
from usbipsshd.launcher import Launcher
from usbipsshd.link import IDLE_SECONDS, Link, LinkHooks
from usbipsshd.remotes import Remote
from usbipsshd.way import OwnKeys, Ways

MAX_LINKS = 320
"""Remembered, in use or not."""
MAX_CONNECTIONS = 112
"""There, or about to be; usbipssh-session.socket allows 128, and TrustHostKey needs some."""
MAX_UNLISTED = 32
"""Of these, remotes that are not listed."""
MAX_PRIVATE = 64
MAX_PRIVATE_PER_UID = 16
"""Private links, each with a session process of its own; the second for everybody but root."""


def descriptor_name(remote: str) -> str:
    """Under which name a session's control socket is kept; systemd allows no colon in it."""
    return "session-" + remote.encode().hex()[:200]


def private_name(number: int) -> str:
    """The same for a private link's session."""
    return f"private-{number}"


def agent_name(number: int) -> str:
    """Under which name the ssh-agent of a private link is kept."""
    return f"agent-{number}"


@dataclass(frozen=True, slots=True)
class PassedAgent:
    """An ssh-agent that came with a call: a descriptor, the call's to close, and whose it is."""

    fd: int
    uid: int


@dataclass(frozen=True, slots=True)
class _Private:
    link: Link
    agent: CallersAgent
    uid: int


class LinkListener(Protocol):
    """Who is told what happens to links."""

    def link_changed(self, link: Link) -> None:
        """Its status changed."""

    def link_devices_changed(self, link: Link) -> None:
        """Something was plugged in or out there."""

    def link_released(self, link: Link, busid: str, error: UsbipError) -> None:
        """An export ended by itself."""

    def link_returned(self, link: Link, busid: str, error: UsbipError) -> None:
        """A device of this machine left the remote by itself."""

    def link_lost(self, link: Link, error: UsbipError) -> None:
        """The connection ended by itself."""


class SessionKeeper(Protocol):
    """Who keeps sessions' control sockets for the process that comes after this one."""

    def store(self, name: str, fd: int) -> None:
        """Keep a descriptor."""

    def unstore(self, name: str) -> None:
        """Keep it no longer."""


class Links:
    """Finds or makes the link to a remote."""

    def __init__(
        self,
        *,
        group: asyncio.TaskGroup,
        launcher: Launcher,
        ways: Ways,
        own: OwnKeys,
        keeper: SessionKeeper,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self._group = group
        self._launcher = launcher
        self.ways = ways
        self.keeper = keeper
        self._idle_seconds = idle_seconds
        self._own = own
        self._links: dict[str, Link] = {}
        self._private: dict[int, _Private] = {}
        self._numbers = count(1)
        self._listeners: list[LinkListener] = []

    def listen(self, listener: LinkListener) -> None:
        """Tell ``listener`` of everything from now on."""
        self._listeners.append(listener)

    def to(self, remote: Remote) -> Link:
        """The link to ``remote``; raise :exc:`UsbipError` (LimitsExceeded)."""
        link = self._links.get(remote.name)
        if link is not None and link.remote == remote:
            return link
        if len(self._links) >= MAX_LINKS:
            self._links = {n: k for n, k in self._links.items() if k.remote.listed or k.in_use}
            if len(self._links) >= MAX_LINKS:
                raise UsbipError(Code.LIMITS_EXCEEDED, "Too many remotes are in use at once.")
        name = descriptor_name(remote.name)
        link = self._links[remote.name] = self._make(
            remote,
            opened=lambda fd: self.keeper.store(name, fd),
            ended=lambda: self.keeper.unstore(name),
        )
        return link

    def _check_room(self, remote: Remote) -> None:
        """Raise :exc:`UsbipError` (LimitsExceeded) where one more connection is one too many."""
        connected = [link for link in self._every() if link.connected]
        unlisted = sum(not link.remote.listed for link in connected)
        if len(connected) >= MAX_CONNECTIONS:
            problem = f"At most {MAX_CONNECTIONS} remotes can be connected at a time"
        elif not remote.listed and unlisted >= MAX_UNLISTED:
            problem = f"At most {MAX_UNLISTED} remotes that are not listed can be connected"
        else:
            return
        raise UsbipError(
            Code.LIMITS_EXCEEDED,
            f"{problem}; detach something, or wait a minute until idle connections are closed.",
        )

    @contextmanager
    def kept(self, remote: Remote, agent: PassedAgent | None = None) -> Iterator[Link]:
        """The link to ``remote``, whose connection is not closed for idleness meanwhile.

        With ``agent`` it is a private one, which ends with its last user. Raises
        :exc:`UsbipError` (LimitsExceeded).
        """
        if agent is None:
            link = self.to(remote)
        else:
            own = sum(1 for each in self._private.values() if each.uid == agent.uid)
            if len(self._private) >= MAX_PRIVATE or (own >= MAX_PRIVATE_PER_UID and agent.uid):
                raise UsbipError(
                    Code.LIMITS_EXCEEDED, "Too many connections with an ssh-agent are in use."
                )
            number = next(self._numbers)
            link = self._make_private(remote, number, CallersAgent.copy_of(agent.fd), agent.uid)
        with link.kept():
            yield link

    def _make_private(self, remote: Remote, number: int, agent: CallersAgent, uid: int) -> Link:
        def opened(fd: int) -> None:
            self.keeper.store(private_name(number), fd)
            if not agent.gone:
                self.keeper.store(agent_name(number), agent.fileno())

        def unused() -> None:
            if not link.in_use and self._private.pop(number, None) is not None:
                agent.close()
                self.keeper.unstore(agent_name(number))

        def ended() -> None:
            self.keeper.unstore(private_name(number))
            unused()

        link = self._make(
            remote,
            opened=opened,
            ended=ended,
            unused=unused,
            ways=self.ways.signed_by(AgentKeys(agent, self._own)),
            private=number,
        )
        self._private[number] = _Private(link, agent, uid)
        return link

    def resume_private(self, remote: Remote, number: int, agent_fd: int | None, uid: int) -> Link:
        """A private link of an earlier process; takes over ``agent_fd``, None for one that is
        gone. Ends if nobody has used it.
        """
        self._numbers = count(max(number + 1, next(self._numbers)))
        sock = socket.socket(fileno=agent_fd) if agent_fd is not None else None
        return self._make_private(remote, number, CallersAgent(sock), uid)

    def private(self, number: int) -> Link | None:
        """The private link of that number."""
        found = self._private.get(number)
        return found.link if found is not None else None

    def _make(
        self,
        remote: Remote,
        *,
        opened: Callable[[int], None],
        ended: Callable[[], None],
        unused: Callable[[], None] = lambda: None,
        ways: Ways | None = None,
        private: int = 0,
    ) -> Link:
        def told(tell: Callable[[LinkListener], None]) -> None:
            for listener in self._listeners:
                tell(listener)

        hooks = LinkHooks(
            changed=lambda: told(lambda x: x.link_changed(link)),
            devices_changed=lambda: told(lambda x: x.link_devices_changed(link)),
            released=lambda busid, error: told(lambda x: x.link_released(link, busid, error)),
            returned=lambda busid, error: told(lambda x: x.link_returned(link, busid, error)),
            lost=lambda error: told(lambda x: x.link_lost(link, error)),
            opened=opened,
            ended=ended,
            unused=unused,
        )
        link = Link(
            remote,
            group=self._group,
            launcher=self._launcher,
            ways=ways or self.ways,
            hooks=hooks,
            idle_seconds=0.0 if private else self._idle_seconds,
            private=private,
            check_room=lambda: self._check_room(remote),
        )
        return link

    def follow(self, remotes: Iterable[Remote]) -> None:
        """The list of remotes was read again: use what it says from the next connection on."""
        for remote in remotes:
            for link in self._every(remote.name):
                if link.remote != remote:
                    link.change(remote)

    def _every(self, name: str | None = None) -> list[Link]:
        """All links, or those to one remote."""
        links = [*self._links.values(), *(each.link for each in self._private.values())]
        return [link for link in links if name in (None, link.remote.name)]

    def get(self, name: str) -> Link | None:
        """The link of that name, if there is one."""
        return self._links.get(name)

    async def drop(self, name: str) -> None:
        """Close and forget the links to a remote."""
        links = self._every(name)
        self._links.pop(name, None)
        for link in links:
            await link.close()

    def abandon_soon(self) -> None:
        """Say nothing more to any session, however its link ends."""
        for link in self._every():
            link.abandon_soon()

    async def abandon(self) -> None:
        """End every link without a word to its session: another process takes it over."""
        for link in self._every():
            await link.abandon()

    async def close(self) -> None:
        """Close every link."""
        async with asyncio.TaskGroup() as group:
            for link in self._every():
                group.create_task(link.close())
