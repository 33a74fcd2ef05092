# SPDX-License-Identifier: GPL-3.0-or-later
"""All the links: one for each listed remote, and for others while they are in use."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Protocol

from usbipsshd.errors import Code, UsbipError
from usbipsshd.launcher import Launcher
from usbipsshd.link import IDLE_SECONDS, Link, LinkHooks
from usbipsshd.remotes import Remote
from usbipsshd.way import Ways

MAX_LINKS = 320


def descriptor_name(remote: str) -> str:
    """Under which name a session's control socket is kept; systemd allows no colon in it."""
    return "session-" + remote.encode().hex()[:200]


class LinkListener(Protocol):
    """Who is told what happens to links."""

    def link_changed(self, link: Link) -> None:
        """Its status changed."""

    def link_devices_changed(self, link: Link) -> None:
        """Something was plugged in or out there."""

    def link_released(self, link: Link, busid: str, error: UsbipError) -> None:
        """An export ended by itself."""

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
        keeper: SessionKeeper,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self._group = group
        self._launcher = launcher
        self.ways = ways
        self.keeper = keeper
        self._idle_seconds = idle_seconds
        self._links: dict[str, Link] = {}
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
        link = self._links[remote.name] = self._make(remote)
        return link

    def _make(self, remote: Remote) -> Link:
        name = descriptor_name(remote.name)

        def told(tell: Callable[[LinkListener], None]) -> None:
            for listener in self._listeners:
                tell(listener)

        hooks = LinkHooks(
            changed=lambda: told(lambda x: x.link_changed(link)),
            devices_changed=lambda: told(lambda x: x.link_devices_changed(link)),
            released=lambda busid, error: told(lambda x: x.link_released(link, busid, error)),
            lost=lambda error: told(lambda x: x.link_lost(link, error)),
            opened=lambda fd: self.keeper.store(name, fd),
            ended=lambda: self.keeper.unstore(name),
        )
        link = Link(
            remote,
            group=self._group,
            launcher=self._launcher,
            ways=self.ways,
            hooks=hooks,
            idle_seconds=self._idle_seconds,
        )
        return link

    def follow(self, remotes: Iterable[Remote]) -> None:
        """The list of remotes was read again: use what it says from the next connection on."""
        for remote in remotes:
            link = self._links.get(remote.name)
            if link is not None and link.remote != remote:
                link.change(remote)

    def get(self, name: str) -> Link | None:
        """The link of that name, if there is one."""
        return self._links.get(name)

    async def drop(self, name: str) -> None:
        """Close and forget a link."""
        link = self._links.pop(name, None)
        if link is not None:
            await link.close()

    def abandon_soon(self) -> None:
        """Say nothing more to any session, however its link ends."""
        for link in self._links.values():
            link.abandon_soon()

    async def abandon(self) -> None:
        """End every link without a word to its session: another process takes it over."""
        for link in list(self._links.values()):
            await link.abandon()

    async def close(self) -> None:
        """Close every link."""
        async with asyncio.TaskGroup() as group:
            for link in self._links.values():
                group.create_task(link.close())
