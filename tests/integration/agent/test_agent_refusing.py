# SPDX-License-Identifier: GPL-3.0-or-later
"""What the agent does not export, or only nearly: what it says, and nothing is left half done."""

from __future__ import annotations

import pytest
from fakekernel import HUB, SERIAL_ADAPTER, STICK, FakeKernel
from integration.agents import (
    Agent,
    bind_request,
    connect,
    export_as_usbip_does,
    parse,
    write_to_drivers,
)
from integration.world import LONG


def test_a_device_that_is_not_there(agent: Agent) -> None:
    assert agent.fails("bind 1-1 0403 6001 1 2 1") == "DeviceNotFound 1-1"


@pytest.mark.parametrize(
    "ids", ["0403 6002 1 2", "0404 6001 1 2", "0403 6001 1 3", "0403 6001 2 2"]
)
def test_another_device_than_meant(agent: Agent, pi: FakeKernel, ids: str) -> None:
    pi.plug("1-1", SERIAL_ADAPTER)
    assert agent.fails(f"bind 1-1 {ids} 1") == "DeviceChanged 1-1"
    assert pi.state()["log"] == []


def test_a_hub_is_refused(agent: Agent, pi: FakeKernel) -> None:
    pi.plug("1-1", HUB)
    assert agent.fails(bind_request(pi, "1-1", HUB)) == "DeviceFailed it is a hub"
    assert pi.state()["log"] == []


def test_a_remote_device_is_not_exported_again(shell: str) -> None:
    with FakeKernel() as pi:
        pi.plug("3-1", SERIAL_ADAPTER)
        agent = Agent(shell, pi.root)
        try:
            failure = agent.fails(bind_request(pi, "3-1", SERIAL_ADAPTER))
            assert failure == "DeviceFailed it is itself a remote device"
            assert b"b 3 vhci_hcd.0" in agent.ask("list")
            agent.end()
        finally:
            agent.discard()


def test_a_device_in_use_elsewhere(agent: Agent, shell: str, pi: FakeKernel) -> None:
    pi.plug("1-1", SERIAL_ADAPTER)
    folder = agent.bind(pi, "1-1", SERIAL_ADAPTER)
    with connect(agent, "1-1", "perl", folder) as end:
        other = Agent(shell, pi.root)
        try:
            failure = other.fails(bind_request(pi, "1-1", SERIAL_ADAPTER))
            assert failure.startswith("DeviceBusy ")
            other.end()
        finally:
            other.discard()
        end.sendall(b"describe\n")
        assert end.recv(10)


def test_the_seventeenth_device_is_too_many(agent: Agent, pi: FakeKernel) -> None:
    for port in range(1, 18):
        pi.plug(f"1-{port}", SERIAL_ADAPTER)
    for port in range(1, 17):
        agent.bind(pi, f"1-{port}", SERIAL_ADAPTER)
    failure = agent.fails(bind_request(pi, "1-17", SERIAL_ADAPTER))
    assert failure.startswith("LimitsExceeded ")
    assert pi.state()["devices"]["1-17"]["driver"] == "usb"


@pytest.mark.parametrize("operation", ["bind", "match_busid"])
def test_what_fails_midway_is_undone(agent: Agent, pi: FakeKernel, operation: str) -> None:
    pi.plug("1-1", SERIAL_ADAPTER)
    pi.fail(operation, "EIO")
    failure = agent.fails(bind_request(pi, "1-1", SERIAL_ADAPTER))
    assert failure.startswith("DeviceFailed usbip-host does not take")
    state = pi.state()
    assert state["devices"]["1-1"]["driver"] == "usb"
    assert state["devices"]["1-1"]["nodes"] == ["ttyUSB0"]
    # usbip-host never had it, so the kernel's pointer is not one to follow; a later export is.
    assert state["matched"] == state["parked"] == (["1-1"] if operation == "bind" else [])
    assert not [entry for entry in state["log"] if entry.startswith("rebind")]
    agent.bind(pi, "1-1", SERIAL_ADAPTER)
    assert agent.ask("release 1-1 1") == [b"ok"]
    assert pi.state()["matched"] == []


def test_a_driver_that_does_not_let_go(agent: Agent, pi: FakeKernel) -> None:
    pi.plug("1-1", SERIAL_ADAPTER)
    pi.fail("unbind", "EBUSY")
    assert agent.fails(bind_request(pi, "1-1", SERIAL_ADAPTER)).startswith("DeviceFailed ")


