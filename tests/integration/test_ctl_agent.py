# SPDX-License-Identifier: GPL-3.0-or-later
"""usbipsshctl and the ssh-agent of who runs it: as people know it from ssh."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakekernel import STICK
from integration.sshagents import PersonsAgent, mute_agent, persons_agent
from integration.test_ctl import SECONDS, Done, line
from integration.world import ALICE, World, wait_until, world


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    with world() as made:
        made.pi.plug("2-1", STICK)
        # pi knows alice's key, and not the daemon's.
        made.add_remote(key=False)
        yield made


@pytest.fixture(scope="module")
def agent(shared: World) -> Iterator[PersonsAgent]:
    with persons_agent(ALICE, shared.ssh.client_key) as running:
        yield running


@pytest.fixture
def w(shared: World) -> Iterator[World]:
    yield shared
    shared.detach_all()
    shared.check_clean()


def refused_logins(w: World) -> int:
    """How many logins pi has refused so far, those that are just ending among them."""
    server = w.ssh.process.pid
    children = Path(f"/proc/{server}/task/{server}/children")
    wait_until(lambda: not children.read_text().split(), "a connection stays")
    return w.ssh.log().count("Connection closed by authenticating user")


def ctl(w: World, agent: str, *words: str) -> Done:
    command, environment = line(w, ALICE, *words)
    done = subprocess.run(
        command, env={**environment, "SSH_AUTH_SOCK": agent}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=SECONDS, check=False, cwd="/",
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


def test_it_is_used_where_the_daemon_s_key_is_refused(w: World, agent: PersonsAgent) -> None:
    path = str(agent.path)
    done = ctl(w, path, "attach", "pi", "2-1")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("pi/2-1 is ")
    assert ctl(w, path, "detach", "pi/2-1").code == 0
    done = ctl(w, path, "list", "pi")
    assert "  0781:5581" in done.out
    # What persists has none, and is told of the daemon's key.
    done = ctl(w, path, "attach", "--persist", "pi", "2-1")
    assert (done.code, "PublicKey" in done.err) == (4, True), done


def test_a_shell_completes_what_it_leads_to(w: World, agent: PersonsAgent) -> None:
    words = ("complete", "--", "attach", "pi", "2")
    # Where it takes too long a shell shows nothing, and whoever wants it presses Tab again.
    wait_until(lambda: ctl(w, str(agent.path), *words).out.startswith("2-1\t"), "nothing", SECONDS)
    assert ctl(w, "", *words).out == ""


def test_it_is_not_used_where_it_is_not_wanted_or_not_there(w: World, agent: PersonsAgent) -> None:
    done = ctl(w, str(agent.path), "list", "--no-ssh-agent", "pi")
    assert (done.code, "PublicKey" in done.err, "ssh-agent" in done.err) == (4, True, False), done
    with mute_agent(ALICE, full=True) as overrun:
        for gone in ("", "/nonexistent/agent", overrun):
            done = ctl(w, gone, "list", "pi")
            assert (done.code, "PublicKey" in done.err) == (4, True), done
            done = ctl(w, gone, "list", "--ssh-agent", "pi")
            assert (done.code, "SSH_AUTH_SOCK" in done.err) == (4, True), done


def test_one_that_does_not_help_either_is_told_beside(w: World) -> None:
    with persons_agent(ALICE) as empty:
        done = ctl(w, str(empty.path), "list", "pi")
    assert done.code == 4
    assert "PublicKey" in done.err
    assert "offers no key" in done.err


def test_alone_the_daemon_s_key_is_not_tried(w: World, agent: PersonsAgent) -> None:
    failed = refused_logins(w)
    assert ctl(w, str(agent.path), "list", "--ssh-agent", "pi").code == 0
    assert ctl(w, str(agent.path), "doctor", "--ssh-agent", "pi").code == 0
    assert ctl(w, str(agent.path), "doctor", "--ssh-agent").out
    assert refused_logins(w) == failed


def test_where_the_daemon_s_key_is_known_to_be_refused_it_is_not_tried_first(
    w: World, agent: PersonsAgent
) -> None:
    """Else whoever is asked for a password before the connection is made is asked twice."""
    assert ctl(w, str(agent.path), "list", "pi").code == 0
    failed = refused_logins(w)
    assert failed
    assert ctl(w, str(agent.path), "reset", "pi", "2-1").code == 0
    assert ctl(w, str(agent.path), "attach", "pi", "2-1").code == 0
    w.detach_all()
    assert refused_logins(w) == failed


def test_the_daemon_s_key_that_is_accepted_by_now_needs_no_agent(w: World) -> None:
    keys = w.ssh.folder / "authorized_keys"
    before = keys.read_text()
    assert ctl(w, "", "list", "pi").code == 4
    w.authorize()
    try:
        with persons_agent(ALICE) as empty:
            assert ctl(w, str(empty.path), "attach", "pi", "2-1").code == 0
        assert ctl(w, "/nonexistent/agent", "detach", "pi/2-1").code == 0
    finally:
        keys.write_text(before)
    # The connection that all share would stay open for a while.
    w.stop_daemon()
    w.start_daemon()
