# SPDX-License-Identifier: GPL-3.0-or-later
"""The pair of virtual machines for the tests, and what must be true after each of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from vm.fault_table import Table
from vm.faults import Log, Remote, Scene, Stick, forget
from vm.testbed import images, pair
from vm.testbed.desk import BUS_NAME, ROOT, Desk
from vm.testbed.host import TestbedError
from vm.testbed.pair import Pair
from vm.testbed.pi import Pi

_TIMES = pytest.StashKey[Table]()


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Show how long the faults took."""
    times = config.stash.get(_TIMES, None)
    if times is not None and times.rows:
        terminalreporter.section("faults")
        terminalreporter.write_line(times.markdown())


@pytest.fixture(scope="session")
def machines() -> Iterator[Pair]:
    """The booted pair. With USBIPSSHD_PAIR=FOLDER it is the one that `testbed up` left there."""
    folder = os.environ.get("USBIPSSHD_PAIR")
    if folder:
        yield pair.running(Path(folder))
        return
    package = images.project_package()
    if package is None:
        raise TestbedError("there is no dist/usbipsshd_*.deb: run `make deb`")
    with pair.temporary(package=package) as both:
        yield both


@pytest.fixture
def pi(machines: Pair) -> Pi:
    """The machine that has the devices."""
    return machines.pi


@pytest.fixture
def desk(machines: Pair) -> Desk:
    """The machine that uses them."""
    return machines.desk


@pytest.fixture(scope="session")
def listed(machines: Pair) -> None:
    """pi is a remote of desk's: it accepts the daemon's key, and its own is trusted."""
    pi, desk = machines.pi, machines.desk
    pi.authorize(desk.properties(ROOT, f"{BUS_NAME}.Manager")["PublicKey"])
    desk.trust("pi", "root@pi", pi.fingerprint())


@pytest.fixture(autouse=True)
def nothing_attached_afterwards(machines: Pair) -> Iterator[None]:
    """After each test no port is taken, nothing is exported, and both kernels are sound."""
    seen = {machine.name: len(machine.console_text()) for machine in (machines.pi, machines.desk)}
    yield
    complaints = machines.settled(machines.devices_left)
    for machine in (machines.pi, machines.desk):
        complaints += [f"{machine.name}: {line}" for line in machine.trouble(seen[machine.name])]
    assert complaints == []


@pytest.fixture(scope="module", autouse=True)
def nothing_running_afterwards(machines: Pair) -> Iterator[None]:
    """After each file of tests the daemon stops, and then no agent or file of it is left on pi."""
    yield
    machines.desk.stop_daemon()
    assert machines.settled(machines.pi.agents_left) == []
    assert "Traceback" not in machines.desk.journal("usbips")


@pytest.fixture(scope="session")
def times(pytestconfig: pytest.Config) -> Iterator[Table]:
    """The table of how long the faults took."""
    table = pytestconfig.stash.setdefault(_TIMES, Table())
    yield table
    table.write()


@pytest.fixture(scope="session")
def log(machines: Pair, listed: None) -> Iterator[Log]:
    """The daemon's log as it comes; pi is listed."""
    with Log(machines.desk) as log:
        yield log


@pytest.fixture(scope="session")
def remote_before(machines: Pair) -> Remote:
    """pi's processes; what runs there now belongs there."""
    return Remote(machines.pi)


@pytest.fixture
def scene(machines: Pair, remote_before: Remote, log: Log, times: Table) -> Iterator[Scene]:
    """What a fault needs; afterwards everything is detached, at most one agent is left on pi."""
    pi, desk = machines.pi, machines.desk
    log.catch_up()
    yield Scene(machines, pi, desk, remote_before, Stick(desk), log, times)
    forget(desk)
    assert machines.settled(machines.devices_left, 70) == []
    assert machines.settled(remote_before.strays, 70) == []
