# SPDX-License-Identifier: GPL-3.0-or-later
"""What an agent leaves that was killed with all its processes, and who clears it up."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from pathlib import Path

from fakekernel import KEYBOARD, SERIAL_ADAPTER, FakeKernel
from integration.agents import Agent, check_given_back, export_as_usbip_does, export_two


def _kill(agent: Agent, spared: str = "") -> None:
    """SIGKILL to the whole session but processes whose command ends so."""
    victims = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            session = int(stat.read_text(errors="replace").rpartition(")")[2].split()[3])
            keeps = all((stat.parent / "fd" / n).is_symlink() for n in ("3", "4"))
            if session == agent.process.pid and not (spared and keeps):
                victims.append(int(stat.parent.name))
    # All at once: a keeper that sees the others die begins to give back, and is not to be killed
    # in the middle of that.
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
    agent.process.wait()


def test_what_is_left_when_all_but_a_keeper_are_killed(shell: str, pi: FakeKernel) -> None:
    agent = Agent(shell, pi.root)
    try:
        folder, end = export_two(agent, pi)
        with end:
            _kill(agent, spared="keepers")
            pi.wait(lambda s: not s["bound"])
        agent.wait_gone()
        check_given_back(pi, folder)
        assert pi.state()["matched"] == []
    finally:
        agent.discard()


def test_a_fresh_agent_finds_what_a_killed_one_left(shell: str, pi: FakeKernel) -> None:
    pi.plug("1-7", KEYBOARD)
    pi.plug("1-8", KEYBOARD)
    export_as_usbip_does(pi, "1-7")
    killed, living, fresh = (Agent(shell, pi.root) for _ in range(3))
    try:
        # What it asks for waits until it has looked for what others left.
        assert fresh.fails("bind 1-9 0403 6001 1 2 1").startswith("DeviceNotFound ")
        folder, end = export_two(killed, pi)
        living.bind(pi, "1-8", KEYBOARD)
        with end:
            _kill(killed)
            assert pi.state()["bound"] == ["1-1", "1-7", "1-8", "2-1"]
            fresh.end()
            assert folder.exists(), "it was started too early to see anything"
            fresh = Agent(shell, pi.root)
            assert fresh.ask("list")[-1] == b"ok"
            pi.wait(lambda s: s["bound"] == ["1-7", "1-8"])
            fresh.bind(pi, "1-1", SERIAL_ADAPTER)
        fresh.end()
        living.end()
        assert not folder.exists()
        assert list(Path("/run").glob(f"usbipssh.*.{folder.suffix[1:]}")) == []
        state = pi.state()
        assert state["bound"] == state["matched"] == ["1-7"], "another program's"
        assert state["crashes"] == []
    finally:
        for agent in (killed, living, fresh):
            agent.discard()


def test_a_device_wanted_at_once_that_a_killed_agent_left(shell: str, pi: FakeKernel) -> None:
    killed = Agent(shell, pi.root)
    try:
        _, end = export_two(killed, pi)
        with end:
            _kill(killed)
            fresh = Agent(shell, pi.root)
            try:
                fresh.bind(pi, "1-1", SERIAL_ADAPTER)
                fresh.end()
            finally:
                fresh.discard()
        pi.check_clean()
    finally:
        killed.discard()


def test_folders_that_are_not_ours_stay(agent: Agent, pi: FakeKernel) -> None:
    pi.plug("1-1", SERIAL_ADAPTER)
    export_as_usbip_does(pi, "1-1")
    folder = Path(tempfile.mkdtemp(prefix="usbipssh.", dir="/run"))
    try:
        (folder / "held").mkdir()
        (folder / "held/1-1").write_text("-")
        (folder / "held/agent").write_text(f"{2**22 + 5} 17 {pi.root}")
        os.chown(folder, 61005, 61005)
        with contextlib.closing(Agent("dash", pi.root)) as fresh:
            assert fresh.ask("list")[-1] == b"ok"
        assert folder.exists()
        assert pi.state()["bound"] == ["1-1"]
    finally:
        shutil.rmtree(folder)
    assert agent.ask("unbind 1-1") == [b"ok"]
