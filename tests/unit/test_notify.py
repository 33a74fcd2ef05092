# SPDX-License-Identifier: GPL-3.0-or-later
"""What systemd is told, and what it gives back."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from unit.made import KEYBOARD, STICK, run

from usbipsshd.attachment import Attachment, State
from usbipsshd.notify import Notifier, stored_descriptors
from usbipsshd.status import Status, summary


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(30)
        yield sock


def address(systemd: socket.socket) -> str:
    return str(systemd.getsockname())


def test_states_are_lines(systemd: socket.socket) -> None:
    Notifier(address(systemd)).send("READY=1", "STATUS=Ready")
    assert systemd.recv(4096) == b"READY=1\nSTATUS=Ready"


def test_an_abstract_socket() -> None:
    name = f"@usbipsshd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + name[1:])
        sock.settimeout(30)
        Notifier(name).send("READY=1")
        assert sock.recv(4096) == b"READY=1"


def test_descriptors_are_stored_by_name_and_taken_back(systemd: socket.socket) -> None:
    notifier = Notifier(address(systemd))
    read, write = os.pipe()
    notifier.store("session-ab", read)
    data, fds, _, _ = socket.recv_fds(systemd, 4096, 4)
    assert data == b"FDSTORE=1\nFDNAME=session-ab"
    os.write(write, b"x")
    assert os.read(fds[0], 1) == b"x"
    for fd in (read, write, *fds):
        os.close(fd)
    notifier.unstore("session-ab")
    assert systemd.recv(4096) == b"FDSTOREREMOVE=1\nFDNAME=session-ab"


@pytest.mark.parametrize("where", ["", "/nowhere/notify"])
def test_without_systemd_nothing_happens(where: str) -> None:
    Notifier(where).send("READY=1")


def test_the_watchdog_hears_three_times_in_its_time(systemd: socket.socket) -> None:
    async def main() -> None:
        watchdog = asyncio.create_task(Notifier(address(systemd), 0.03).watchdog())
        for _ in range(3):
            assert await asyncio.to_thread(systemd.recv, 4096) == b"WATCHDOG=1"
        watchdog.cancel()
        await asyncio.wait([watchdog])

    run(main())


@pytest.mark.parametrize(("where", "seconds"), [("", 1.0), ("set", 0.0)])
def test_no_watchdog_where_nobody_asks(where: str, seconds: float, systemd: socket.socket) -> None:
    run(Notifier(where and address(systemd), seconds).watchdog())
    systemd.setblocking(False)
    with pytest.raises(BlockingIOError):
        systemd.recv(4096)


def test_what_systemd_has_kept_is_found_by_name() -> None:
    environment = {"LISTEN_PID": "7", "LISTEN_FDS": "0", "LISTEN_FDNAMES": ""}
    assert stored_descriptors(environment, 7) == {}
    # Meant for another process; nonsense.
    for wrong in ({}, {**environment, "LISTEN_FDS": "-1"}, {**environment, "LISTEN_FDS": "x"}):
        assert stored_descriptors(wrong, 7) == {}
    assert stored_descriptors({**environment, "LISTEN_FDS": "3"}, 8) == {}


def attachment(number: int, state: State) -> Attachment:
    return Attachment(number, "pi", "", (STICK, KEYBOARD)[number % 2], 1000, state=state)


def test_what_systemctl_status_shows() -> None:
    assert summary([]) == "Ready, nothing is attached"
    states = (State.WAITING, State.ATTACHED, State.ATTACHED, State.CONNECTING)
    found = summary([attachment(n, s) for n, s in enumerate(states)])
    assert found == "2 attached, 1 connecting, 1 waiting"


def test_status_is_told_when_it_changes_only() -> None:
    told: list[str] = []
    table: list[Attachment] = []
    status = Status(table, told.append)
    status.tell()
    one = attachment(1, State.CONNECTING)
    table.append(one)
    status.attachment_added(one)
    one.device_nodes = ["/dev/sda"]
    status.attachment_changed(one)
    one.state = State.ATTACHED
    status.attachment_changed(one)
    table.remove(one)
    status.attachment_removed(one)
    assert told == [
        "STATUS=Ready, nothing is attached",
        "STATUS=1 connecting",
        "STATUS=1 attached",
        "STATUS=Ready, nothing is attached",
    ]
