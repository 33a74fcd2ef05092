# SPDX-License-Identifier: GPL-3.0-or-later
"""However the agent ends, it gives everything back first."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time

import pytest
from fakekernel import SERIAL_ADAPTER, FakeKernel
from integration.agents import (
    AGENT,
    PATIENCE,
    SECONDS,
    SILENCE,
    Agent,
    bind_request,
    check_given_back,
    export_two,
    in_every_shell,
)


def test_end_of_input_gives_everything_back(agent: Agent, pi: FakeKernel) -> None:
    folder, end = export_two(agent, pi)
    with end:
        agent.end()
    check_given_back(pi, folder)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_gives_everything_back(
    agent: Agent, pi: FakeKernel, number: signal.Signals
) -> None:
    folder, end = export_two(agent, pi)
    with end:
        os.kill(agent.process.pid, number)
        agent.wait_gone()
    check_given_back(pi, folder)


def test_a_signal_to_all_of_it_gives_everything_back(agent: Agent, pi: FakeKernel) -> None:
    folder, end = export_two(agent, pi)
    with end:
        os.killpg(agent.process.pid, signal.SIGTERM)
        os.killpg(agent.process.pid, signal.SIGTERM)
        agent.wait_gone()
    check_given_back(pi, folder)


def test_the_peer_is_killed(shell: str, pi: FakeKernel) -> None:
    """Whoever held the pipes is gone at once, with nobody left to read an answer."""
    pi.plug("1-1", SERIAL_ADAPTER)
    program = (
        "import subprocess, sys, time\n"
        "p = subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "p.stdin.write(sys.argv[1].encode() + b'\\n'); p.stdin.flush()\n"
        "next(line for line in p.stdout if line.endswith(b' ok\\n'))\n"
        "print(p.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    request = "1 " + bind_request(pi, "1-1", SERIAL_ADAPTER)
    peer = subprocess.Popen(
        ["/usr/bin/python3", "-c", program, request, *shell.split(), *AGENT, str(pi.root)],
        stdout=subprocess.PIPE,
    )
    assert peer.stdout is not None
    pid = int(peer.stdout.readline())
    gone = os.pidfd_open(pid)
    assert pi.state()["bound"] == ["1-1"]
    peer.kill()
    peer.wait()
    peer.stdout.close()
    ready, _, _ = select.select([gone], [], [], SECONDS)
    os.close(gone)
    assert ready
    pi.check_clean()
    assert pi.state()["devices"]["1-1"]["driver"] == "usb"


def test_end_of_input_waits_for_what_is_under_way(agent: Agent, pi: FakeKernel) -> None:
    pi.plug("1-1", SERIAL_ADAPTER)
    pi.delay("bind", 0.5)
    agent.start(bind_request(pi, "1-1", SERIAL_ADAPTER))
    pi.wait(lambda s: "bind 1-1" in s["log"])
    agent.end()
    pi.check_clean()
    assert pi.state()["devices"]["1-1"]["driver"] == "usb"


@pytest.mark.parametrize("requests", [[], ["list"], ["list", "list", "list"]])
def test_it_ends_at_once(shell: str, pi: FakeKernel, requests: list[str]) -> None:
    """Nothing to give back: no timer may hold it up, whichever moment the end comes at."""
    for _ in range(5):
        agent = Agent(shell, pi.root)
        try:
            for request in requests:
                agent.start(request)
            before = time.monotonic()
            agent.end()
            assert time.monotonic() - before < PATIENCE / 3
        finally:
            agent.discard()


def test_silence_gives_everything_back() -> None:
    def body(agent: Agent, pi: FakeKernel) -> None:
        folder, end = export_two(agent, pi)
        with end:
            begun = time.monotonic()
            while time.monotonic() - begun < SILENCE + 1:
                agent.send("ping\n")
                assert agent.line() == b"pong"
                time.sleep(0.3)
            assert pi.state()["bound"] == ["1-1", "2-1"]
            agent.wait_gone()
        check_given_back(pi, folder)

    in_every_shell(body)


def test_an_agent_that_is_killed_is_cleaned_up_after() -> None:
    def body(agent: Agent, pi: FakeKernel) -> None:
        folder, end = export_two(agent, pi)
        with end:
            agent.process.kill()
            agent.wait_gone()
        check_given_back(pi, folder)

    in_every_shell(body)


def test_a_stopped_agent_is_cleaned_up_after() -> None:
    """A shell that doesn't act on a signal, as older ones in read."""

    def body(agent: Agent, pi: FakeKernel) -> None:
        folder, end = export_two(agent, pi)
        with end:
            agent.process.send_signal(signal.SIGSTOP)
            agent.wait_gone()
        check_given_back(pi, folder)

    in_every_shell(body)
