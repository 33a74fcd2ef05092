# SPDX-License-Identifier: GPL-3.0-or-later
"""Ends and beginnings: SIGTERM, SIGKILL, the bus's end, a second daemon, what is kept."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from fakekernel import KEYBOARD, SERIAL_ADAPTER, STICK
from integration.world import (
    ALICE,
    ATTACHMENT,
    BOB,
    ERROR,
    MANAGER,
    REMOTE,
    ROOT,
    World,
    wait_until,
    world,
)

from usbipsshd.letgo import let_go
from usbipsshd.settings import Paths


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    with world() as made:
        made.pi.plug("2-1", STICK)
        made.pi.plug("1-1", KEYBOARD)
        made.pi.plug("1-2", SERIAL_ADAPTER)
        made.add_remote()
        yield made


@pytest.fixture
def w(shared: World) -> Iterator[World]:
    if shared.daemon is None:
        shared.start_daemon()
    yield shared
    shared.pi.answer("2-1", "")
    if shared.daemon is not None:
        shared.detach_all()
    shared.check_clean()


def test_sigterm_gives_everything_back(w: World) -> None:
    w.attach("2-1")
    w.attach("1-2")
    w.pi.answer("2-1", "stall")
    assert w.stop_daemon(signal.SIGTERM) == 0
    # Before it ended, not some time after.
    w.desk.check_clean()
    w.pi.check_clean()
    assert w.sessions() == []
    w.check_clean()


def test_sigterm_ends_what_is_under_way(w: World) -> None:
    w.pi.answer("2-1", "stall")
    attach = w.begin(ALICE, "Attach", "ssa{sv}", "pi", "2-1", "0")
    w.desk.wait(lambda s: s["ports"])
    assert w.stop_daemon(signal.SIGTERM) == 0
    w.desk.check_clean()
    w.pi.check_clean()
    assert attach.answer().error == ERROR + "Cancelled"


def test_sigkill_gives_everything_back_too(w: World) -> None:
    w.attach("2-1")
    w.attach("1-2")
    w.stop_daemon(signal.SIGKILL)
    # Its sessions and the agent see to that, alone.
    w.check_clean(held=True)
    wait_until(lambda: not w.sessions() and not w.agents(), "somebody stays")
    assert 0 in map(int, w.desk.state()["authorized_default"].values())
    w.start_daemon()
    w.check_clean()


def test_a_bus_that_was_held_is_let_go_by_the_next_daemon(w: World) -> None:
    w.pi.answer("2-1", "stall")
    call = w.begin(ALICE, "Attach", "ssa{sv}", "pi", "2-1", "0")
    w.desk.wait(lambda s: 0 in map(int, s["authorized_default"].values()))
    w.stop_daemon(signal.SIGKILL)
    call.answer()
    w.desk.wait(lambda s: not s["ports"])
    assert 0 in map(int, w.desk.state()["authorized_default"].values())
    w.start_daemon()
    w.desk.wait(lambda s: 0 not in map(int, s["authorized_default"].values()))


def test_without_a_next_daemon_the_bus_is_let_go(w: World) -> None:
    """As systemd does when the daemon has failed for good, and the package when it is removed."""
    places = Paths(sys=w.desk.root, run=w.folder / "run")
    w.attach("2-1")
    with pytest.raises(BlockingIOError):
        let_go(places)
    w.stop_daemon(signal.SIGKILL)
    # Its sessions give everything back by themselves; what is new meanwhile stays held.
    assert let_go(places, seconds=30)
    w.check_clean()
    assert not (places.run / "authorized_default.json").exists()
    assert not (places.run / "taken-ports.json").exists()
    # Once more, with nothing to be done.
    assert let_go(places, seconds=0)
    w.start_daemon()


def test_what_is_kept(w: World) -> None:
    key = w.get(ROOT, MANAGER, "PublicKey")
    w.call(
        ALICE,
        "AddRemote",
        "sa{sv}",
        "second",
        "3",
        "address",
        "s",
        "x@h:7",
        "sudo",
        "b",
        "true",
        "label",
        "s",
        "L",
    )
    before = w.objects()
    w.attach("2-1")
    assert w.stop_daemon() == 0
    # What is private is for root alone.
    for path in (w.folder / "state").rglob("*"):
        assert path.stat().st_uid == 0
        assert not path.is_file() or path.stat().st_mode & 0o7033 == 0, path
    assert (w.folder / "state").stat().st_mode & 0o7777 == 0o700
    config = w.folder / "etc/remotes.d"
    config.mkdir(parents=True)
    (config / "byhand.toml").write_text(
        f'address = "root@127.0.0.1:{w.ssh.port}"\nlabel = "By hand"\n'
    )
    (config / "broken.toml").write_text("address = [\n")
    (config / "-oX.toml").write_text("")
    (w.folder / "state/remotes.d/damaged.toml").write_bytes(b"\xff\x00")
    w.start_daemon()
    assert w.get(ROOT, MANAGER, "PublicKey") == key
    assert w.objects() == sorted([*before, f"{ROOT}/remote/byhand"])
    assert w.get(f"{ROOT}/remote/second", REMOTE, "Label") == "L"
    assert w.get(f"{ROOT}/remote/byhand", REMOTE, "Label") == "By hand"
    # The pinned host key too: no question is open.
    assert len(w.list()) == 3
    w.refused("AccessDenied", 0, "RemoveRemote", "sa{sv}", "byhand", "0", says="byhand")
    w.refused("HostKeyUnknown", ALICE, "ListRemote", "ssa{sv}", "byhand", "", "0", says="byhand")
    w.call(ALICE, "RemoveRemote", "sa{sv}", "second", "0")
    assert f"{ROOT}/remote/second" not in w.objects()


def test_a_second_daemon_refuses_calmly(w: World) -> None:
    w.pi.answer("2-1", "stall")
    call = w.begin(ALICE, "Attach", "ssa{sv}", "pi", "2-1", "0")
    w.desk.wait(lambda s: 0 in map(int, s["authorized_default"].values()))
    kept = w.attach("1-2")
    second = w.spawn_daemon()
    assert second.wait(60) == 1
    # The first one has lost nothing: not even its hold on a device that nobody has looked at yet.
    assert 0 in map(int, w.desk.state()["authorized_default"].values())
    assert call.pending
    w.call(ALICE, "Detach", "sa{sv}", "pi/2-1", "0")
    call.answer()
    assert w.desk.transfer(w.get(kept, ATTACHMENT, "Port"), 10_000) == 10_000
    assert w.log().count("Traceback") == 0


def test_the_end_of_the_bus_is_a_clean_end() -> None:
    with world() as w:
        w.pi.plug("2-1", STICK)
        w.add_remote()
        w.attach("2-1")
        os.kill(w.bus.pid, signal.SIGKILL)
        assert w.daemon is not None
        assert w.daemon.wait(60) == 1
        w.daemon = None
        w.desk.check_clean()
        w.pi.check_clean()
        assert w.sessions() == []
        assert "Traceback" not in w.log()


def test_it_answers_again_after_all_that(w: World) -> None:
    assert len(w.call(BOB, "ListLocal", "sa{sv}", "", "0")) == 0
    w.attach("2-1")
