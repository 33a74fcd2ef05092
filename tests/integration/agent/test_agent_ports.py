# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent's other side, under the shells that remotes have: devices of ours on its vhci."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fakekernel import KEYBOARD, STICK, FakeDevice, FakeKernel
from integration.agents import (
    CONNECTORS,
    SECONDS,
    TOKEN,
    Agent,
    export_as_usbip_does,
    parse,
    reached,
)

HIGH, SUPER = 3, 5


@pytest.fixture(scope="module")
def kernels() -> Iterator[tuple[FakeKernel, FakeKernel]]:
    with FakeKernel() as desk, FakeKernel(controllers=1, ports=4) as pi:
        yield desk, pi


@pytest.fixture
def desk(kernels: tuple[FakeKernel, FakeKernel]) -> FakeKernel:
    """The machine whose device it is."""
    kernels[0].reset()
    return kernels[0]


@pytest.fixture
def pi(kernels: tuple[FakeKernel, FakeKernel]) -> FakeKernel:
    """The machine where it appears, with four ports of each kind."""
    kernels[1].reset()
    return kernels[1]


def exported(desk: FakeKernel, busid: str, device: FakeDevice) -> int:
    """Plug it in on desk and give it to usbip-host; its number for vhci."""
    desk.plug(busid, device)
    export_as_usbip_does(desk, busid)
    told = desk.state()["devices"][busid]
    return int(told["busnum"]) << 16 | int(told["devnum"])


@contextmanager
def attaching(
    agent: Agent, desk: FakeKernel, busid: str, devid: int, speed: int, *, kind: str = "perl"
) -> Iterator[str]:
    """Have it attached there; the tag of the request whose answer is still to come."""
    answer = agent.ask(f"port {busid} {speed}")
    assert answer[-1] == b"ok", answer
    folder = Path(answer[0].removeprefix(b"dir ").decode())
    request = f"attach {busid} {devid} {speed}"
    tag, end = reached(agent, request, kind, folder / f"socket-{busid}")
    with end:
        sockfd = desk.root / "bus/usb/devices" / busid / "usbip_sockfd"
        sockfd.write_text(str(end.fileno()))
    yield tag


def attach(
    agent: Agent, desk: FakeKernel, busid: str, device: FakeDevice, kind: str = "perl"
) -> tuple[str, int]:
    """Export and attach; bus id and port there."""
    speed = SUPER if device.speed == "5000" else HIGH
    devid = exported(desk, busid, device)
    with attaching(agent, desk, busid, devid, speed, kind=kind) as tag:
        (answer,) = agent.answers([tag])
    assert answer[-1] == b"ok", answer
    at, there, port = answer[0].decode().split()
    assert at == "at"
    return there, int(port)


@pytest.mark.parametrize("kind", CONNECTORS)
def test_attached_looked_at_and_detached(
    agent: Agent, desk: FakeKernel, pi: FakeKernel, kind: str
) -> None:
    there, port = attach(agent, desk, "1-1", STICK.but(speed="480"), kind)
    assert pi.transfer(port, 50_000) == 50_000
    device = parse(agent.ask("look 1-1"))[there]
    assert device["idVendor"] == ["0781"]
    assert any("sda" in node for node in device["0/node"])
    assert agent.ask("detach 1-1") == [b"ok"]
    assert pi.state()["ports"] == []
    assert agent.fails("look 1-1") == "NotAttached 1-1"
    assert agent.fails("detach 1-1") == "NotAttached 1-1"
    desk.wait(lambda s: not s["connected"])


def test_fast_ones_have_ports_of_their_own(agent: Agent, desk: FakeKernel, pi: FakeKernel) -> None:
    attach(agent, desk, "2-1", STICK)
    attach(agent, desk, "1-1", KEYBOARD)
    assert sorted(p["hub"] for p in pi.state()["ports"]) == ["hs", "ss"]


def test_no_port_is_left(agent: Agent, desk: FakeKernel, pi: FakeKernel) -> None:
    for number in range(1, 5):
        attach(agent, desk, f"1-{number}", KEYBOARD.but(speed="480"))
    assert agent.fails(f"port 1-5 {HIGH}") == "NoFreePort hs"
    assert agent.ask(f"port 1-5 {SUPER}")[-1] == b"ok"


def test_a_port_that_is_taken_meanwhile(agent: Agent, desk: FakeKernel, pi: FakeKernel) -> None:
    pi.fail("attach", "EBUSY", 2)
    _, port = attach(agent, desk, "1-1", KEYBOARD)
    assert port == 2


