# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent gives devices to usbip-host, and back."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from fakekernel import HUB, SERIAL_ADAPTER, FakeKernel
from integration.agents import Agent, bind_request, connect, export_as_usbip_does, parse


@pytest.mark.parametrize(
    "kind",
    [
        "perl",
        "python3",
        "socat",
        "ncat",
        "bash",
        "busybox",
        "perl/tcp",
        "python3/tcp",
        "socat/tcp",
        "ncat/tcp",
    ],
)
def test_export_and_give_back(agent: Agent, pi: FakeKernel, kind: str) -> None:
    pi.plug("1-1", HUB)
    pi.plug("1-1.2", SERIAL_ADAPTER)
    folder = agent.bind(pi, "1-1.2", SERIAL_ADAPTER)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert folder.parent == Path("/run")
    device = pi.state()["devices"]["1-1.2"]
    assert (device["driver"], device["usbip_status"]) == ("usbip-host", 1)
    with connect(agent, "1-1.2", kind, folder) as end:
        assert pi.state()["devices"]["1-1.2"]["usbip_status"] == 2
        assert [p.name for p in folder.iterdir()] == ["held"]
        end.sendall(b"describe\n")
        assert b"FT232R" in end.recv(4096)
        listed = parse(agent.ask("list"))["1-1.2"]
        assert listed["driver"] == ["usbip-host"]
        assert listed["usbip_status"] == ["2"]
        assert agent.ask("release 1-1.2 1") == [b"ok"]
        assert end.recv(4096) == b""
    state = pi.state()
    assert state["devices"]["1-1.2"]["nodes"] == ["ttyUSB0"]
    assert state["matched"] == []
    assert not any("\n" in entry for entry in state["log"])


def test_every_kernel_write_is_in_the_safe_order(agent: Agent, pi: FakeKernel) -> None:
    pi.plug("1-1", SERIAL_ADAPTER)
    folder = agent.bind(pi, "1-1", SERIAL_ADAPTER)
    with connect(agent, "1-1", "perl", folder):
        agent.ask("release 1-1 1")
    assert pi.state()["log"] == [
        "unbind 1-1",
        "match_busid add 1-1",
        "bind 1-1",
        "sockfd 1-1",
        "sockfd 1-1",
        "reset 1-1",
        "unbind 1-1",
        "rebind 1-1",
    ]


def test_released_without_a_driver(agent: Agent, pi: FakeKernel) -> None:
    pi.plug("1-1", SERIAL_ADAPTER)
    agent.bind(pi, "1-1", SERIAL_ADAPTER)
    assert agent.ask("release 1-1 0") == [b"ok"]
    state = pi.state()
    assert state["devices"]["1-1"]["driver"] == ""
    assert state["matched"] == []
    assert agent.ask("release 1-1 1") == [b"ok"]


def test_twelve_devices_at_once(agent: Agent, pi: FakeKernel) -> None:
    busids = [f"1-{port}" for port in range(1, 13)]
    for busid in busids:
        pi.plug(busid, SERIAL_ADAPTER)
    requests = [bind_request(pi, busid, SERIAL_ADAPTER) for busid in busids]
    answers = agent.answers([agent.start(r) for r in requests])
    assert [a[-1] for a in answers] == [b"ok"] * 12
    folder = Path(answers[0][0].removeprefix(b"dir ").decode())
    assert len({a[0] for a in answers}) == 1
    with contextlib.ExitStack() as stack:
        for busid in busids:
            stack.enter_context(connect(agent, busid, "perl", folder))
        assert len(pi.state()["connected"]) == 12
        agent.end()
    pi.check_clean()
    assert not folder.exists()


def test_the_same_device_many_times(agent: Agent, pi: FakeKernel) -> None:
    pi.plug("1-1", SERIAL_ADAPTER)
    for _ in range(20):
        agent.bind(pi, "1-1", SERIAL_ADAPTER)
        assert pi.state()["bound"] == ["1-1"]
        assert agent.ask("release 1-1 1") == [b"ok"]
        assert pi.state()["matched"] == []


@pytest.mark.parametrize("status", [1, 3])
def test_a_stale_export_is_taken_over(agent: Agent, pi: FakeKernel, status: int) -> None:
    pi.plug("1-1", SERIAL_ADAPTER)
    export_as_usbip_does(pi, "1-1")
    pi.set_usbip_status("1-1", status)
    agent.bind(pi, "1-1", SERIAL_ADAPTER)
    assert pi.state()["devices"]["1-1"]["usbip_status"] == 1


def test_unbind_gives_back_what_anybody_exported(agent: Agent, pi: FakeKernel) -> None:
    pi.plug("1-1", SERIAL_ADAPTER)
    assert agent.ask("unbind 1-1") == [b"ok"]
    assert pi.state()["log"] == []
    export_as_usbip_does(pi, "1-1")
    assert agent.ask("unbind 1-1") == [b"ok"]
    pi.check_clean()
    assert pi.state()["devices"]["1-1"]["driver"] == "usb"
    assert agent.fails("unbind 1-2") == "DeviceNotFound 1-2"


def test_a_connection_that_ends_slowly_is_waited_for(agent: Agent, pi: FakeKernel) -> None:
    pi.plug("1-1", SERIAL_ADAPTER)
    folder = agent.bind(pi, "1-1", SERIAL_ADAPTER)
    pi.delay("reset", 0.5)
    with connect(agent, "1-1", "perl", folder):
        assert agent.ask("release 1-1 1") == [b"ok"]
    assert pi.state()["crashes"] == []


def test_the_module_is_loaded(shell: str) -> None:
    with FakeKernel(modules=()) as pi:
        pi.plug("1-1", SERIAL_ADAPTER)
        agent = Agent(shell, pi.root)
        try:
            agent.bind(pi, "1-1", SERIAL_ADAPTER)
            assert pi.state()["modules"] == ["usbip_host"]
            agent.end()
            pi.check_clean()
        finally:
            agent.discard()


def test_with_sudo_the_folder_belongs_to_the_user(shell: str, pi: FakeKernel) -> None:
    pi.plug("1-1", SERIAL_ADAPTER)
    environment = {"SUDO_UID": "61003", "SUDO_GID": "61004"}
    agent = Agent(shell, pi.root, environment=environment)
    try:
        folder = agent.bind(pi, "1-1", SERIAL_ADAPTER)
        told = folder.stat()
        assert (told.st_uid, told.st_gid, told.st_mode & 0o777) == (61003, 61004, 0o700)
        assert (folder / "held").stat().st_uid == 0
        agent.end()
        assert not folder.exists()
    finally:
        agent.discard()
