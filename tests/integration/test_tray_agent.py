# SPDX-License-Identifier: GPL-3.0-or-later
"""The tray and the ssh-agent of whoever runs it: a machine that knows only this person's key."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fakekernel import STICK
from integration.sessionbus import SessionBus, session_bus
from integration.sshagents import PersonsAgent, mute_agent, persons_agent
from integration.test_tray import STICK_ROW, run
from integration.trays import tray
from integration.world import ALICE, ATTACHMENT, World, wait_until, world


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    with world() as made:
        made.pi.plug("2-1", STICK)
        # pi knows alice's key, and not the daemon's.
        made.add_remote(key=False)
        yield made


@pytest.fixture
def w(shared: World) -> Iterator[World]:
    yield shared
    shared.detach_all()
    shared.check_clean()
    wait_until(lambda: not shared.sessions(), "a session stays")
    assert "Traceback" not in shared.log()


@pytest.fixture
def session(shared: World) -> Iterator[SessionBus]:
    with session_bus(shared.bus.spawn) as made:
        yield made


@pytest.fixture
def agent(w: World) -> Iterator[PersonsAgent]:
    with persons_agent(ALICE, w.ssh.client_key) as running:
        yield running


def test_what_only_one_s_own_key_opens_is_shown_and_attached(
    w: World, session: SessionBus, agent: PersonsAgent
) -> None:
    async def main() -> None:
        async with tray(session, w, ALICE, str(agent.path)) as (shown, told):
            menu = await shown.menu_with(lambda m: m.find("pi: with your own ssh key"))
            assert menu.labels()[1] == STICK_ROW
            assert "Try again" not in menu.labels()
            await shown.click(menu.find(STICK_ROW))
            menu = await shown.menu_with(lambda m: m.find(STICK_ROW).checked)
            (path,) = w.attachments()
            assert w.get(path, ATTACHMENT, "OwnerUid") == ALICE
            await told.next("SanDisk Ultra")
            await shown.click(menu.find(STICK_ROW))
            await shown.menu_with(lambda m: not m.find(STICK_ROW).checked)
            menu = await shown.menu_with(lambda m: m.find("pi: with your own ssh key"))
            await shown.click(menu.find("Attach everything there"))
            await shown.menu_with(lambda m: m.find(STICK_ROW).checked)
            assert all("did not work" not in s and "refused" not in s for s, _ in told.told)

    run(main())


def test_what_is_to_last_needs_the_daemon_s_key(
    w: World, session: SessionBus, agent: PersonsAgent
) -> None:
    async def main() -> None:
        async with tray(session, w, ALICE, str(agent.path)) as (shown, told):
            menu = await shown.menu_with(lambda m: m.find("pi: with your own ssh key"))
            await shown.click(menu.find("More").find(STICK_ROW).find("Always attach"))
            _summary, body = await told.next("did not work")
            assert "PublicKey" in body
            assert w.attachments() == []

    run(main())


def test_an_agent_without_keys_is_named_beside(w: World, session: SessionBus) -> None:
    async def main() -> None:
        with persons_agent(ALICE) as empty:
            async with tray(session, w, ALICE, str(empty.path)) as (shown, _told):
                await shown.menu_with(lambda m: m.find("Try again"))
                await shown.menu_with(lambda m: "offers no key" in " ".join(m.labels()))
                # With its key it works at once.
                empty.add(w.ssh.client_key)
                await shown.press("Try again")
                await shown.menu_with(lambda m: m.find(STICK_ROW))

    run(main())


@pytest.mark.parametrize(
    ("full", "says"), [(False, "does not answer"), (True, "PublicKey")], ids=["silent", "full"]
)
def test_an_agent_that_hangs_holds_up_nothing(
    w: World, session: SessionBus, full: bool, says: str
) -> None:
    async def main() -> None:
        with mute_agent(ALICE, full=full) as path:
            async with tray(session, w, ALICE, path) as (shown, _told):
                await shown.menu_with(lambda m: m.find("pi: unreachable"))
                await shown.press("Try again")
                await shown.menu_with(lambda m: says in " ".join(m.labels()))

    run(main())