def test_every_port_is_taken_meanwhile(agent: Agent, desk: FakeKernel, pi: FakeKernel) -> None:
    devid = exported(desk, "1-1", KEYBOARD)
    pi.fail("attach", "EINVAL", -1)
    with attaching(agent, desk, "1-1", devid, HIGH) as tag:
        assert agent.answers([tag])[0][-1] == b"fail NoFreePort hs"
    pi.fail("attach", "EINVAL", 0)


def test_it_does_not_start(agent: Agent, desk: FakeKernel, pi: FakeKernel) -> None:
    devid = exported(desk, "1-1", KEYBOARD)
    pi.fail("enumerate", "EIO", 1)
    with attaching(agent, desk, "1-1", devid, HIGH) as tag:
        last = agent.answers([tag])[0][-1].decode()
    assert last == "fail DeviceFailed it went away while it was being started"
    assert pi.state()["ports"] == []


def test_an_old_kernel_without_the_hub_column(shell: str, desk: FakeKernel) -> None:
    with FakeKernel(status="old", controllers=1, ports=4) as old:
        agent = Agent(shell, old.root)
        try:
            _there, port = attach(agent, desk, "1-1", KEYBOARD)
            assert old.transfer(port, 1000) == 1000
            assert agent.fails(f"port 2-1 {SUPER}") == "NoFreePort ss"
            assert agent.ask("detach 1-1") == [b"ok"]
            agent.end()
            old.check_clean()
        finally:
            agent.discard()


def test_the_module_is_loaded_or_missing(shell: str) -> None:
    for missing, answer in (((), b"ok"), (("vhci-hcd",), b"fail ModuleUnavailable vhci-hcd")):
        with FakeKernel(modules=(), missing=missing) as kernel:
            agent = Agent(shell, kernel.root)
            try:
                assert agent.ask(f"port 1-1 {HIGH}")[-1] == answer
                agent.end()
            finally:
                agent.discard()


def test_without_root_nothing_is_attached(shell: str, pi: FakeKernel) -> None:
    wrap = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    agent = Agent(shell, pi.root, wrap=wrap)
    try:
        assert agent.fails(f"port 1-1 {HIGH}") == "NotPermittedThere uid 65534"
        agent.end()
    finally:
        agent.discard()


def test_the_end_frees_its_ports_and_no_others(
    shell: str, desk: FakeKernel, pi: FakeKernel
) -> None:
    one, other = Agent(shell, pi.root), Agent(shell, pi.root)
    try:
        attach(one, desk, "1-1", KEYBOARD)
        _, stays = attach(other, desk, "1-2", KEYBOARD)
        one.end()
        assert [p["port"] for p in pi.state()["ports"]] == [stays]
        other.process.send_signal(signal.SIGTERM)
        other.wait_gone()
        assert pi.state()["ports"] == []
        pi.check_clean()
    finally:
        one.discard()
        other.discard()


def test_a_fresh_one_frees_what_a_killed_one_left(
    shell: str, desk: FakeKernel, pi: FakeKernel
) -> None:
    killed, living = Agent(shell, pi.root), Agent(shell, pi.root)
    fresh: Agent | None = None
    try:
        attach(killed, desk, "1-1", KEYBOARD)
        _, stays = attach(living, desk, "1-2", KEYBOARD)
        os.killpg(killed.process.pid, signal.SIGKILL)
        killed.process.wait(SECONDS)
        fresh = Agent(shell, pi.root)
        state = pi.wait(lambda s: len(s["ports"]) == 1)
        assert [p["port"] for p in state["ports"]] == [stays]
        fresh.end()
        living.end()
        pi.check_clean()
    finally:
        for agent in (killed, living, fresh):
            if agent is not None:
                agent.discard()


@pytest.mark.parametrize(
    "request_",
    [
        "port 1-1", "port 1-1 4", "port 1-1 6", "port usb1 3", "port ../1 3", "look 1-1 1",
        "attach 1-1 65538 3 perl 80", "attach 1-1 x 3 perl 80 " + TOKEN, "detach", "detach .",
        "attach 1-1 65538 3 sh 80 " + TOKEN,
    ],
)  # fmt: skip
def test_nonsense(agent: Agent, request_: str) -> None:
    assert agent.fails(request_) == "InvalidArgs request"


def test_facts_tell_of_the_module_and_of_free_ports(
    agent: Agent, desk: FakeKernel, pi: FakeKernel
) -> None:
    def told() -> list[bytes]:
        lines = agent.ask("facts")
        assert lines[-1] == b"ok", lines
        return [line for line in lines if line[:2] in (b"v ", b"p ")]

    # Four of each kind.
    assert agent.ask(f"port 1-1 {HIGH}")[-1] == b"ok"
    assert told() == [b"v loaded", b"p 4 4"]
    attach(agent, desk, "2-1", STICK)
    assert told() == [b"v loaded", b"p 4 3"]
