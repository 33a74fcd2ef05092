# SPDX-License-Identifier: GPL-3.0-or-later
"""A caller's own ssh-agent for what is exported, what is reset, and a hub over a restart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fakekernel import KEYBOARD, SERIAL_ADAPTER, STICK, FakeKernel
from integration.sshagents import PersonsAgent, ask_with, persons_agent
from integration.test_callers_agent import becomes, kill_session, says, state
from integration.test_lasting_restart import kill
from integration.world import ALICE, ATTACHMENT, BOB, World, wait_until, world

KEEP = {"keep": True}
STORED = 2
"""Descriptors of one private connection that systemd keeps: its session's and its agent's."""


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    with world(with_systemd=True) as made:
        made.pi.plug("2-1", STICK)
        made.pi.plug("1-2", SERIAL_ADAPTER)
        made.desk.plug("1-1", KEYBOARD)
        # pi knows alice's key, and not the daemon's.
        made.add_remote(key=False)
        yield made


@pytest.fixture
def w(shared: World) -> Iterator[World]:
    yield shared
    shared.detach_all()
    wait_until(lambda: not shared.sessions(), "a session stays")
    assert shared.systemd is not None
    shared.systemd.wait_stored(0)
    shared.check_clean()
    assert shared.desk.state()["devices"]["1-1"]["driver"] == "usb"
    assert "Traceback" not in shared.log()


@pytest.fixture
def agent(w: World) -> Iterator[PersonsAgent]:
    with persons_agent(ALICE, w.ssh.client_key) as running:
        yield running


def ask(w: World, agent: PersonsAgent, member: str, pattern: str, **options: bool) -> Any:
    with agent.connect() as sock:
        return ask_with(w, agent.uid, member, ("pi", pattern), sock, options).value()


def resets(kernel: FakeKernel, busid: str) -> int:
    return int(kernel.state()["log"].count(f"authorize {busid}"))


def test_a_device_of_this_machine_goes_where_only_one_s_own_key_leads(
    w: World, agent: PersonsAgent
) -> None:
    w.refused("SshAuthFailed", ALICE, "Export", "ssa{sv}", "pi", "1-1", "0", says="PublicKey")
    assert w.desk.state()["devices"]["1-1"]["driver"] == "usb"
    path = ask(w, agent, "Export", "1-1")
    told = w.get_all(path, ATTACHMENT)
    assert (told["Direction"], told["State"], told["OwnerUid"]) == ("export", "attached", ALICE)
    assert w.pi.transfer(told["Port"], 100_000) == 100_000
    # Nobody else comes in by it, and it is hers like any other.
    w.refused("SshAuthFailed", ALICE, "ListRemote", "ssa{sv}", "pi", "", "0")
    w.refused("AccessDenied", BOB, "Detach", "sa{sv}", path, "0")
    assert w.call(ALICE, "Detach", "sa{sv}", "1-1", "0") == 1
    w.pi.wait(lambda s: not s["ports"])


def test_a_kept_export_logs_in_again_for_as_long_as_the_agent_is_there(
    w: World, agent: PersonsAgent
) -> None:
    path = ask(w, agent, "Export", "1-1", **KEEP)
    since = w.get(path, ATTACHMENT, "AttachedAt")
    kill_session(w)
    wait_until(lambda: w.get(path, ATTACHMENT, "AttachedAt") > since, "not again")
    becomes(w, path, "attached")
    agent.stop()
    kill_session(w)
    says(w, path, "does not answer")
    becomes(w, path, "waiting")
    # Whoever plugged it in can use it meanwhile.
    w.desk.wait(lambda s: s["devices"]["1-1"]["driver"] == "usb")


def test_an_export_goes_on_over_a_restart_and_comes_back_with_the_same_agent(
    w: World, agent: PersonsAgent
) -> None:
    path = ask(w, agent, "Export", "1-1", **KEEP)
    before = w.get_all(path, ATTACHMENT)
    assert w.systemd is not None
    # The local agent's socket, too.
    w.systemd.wait_stored(STORED + 1)
    kill(w)
    assert w.pi.transfer(before["Port"], 50_000) == 50_000
    w.start_daemon()
    assert w.get_all(path, ATTACHMENT) == before
    kill_session(w)
    wait_until(lambda: w.get(path, ATTACHMENT, "AttachedAt") > before["AttachedAt"], "not again")
    becomes(w, path, "attached")


def test_resets_there(w: World, agent: PersonsAgent) -> None:
    before = resets(w.pi, "2-1")
    w.refused("SshAuthFailed", ALICE, "Reset", "ssa{sv}", "pi", "2-1", "0", says="PublicKey")
    assert resets(w.pi, "2-1") == before
    assert ask(w, agent, "Reset", "2-1") == ["2-1"]
    assert resets(w.pi, "2-1") == before + 2
    # What is attached by a connection of hers comes back by that one.
    stick = ask(w, agent, "Attach", "2-1")
    since = w.get(stick, ATTACHMENT, "AttachedAt")
    assert ask(w, agent, "Reset", "2-1") == ["2-1"]
    assert resets(w.pi, "2-1") == before + 4
    assert state(w, stick) == "attached"
    assert w.get(stick, ATTACHMENT, "AttachedAt") > since
    wait_until(lambda: len(w.sessions()) == 1, "the reset's connection stays")


def test_a_reset_with_an_agent_that_has_no_key_disturbs_nothing(
    w: World, agent: PersonsAgent
) -> None:
    stick = ask(w, agent, "Attach", "2-1")
    since, before = w.get(stick, ATTACHMENT, "AttachedAt"), resets(w.pi, "2-1")
    with persons_agent(ALICE) as empty, empty.connect() as sock:
        answer = ask_with(w, ALICE, "Reset", ("pi", "2-1"), sock)
    assert answer.error.endswith("SshAuthFailed"), answer
    assert (w.get(stick, ATTACHMENT, "AttachedAt"), resets(w.pi, "2-1")) == (since, before)


def members(w: World, hub: str) -> set[str]:
    """The hub's attachments that are usable, as they are at one moment."""
    manager = "org.freedesktop.DBus.ObjectManager"
    objects = w.call(BOB, "GetManagedObjects", interface=manager)
    found = {path: each[ATTACHMENT] for path, each in objects.items() if ATTACHMENT in each}
    return {p for p, v in found.items() if (v["Hub"], v["State"]) == (hub, "attached")}


