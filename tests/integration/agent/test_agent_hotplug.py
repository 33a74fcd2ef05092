# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent tells that something comes or goes."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakekernel import SERIAL_ADAPTER, FakeKernel
from integration.agents import Agent, in_every_shell, without


def test_it_tells_when_something_comes_or_goes(agent: Agent, pi: FakeKernel) -> None:
    tag = agent.start("watch")
    assert agent.fails("watch") == "InvalidArgs watching already"
    pi.plug("1-1", SERIAL_ADAPTER)
    assert agent.line() == f"{tag} changed".encode()
    pi.unplug("1-1")
    assert agent.line() == f"{tag} changed".encode()


@pytest.mark.parametrize("there", ["perl", "python3"])
def test_it_listens_to_the_kernel_where_it_can(there: str) -> None:
    """At the start it tells of what may have come before."""
    hidden = [name for name in ("perl", "python3", "udevadm") if name != there]
    agent = Agent("dash", Path("/sys"), wrap=without(hidden))
    try:
        tag = agent.start("watch")
        assert agent.line() == f"{tag} changed".encode()
        agent.end()
        assert agent.process.returncode == 0
    finally:
        agent.discard()


def test_it_watches_no_longer_than_it_lives() -> None:
    def body(agent: Agent, pi: FakeKernel) -> None:
        agent.start("watch")
        agent.ask("list")
        agent.process.kill()
        agent.wait_gone()

    in_every_shell(body)
