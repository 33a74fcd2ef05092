# SPDX-License-Identifier: GPL-3.0-or-later
"""A stick of desk's on pi through faults: pulled out, the daemon killed, what serves it killed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import monotonic

import pytest
from vm.exports import PORT, SERIAL, being_written, busid_of, disk, export, goes_on, written
from vm.faults import Log, Remote, eventually, state
from vm.testbed.desk import Desk
from vm.testbed.pair import Pair
from vm.testbed.pi import Pi

pytestmark = pytest.mark.usefixtures("listed")


@pytest.fixture(scope="module")
def stick(machines: Pair) -> Iterator[str]:
    """desk has a stick; its bus id."""
    with machines.desk.spare_stick(SERIAL, PORT):
        yield busid_of(machines.desk)


def test_pulled_out_while_it_is_written_it_is_waited_for(pi: Pi, desk: Desk, stick: str) -> None:
    path = export(desk, SERIAL, keep=True)
    with being_written(pi, disk(desk, path)):
        desk.pull_spare(SERIAL)
        eventually(lambda: state(desk, path) == "waiting", 60, "it is waited for")
        eventually(lambda: pi.taken_ports() == [], 60, "its port there is free")
        eventually(lambda: written(pi)[1] == "failed", 60, "a write fails")
    desk.plug_spare(SERIAL, PORT)
    eventually(lambda: state(desk, path) == "attached", 90, "it is there again")
    with being_written(pi, disk(desk, path)):
        goes_on(pi)
    assert written(pi)[1] == "stopped"
    assert desk.detach("alice", path) == 1
    busid_of(desk)


def _kill(desk: Desk) -> None:
    pid = desk.run("systemctl", "show", "-P", "MainPID", "usbipsshd.service").strip()
    desk.run("kill", "-9", pid)


def _restart(desk: Desk) -> None:
    desk.run("systemctl", "restart", "--no-block", "usbipsshd.service")


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(_kill, id="killed"),
        pytest.param(_restart, id="restarted", marks=pytest.mark.long),
    ],
)
def test_nothing_is_unplugged_when_the_daemon_goes(
    fault: Callable[[Desk], None], pi: Pi, desk: Desk, stick: str, log: Log
) -> None:
    path = export(desk, SERIAL)
    node = disk(desk, path)
    before = desk.attachment(path)
    with being_written(pi, node):
        begun = monotonic()
        fault(desk)
        log.wait("still attached", since=begun, seconds=120)
        log.wait("ready on", since=begun, seconds=120)
        assert desk.attachment(path) == before
        goes_on(pi)
    assert written(pi)[1] == "stopped"
    assert desk.detach("alice", path) == 1
    assert (pi.taken_ports(), desk.exported()) == ([], [])


@pytest.mark.parametrize(
    "unit",
    [
        pytest.param("usbipssh-here@*", id="agent"),
        pytest.param("usbipssh-session@*", id="session", marks=pytest.mark.long),
    ],
)
def test_what_is_killed_here_costs_a_moment_and_leaves_nothing(
    unit: str, pi: Pi, desk: Desk, stick: str
) -> None:
    path = export(desk, SERIAL, keep=True)
    since = desk.attachment(path)["AttachedAt"]
    desk.run("systemctl", "kill", "-s", "KILL", unit)

    def is_back() -> bool:
        now = desk.attachment(path)
        return bool(now["State"] == "attached" and now["AttachedAt"] > since)

    eventually(is_back, 90, "it is attached again")
    assert desk.detach("alice", path) == 1
    assert (pi.taken_ports(), desk.exported()) == ([], [])


def test_an_agent_killed_on_the_remote_costs_a_moment(
    pi: Pi, desk: Desk, stick: str, remote_before: Remote
) -> None:
    path = export(desk, SERIAL, keep=True)
    since = desk.attachment(path)["AttachedAt"]
    remote_before.kill(*remote_before.agent())

    def is_back() -> bool:
        now = desk.attachment(path)
        return bool(now["State"] == "attached" and now["AttachedAt"] > since)

    eventually(is_back, 90, "it is attached again")
    # The one that its connection had before comes free by itself.
    eventually(lambda: len(pi.taken_ports()) == 1, 60, "it has one port there")
    assert desk.detach("alice", path) == 1
    assert (pi.taken_ports(), desk.exported()) == ([], [])


def test_what_persists_is_given_back_and_comes_again(pi: Pi, desk: Desk, stick: str) -> None:
    before = desk.attachment(export(desk, SERIAL, "root", persist=True))
    desk.run("systemctl", "stop", "usbipsshd.service", timeout=120)
    eventually(lambda: desk.exported() == [], 60, "desk has it again")
    eventually(lambda: pi.taken_ports() == [], 60, "its port there is free")
    desk.run("systemctl", "start", "usbipsshd.service", timeout=120)

    def exports() -> list[str]:
        return [path for path in desk.objects() if "/attachment/" in path]

    eventually(lambda: [state(desk, path) for path in exports()] == ["attached"], 90, "it is back")
    (path,) = exports()
    after = desk.attachment(path)
    for name in ("Direction", "Pattern", "OwnerUid", "Keep", "Persist", "Serial"):
        assert after[name] == before[name], name
    assert desk.detach("root", path) == 1
    assert (pi.taken_ports(), desk.exported()) == ([], [])