def test_a_hub_goes_on_over_a_restart_and_takes_what_comes_later(
    w: World, agent: PersonsAgent
) -> None:
    hub = ask(w, agent, "AttachAll", "")
    wait_until(lambda: len(members(w, hub)) == 2, "not both")
    both = members(w, hub)
    assert w.systemd is not None
    w.systemd.wait_stored(STORED)
    (session,) = w.sessions()
    kill(w)
    w.start_daemon()
    # One connection for all of it, and nothing was unplugged.
    assert w.sessions() == [session]
    assert members(w, hub) == both
    w.pi.plug("1-3", KEYBOARD)
    try:
        wait_until(lambda: len(members(w, hub)) == 3, "not the new one")
        # The agent was kept, too: it logs in once more, and has them all again.
        kill_session(w)
        wait_until(lambda: not members(w, hub) & both, "not lost")
        wait_until(lambda: len(members(w, hub)) == 3, "not all again", 60)
        w.refused("SshAuthFailed", ALICE, "ListRemote", "ssa{sv}", "pi", "", "0")
    finally:
        w.pi.unplug("1-3")


def test_a_hub_whose_agent_was_not_kept_waits_and_says_why(w: World, agent: PersonsAgent) -> None:
    hub = ask(w, agent, "AttachAll", "")
    wait_until(lambda: len(members(w, hub)) == 2, "not both")
    assert w.systemd is not None
    w.systemd.wait_stored(STORED)
    kill(w)
    w.systemd.drop_store()
    agent.stop()
    w.start_daemon()

    def told() -> bool:
        code, message = w.get(hub, "org.usbipssh1.Hub", "LastError")
        return bool(code.endswith("SshAuthFailed") and "does not answer" in message)

    wait_until(told, "no word")
    assert w.attachments() == []
    w.check_clean()
