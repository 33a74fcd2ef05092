# SPDX-License-Identifier: GPL-3.0-or-later
"""Links that are one caller's own: never shared, limited for each user, and gone with their use."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from openfiles import open_before, open_files
from unit.made import refused, run
from unit.test_link import REMOTE, Sessions, ways

from usbipsshd.errors import Code, UsbipError
from usbipsshd.link import Link, LinkState
from usbipsshd.links import MAX_PRIVATE, MAX_PRIVATE_PER_UID, Links, PassedAgent
from usbipsshd.ownkey import Key
from usbipsshd.way import OwnKeys


class Store:
    """What was left with systemd, by name."""

    def __init__(self) -> None:
        self.kept: set[str] = set()

    def store(self, name: str, fd: int) -> None:
        os.fstat(fd)
        self.kept.add(name)

    def unstore(self, name: str) -> None:
        self.kept.discard(name)


class Heard:
    """Notes that a private link has become idle."""

    def __init__(self) -> None:
        self.idle = asyncio.Event()

    def link_changed(self, link: Link) -> None:
        if link.private and link.status.state is LinkState.IDLE:
            self.idle.set()

    def link_devices_changed(self, link: Link) -> None:
        """Nothing is plugged in here."""

    def link_released(self, link: Link, busid: str, error: UsbipError) -> None:
        """Nothing is exported here."""

    def link_returned(self, link: Link, busid: str, error: UsbipError) -> None:
        """Nothing is lent here."""

    def link_lost(self, link: Link, error: UsbipError) -> None:
        """Nothing is lost here."""


Work = Callable[[Links, Sessions, Store, PassedAgent], Coroutine[None, None, None]]


@pytest.fixture
def with_links(tmp_path: Path) -> Callable[[Work], None]:
    """Runs with links, and an ssh-agent's socket of uid 1."""
    key = Key(tmp_path)
    key.load()

    async def main(work: Work) -> None:
        sessions, store = Sessions(), Store()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            async with asyncio.TaskGroup() as group:
                links = Links(
                    group=group, launcher=sessions, ways=ways(key), own=OwnKeys(key), keeper=store
                )
                await work(links, sessions, store, PassedAgent(ours.fileno(), 1))
                await links.close()
        assert sessions.started == sessions.ended
        assert store.kept == set()

    return lambda work: run(main(work))


def test_each_has_a_connection_of_its_own(with_links: Callable[[Work], None]) -> None:
    async def work(links: Links, sessions: Sessions, store: Store, agent: PassedAgent) -> None:
        heard = Heard()
        links.listen(heard)
        with links.kept(REMOTE) as shared, links.kept(REMOTE, agent) as one:
            with links.kept(REMOTE, agent) as two:
                assert len({shared, one, two}) == 3
                assert links.to(REMOTE) is shared
                assert links.get("pi") is shared
                async with shared.use() as a, one.use() as b, two.use() as c:
                    assert len({a, b, c}) == 3
                assert sessions.started == 3
                assert store.kept == {
                    "session-7069", "private-1", "agent-1", "private-2", "agent-2",
                }  # fmt: skip
            # At once, not after a while: nobody else may use it.
            async with asyncio.timeout(30):
                await heard.idle.wait()
            assert sessions.ended == 1
            assert two.status.state is LinkState.IDLE
            assert store.kept == {"session-7069", "private-1", "agent-1"}

    with_links(work)


def test_what_was_never_connected_leaves_nothing(with_links: Callable[[Work], None]) -> None:
    async def work(links: Links, sessions: Sessions, store: Store, agent: PassedAgent) -> None:
        before = len(open_before())
        for _ in range(3):
            with links.kept(REMOTE, agent):
                assert len(open_files()) == before + 1
        assert len(open_files()) == before
        assert sessions.started == 0

    with_links(work)


@pytest.mark.parametrize(("uid", "most"), [(1, MAX_PRIVATE_PER_UID), (0, MAX_PRIVATE)])
def test_there_is_an_end_to_them(with_links: Callable[[Work], None], uid: int, most: int) -> None:
    async def work(links: Links, sessions: Sessions, store: Store, agent: PassedAgent) -> None:
        mine = PassedAgent(agent.fd, uid)
        kept: list[Any] = [links.kept(REMOTE, mine) for _ in range(most)]
        for each in kept:
            each.__enter__()
        with refused(Code.LIMITS_EXCEEDED), links.kept(REMOTE, mine):
            pass
        if uid:
            with links.kept(REMOTE, PassedAgent(agent.fd, uid + 1)):
                pass
        for each in kept:
            each.__exit__(None, None, None)
        with links.kept(REMOTE, mine):
            pass

    with_links(work)


def test_without_its_agent_a_remote_is_not_even_asked(with_links: Callable[[Work], None]) -> None:
    async def work(links: Links, sessions: Sessions, store: Store, agent: PassedAgent) -> None:
        link = links.resume_private(REMOTE, 4, None, 1)
        with link.kept():
            for _ in range(2):
                with refused(Code.SSH_AUTH_FAILED, "does not answer"):
                    async with link.use():
                        pass
        assert sessions.started == 0
        assert links.private(4) is None
        # Its number is not given out again.
        with links.kept(REMOTE, agent) as other:
            assert other.private == 5

    with_links(work)
