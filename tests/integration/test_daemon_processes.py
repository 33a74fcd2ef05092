# SPDX-License-Identifier: GPL-3.0-or-later
"""Two kinds of process: what a session may, what it has open, and what it costs to lose one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakekernel import SERIAL_ADAPTER, STICK
from integration.busfixtures import wait_for_name
from integration.otherremotes import listed, other_sshd
from integration.recorder import recording
from integration.sessions import SESSION_UID
from integration.world import (
    ALICE,
    ATTACHMENT,
    ERROR,
    MANAGER,
    NAME,
    REMOTE,
    ROOT,
    World,
    wait_until,
    world,
)


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    with world() as made:
        made.pi.plug("2-1", STICK)
        made.pi.plug("1-2", SERIAL_ADAPTER)
        made.add_remote()
        yield made


@pytest.fixture
def w(shared: World) -> Iterator[World]:
    yield shared
    shared.detach_all()
    shared.check_clean()


def session_of(w: World, remote: str) -> int:
    """The session that begins with this listing."""
    before = set(w.sessions())
    w.list(remote=remote)
    (new,) = set(w.sessions()) - before
    return new


def open_files(pid: int) -> dict[int, str]:
    """What a process has open, by number."""
    found = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        # The bus closes what belonged to a caller that has just left.
        with contextlib.suppress(FileNotFoundError):
            found[int(entry.name)] = str(entry.readlink())
    return found


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {k: v.strip() for k, _, v in (line.partition(":") for line in lines)}


def test_a_session_has_no_rights(w: World) -> None:
    w.attach("2-1")
    (pid,) = w.sessions()
    assert w.daemon is not None
    assert pid != w.daemon.pid
    told = status(pid)
    for ids in (told["Uid"], told["Gid"]):
        assert ids.split() == [str(SESSION_UID)] * 4
    assert told["Groups"] == ""
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(told[name], 16) == 0, name
    assert told["NoNewPrivs"] == "1"


def test_a_session_has_nothing_open_that_is_not_its_own(w: World) -> None:
    w.attach("2-1")
    (pid,) = w.sessions()
    opened = open_files(pid)
    assert opened[0] == "/dev/null"
    strange = [
        path
        for path in opened.values()
        if not path.startswith(("socket:[", "anon_inode:[event", "pipe:["))
        and path not in ("/dev/null", str(w.folder / "log"), "anon_inode:[io_uring]")
    ]
    assert strange == []
    # None of its sockets is one that leads to the bus.
    inodes = {path[8:-1] for path in opened.values() if path.startswith("socket:[")}
    bus = {path[8:-1] for path in open_files(w.bus.pid).values() if path.startswith("socket:[")}
    sockets = subprocess.check_output(["ss", "-xaHn"], text=True)
    peers = {(m[1], m[2]) for m in re.finditer(r"\s(\d+)\s+\S+\s+(\d+)\s*$", sockets, re.MULTILINE)}
    assert {a for a, b in peers if b in bus}, "ss tells who talks to the bus"
    assert not inodes & {a for a, b in peers if b in bus}


def test_a_session_cannot_read_the_key(w: World) -> None:
    key = w.folder / "state/id_ed25519"
    assert b"PRIVATE KEY" in key.read_bytes()
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert key.stat().st_uid == 0
    done = w.bus.run_as(SESSION_UID, "cat", str(key))
    assert done.returncode != 0
    assert "Permission denied" in done.stderr
    w.list()
    (pid,) = w.sessions()
    environment = Path(f"/proc/{pid}/environ").read_bytes()
    assert b"DBUS" not in environment
    assert b"PRIVATE" not in environment


def test_the_root_process_is_not_on_the_network(w: World) -> None:
    w.attach("2-1")
    assert w.daemon is not None
    sockets = subprocess.check_output(["ss", "-tuwapHn"], text=True)
    assert f"pid={w.sessions()[0]}," in sockets
    assert f"pid={w.daemon.pid}," not in sockets
    modules = Path(f"/proc/{w.daemon.pid}/maps").read_text()
    assert "asyncssh" not in modules


def test_losing_a_session_costs_that_remote_alone(w: World) -> None:
    w.list()
    with other_sshd(w) as ports, listed(w, "other", ports[0]):
        other = session_of(w, "other")
        (first,) = set(w.sessions()) - {other}
        lost = w.attach("2-1", ALICE, "pi")
        kept = w.attach("1-2", ALICE, "other")
        port = w.get(kept, ATTACHMENT, "Port")
        assert w.desk.transfer(port, 100_000) == 100_000
        pending = w.begin(ALICE, "Attach", "ssa{sv}", "other", "9-9", "0")
        with recording(w.bus, NAME) as recorder:
            os.kill(first, signal.SIGKILL)
            recorder.wait_removed(lost)
            assert recorder.values(lost, "LastError")[-1][0].startswith(ERROR)
            recorder.wait_value(f"{ROOT}/remote/pi", "State", "unreachable")
        # That one's device is back, without anybody's doing.
        w.pi.wait(lambda s: s["bound"] == ["1-2"])
        w.desk.wait(lambda s: [p["port"] for p in s["ports"]] == [port])
        # The other one goes on as if nothing had been.
        assert pending.answer().error == ERROR + "DeviceNotFound"
        assert w.attachments() == [kept]
        assert w.desk.transfer(port, 1_000_000) == 1_000_000
        assert w.get(f"{ROOT}/remote/other", REMOTE, "State") == "connected"
        # And the first remote is reached anew.
        again = session_of(w, "pi")
        assert again != first
        assert w.get(f"{ROOT}/remote/pi", REMOTE, "State") == "connected"
        assert w.get(f"{ROOT}/remote/pi", REMOTE, "LastError") == ["", ""]
        w.attach("2-1", ALICE, "pi")


def test_a_session_that_stops_answering_is_ended(w: World) -> None:
    # A call to it ends in time; one that is lost while it waits is told so at once.
    for pid in w.sessions():
        # Of whatever remote, and perhaps ending already.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not w.sessions(), "an earlier session stays")
    pid = session_of(w, "pi")
    os.kill(pid, signal.SIGSTOP)
    call = w.begin(ALICE, "ListRemote", "ssa{sv}", "pi", "", "0")
    # Before that it would be asked of the next session.
    wait_until(lambda: w.within("call ListRemote", "Session.request"), "it is not asked")
    os.kill(pid, signal.SIGKILL)
    answer = call.answer()
    assert answer.error.startswith(ERROR), answer
    assert len(w.list()) == 2


def test_a_daemon_without_work_has_no_session(w: World) -> None:
    for pid in w.sessions():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not w.sessions(), "a session stays")
    assert w.call(ALICE, "ListLocal", "sa{sv}", "", "0") == []
    assert w.sessions() == []


def test_two_that_start_at_once_have_one_key_and_one_goes(w: World) -> None:
    assert w.daemon is not None
    assert w.stop_daemon() == 0
    for path in (w.folder / "state").glob("id_ed25519*"):
        path.unlink()
    both = [w.spawn_daemon(), w.spawn_daemon()]
    wait_until(lambda: any(p.poll() is not None for p in both), "both stay", 60)
    (w.daemon,) = [p for p in both if p.poll() is None]
    asyncio.run(wait_for_name(w.bus, NAME))
    assert sorted(p.returncode or 0 for p in both) == [0, 1]
    assert "another usbipsshd runs on this machine" in w.log()
    out = subprocess.check_output(
        ["ssh-keygen", "-y", "-f", w.folder / "state/id_ed25519"], text=True
    )
    assert w.get(ROOT, MANAGER, "PublicKey").split()[:2] == out.split()[:2]
    w.authorize()


def test_a_key_that_cannot_be_used_is_told_and_is_no_traceback(w: World) -> None:
    line = w.get(ROOT, MANAGER, "PublicKey")
    assert w.stop_daemon() == 0
    key = w.folder / "state/id_ed25519"
    good = key.read_bytes()
    key.write_bytes(good[:100])
    assert w.spawn_daemon().wait(60) == 1
    assert "id_ed25519 is damaged; put it back from a copy" in w.log()
    assert "Traceback" not in w.log()
    key.write_bytes(good)
    w.start_daemon()
    assert w.get(ROOT, MANAGER, "PublicKey") == line
