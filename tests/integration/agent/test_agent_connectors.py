# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent's connectors: which are there, what they connect to, and what when they can not."""

from __future__ import annotations

import socket

import pytest
from fakekernel import SERIAL_ADAPTER, FakeKernel
from integration.agents import CONNECTORS, TOKEN, Agent, bind_request, connect, without


def test_no_socket_to_connect_to(agent: Agent, pi: FakeKernel) -> None:
    pi.plug("1-1", SERIAL_ADAPTER)
    folder = agent.bind(pi, "1-1", SERIAL_ADAPTER)
    for kind in ("perl", "python3"):
        failure = agent.fails(f"connect 1-1 {kind} {folder}/none {TOKEN}")
        assert failure == f"DeviceFailed {kind} could not hand over a connection"
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        failure = agent.fails(f"connect 1-1 bash {port} {TOKEN}")
    assert failure == "DeviceFailed bash could not hand over a connection"


@pytest.mark.parametrize("kind", ["perl", "ncat"])
def test_the_kernel_refuses_the_socket(agent: Agent, pi: FakeKernel, kind: str) -> None:
    pi.plug("1-1", SERIAL_ADAPTER)
    folder = agent.bind(pi, "1-1", SERIAL_ADAPTER)
    pi.fail("sockfd", "EINVAL")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "s"))
        listener.listen()
        failure = agent.fails(f"connect 1-1 {kind} {folder}/s {TOKEN}")
    assert failure == f"DeviceFailed {kind} could not hand over a connection"
    assert not (folder / "s").exists()


def test_connect_wants_an_export_of_its_own(agent: Agent, pi: FakeKernel) -> None:
    pi.plug("1-1", SERIAL_ADAPTER)
    assert agent.fails(f"connect 1-1 perl /run/s {TOKEN}").startswith("NotAttached ")


@pytest.mark.parametrize(
    "place", ["/nonexistent/x", "{}/../x", "{}/held", "{}/held/1-1", "{}/held/life", "{}", "x"]
)
def test_connect_stays_in_its_folder(agent: Agent, pi: FakeKernel, place: str) -> None:
    pi.plug("1-1", SERIAL_ADAPTER)
    folder = agent.bind(pi, "1-1", SERIAL_ADAPTER)
    assert agent.fails(f"connect 1-1 perl {place.format(folder)} {TOKEN}").startswith("InvalidArgs")
    assert (folder / "held/1-1").exists()


@pytest.mark.parametrize("there", [*CONNECTORS, ""])
def test_connectors_that_are_there(pi: FakeKernel, there: str) -> None:
    pi.plug("1-1", SERIAL_ADAPTER)
    hidden = [n for n in CONNECTORS if n != there]
    agent = Agent("dash", pi.root, wrap=without(hidden))
    try:
        assert agent.hello.split()[5].decode() == (there or "none")
        if there:
            folder = agent.bind(pi, "1-1", SERIAL_ADAPTER)
            connect(agent, "1-1", there, folder).close()
        else:
            failure = agent.fails(bind_request(pi, "1-1", SERIAL_ADAPTER))
            assert failure == "RemoteUnsupported nothing that connects"
        agent.end()
    finally:
        agent.discard()
    pi.check_clean()