def test_a_device_pulled_out_while_it_is_bound(shell: str, pi: FakeKernel) -> None:
    pi.plug("1-1", SERIAL_ADAPTER)
    agent = Agent(shell, pi.root)
    try:
        pi.delay("bind", LONG)
        tag = agent.start(bind_request(pi, "1-1", SERIAL_ADAPTER))
        pi.wait(lambda s: "bind 1-1" in s["log"])
        pi.unplug("1-1")
        pi.delay("bind", 0)
        assert agent.answers([tag])[0][-1].startswith(b"fail DeviceNotFound ")
        # Nobody knows whether the kernel's pointer is good, so the name stays until the next time.
        assert pi.state()["parked"] == ["1-1"]
        pi.plug("1-1", SERIAL_ADAPTER)
        agent.bind(pi, "1-1", SERIAL_ADAPTER)
        agent.end()
    finally:
        agent.discard()
    pi.check_clean()
    assert pi.state()["matched"] == []
    assert pi.state()["devices"]["1-1"]["driver"] == "usb"


@pytest.mark.parametrize("back", ["", "at once", "with its hub"])
def test_a_device_pulled_out_while_in_use(agent: Agent, pi: FakeKernel, back: str) -> None:
    """Its name is taken out all the same, and with its memory still there."""
    pi.plug("1-1", HUB)
    pi.plug("1-1.2", SERIAL_ADAPTER)
    folder = agent.bind(pi, "1-1.2", SERIAL_ADAPTER)
    with connect(agent, "1-1.2", "perl", folder):
        pi.unplug("1-1" if back == "with its hub" else "1-1.2")
        if back == "at once":
            pi.plug("1-1.2", STICK)
        assert agent.ask("release 1-1.2 1") == [b"ok"]
    assert pi.state()["matched"] == []
    assert pi.state()["crashes"] == []
    assert list(folder.glob("held/[0-9]*")) == []


def test_a_name_worn_out_by_another_program(agent: Agent, pi: FakeKernel) -> None:
    """Its "del" came while the device was bound; unbound by hand, that port is lost."""
    pi.plug("1-1", SERIAL_ADAPTER)
    export_as_usbip_does(pi, "1-1")
    write_to_drivers(pi, "usbip-host/match_busid del 1-1")
    assert agent.ask("unbind 1-1") == [b"ok"]
    assert pi.state()["matched"] == []
    export_as_usbip_does(pi, "1-1")
    write_to_drivers(pi, "usbip-host/match_busid del 1-1", "usbip-host/unbind 1-1")
    failure = agent.fails(bind_request(pi, "1-1", SERIAL_ADAPTER))
    assert failure == "DeviceFailed usbip-host takes nothing in that port before a restart there"
    assert pi.state()["devices"]["1-1"]["driver"] == "usb"
    write_to_drivers(pi, "usbip-host/rebind 1-1")


def test_a_device_left_in_error_state_is_given_back(agent: Agent, pi: FakeKernel) -> None:
    pi.plug("1-1", SERIAL_ADAPTER)
    folder = agent.bind(pi, "1-1", SERIAL_ADAPTER)
    pi.fail("reset")
    connect(agent, "1-1", "perl", folder).close()
    pi.wait(lambda s: s["devices"]["1-1"]["usbip_status"] == 3)
    assert agent.ask("release 1-1 1") == [b"ok"]
    assert pi.state()["devices"]["1-1"]["driver"] == "usb"


def test_no_driver_takes_it_back(agent: Agent, pi: FakeKernel) -> None:
    pi.plug("1-1", SERIAL_ADAPTER)
    agent.bind(pi, "1-1", SERIAL_ADAPTER)
    for operation in ("rebind", "probe", "bind"):
        pi.fail(operation)
    assert agent.fails("release 1-1 1") == "DeviceFailed no driver took it back"
    assert agent.ask("release 1-1 1") == [b"ok"]


def test_the_module_is_missing(shell: str) -> None:
    with FakeKernel(modules=(), missing=("usbip-host",)) as pi:
        pi.plug("1-1", SERIAL_ADAPTER)
        agent = Agent(shell, pi.root)
        try:
            failure = agent.fails(bind_request(pi, "1-1", SERIAL_ADAPTER))
            assert failure == "ModuleUnavailable usbip-host"
            assert pi.state()["devices"]["1-1"]["driver"] == "usb"
            agent.end()
        finally:
            agent.discard()


def test_without_root_it_lists_and_refuses_the_rest(shell: str, pi: FakeKernel) -> None:
    pi.plug("1-1", SERIAL_ADAPTER)
    wrap = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    agent = Agent(shell, pi.root, wrap=wrap)
    try:
        assert agent.hello.split()[2] == b"65534"
        assert parse(agent.ask("list"))["1-1"]["product"] == ["FT232R USB UART"]
        for request in (bind_request(pi, "1-1", SERIAL_ADAPTER), "release 1-1 1"):
            assert agent.fails(request) == "NotPermittedThere uid 65534"
        agent.end()
    finally:
        agent.discard()
    pi.check_clean()
