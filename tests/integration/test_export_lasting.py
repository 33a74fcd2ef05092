# SPDX-License-Identifier: GPL-3.0-or-later
"""The daemon goes and comes back, or the machine sleeps: what is exported stays or comes back."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from fakekernel import KEYBOARD, STICK
from integration.test_lasting_restart import KEEP, PERSIST, becomes, kill, values
from integration.test_lasting_sleep import logind
from integration.world import ALICE, BOB, LONG, World, wait_until, world


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    with world(with_systemd=True) as made:
        made.add_remote()
        yield made


@pytest.fixture
def w(shared: World) -> Iterator[World]:
    shared.desk.plug("2-1", STICK)
    shared.desk.plug("1-1", KEYBOARD)
    yield shared
    shared.detach_all()
    assert shared.attachments() == []
    shared.check_clean()
    for busid in ("2-1", "1-1"):
        shared.desk.unplug(busid)


def export(w: World, pattern: str, *options: str) -> str:
    count = str(len(options) // 3)
    path: str = w.call(ALICE, "Export", "ssa{sv}", "pi", pattern, count, *options)
    return path


def test_killed_while_it_is_exported(w: World) -> None:
    stick = export(w, "2-1", "rebind", "b", "true", "unmount", "b", "false")
    keyboard = export(w, "1-1", *KEEP)
    before = {p: values(w, p) for p in (stick, keyboard)}
    binds = [x for x in w.desk.state()["log"] if x.startswith("bind")]
    assert w.systemd is not None
    # The session's, and the agent's of this machine.
    w.systemd.wait_stored(2)
    for _ in range(2):
        kill(w)
        assert w.pi.transfer(before[stick]["Port"], 50_000) == 50_000
        w.start_daemon()
        assert {p: values(w, p) for p in (stick, keyboard)} == before
        w.systemd.wait_stored(2)
    assert [x for x in w.desk.state()["log"] if x.startswith("bind")] == binds
    # Whose it is, how it ends, and what it does when it is pulled out: all as before.
    w.refused("AccessDenied", BOB, "Detach", "sa{sv}", stick, "0", says="detach")
    w.desk.unplug("1-1")
    becomes(w, keyboard, "waiting")
    w.desk.plug("1-1", KEYBOARD)
    becomes(w, keyboard, "attached")
    w.call(ALICE, "Detach", "sa{sv}", "2-1", "0")
    assert w.desk.state()["devices"]["2-1"]["driver"] == "usb"


def test_killed_while_another_one_is_on_its_way(w: World) -> None:
    keyboard = export(w, "1-1")
    assert w.systemd is not None
    w.systemd.wait_stored(2)
    w.pi.delay("enumerate", LONG)
    try:
        pending = w.begin(ALICE, "Export", "ssa{sv}", "pi", "2-1", "0")
        w.pi.wait(lambda s: len(s["ports"]) == 2)
        kill(w)
    finally:
        w.pi.delay("enumerate", 0.0)
    assert pending.answer().error
    w.start_daemon()
    w.desk.wait(lambda s: s["devices"]["2-1"]["driver"] == "usb")
    w.pi.wait(lambda s: len(s["ports"]) == 1)
    assert w.attachments() == [keyboard]
    assert values(w, keyboard)["State"] == "attached"


def detached(w: World) -> int:
    """How often pi has let go of a port."""
    return sum(entry.startswith("detach") for entry in w.pi.state()["log"])


@pytest.mark.parametrize("rebind", [True, False])
def test_killed_while_one_is_being_given_back(w: World, rebind: bool) -> None:
    """The remote has let go of it, and the agent here, which goes on, was not told yet."""
    keyboard = export(w, "1-1")
    stick = export(w, "2-1", "rebind", "b", str(rebind).lower())
    assert w.systemd is not None
    w.systemd.wait_stored(2)
    before = detached(w)
    w.pi.delay("detach", LONG)
    try:
        pending = w.begin(ALICE, "Detach", "sa{sv}", stick, "0")
        wait_until(lambda: detached(w) > before, "the remote is not asked")
        kill(w)
    finally:
        w.pi.delay("detach", 0.0)
    assert pending.answer().error
    w.start_daemon()
    assert w.attachments() == [keyboard]
    driver = "usb" if rebind else ""
    w.desk.wait(lambda s: s["devices"]["2-1"]["driver"] == driver)
    w.pi.wait(lambda s: len(s["ports"]) == 1)
    assert values(w, keyboard)["State"] == "attached"
    # It can be lent again.
    if rebind:
        assert values(w, export(w, "2-1"))["State"] == "attached"


def test_killed_without_the_store(w: World) -> None:
    kept = export(w, "2-1", *KEEP)
    export(w, "1-1")
    assert w.systemd is not None
    w.systemd.wait_stored(2)
    kill(w)
    w.systemd.drop_store()
    w.check_clean()
    w.start_daemon()
    becomes(w, kept, "attached")
    assert w.attachments() == [kept]


def test_unplugged_while_the_daemon_was_away(w: World) -> None:
    kept = export(w, "2-1", *KEEP)
    export(w, "1-1")
    assert w.systemd is not None
    w.systemd.wait_stored(2)
    kill(w)
    for busid in ("2-1", "1-1"):
        w.desk.unplug(busid)
    w.start_daemon()
    assert w.attachments() == [kept]
    assert values(w, kept)["State"] in ("waiting", "connecting")
    w.desk.plug("2-1", STICK)
    w.desk.plug("1-1", KEYBOARD)
    becomes(w, kept, "attached")


def test_stopped_everything_is_given_back_and_what_persists_comes_back(w: World) -> None:
    path = w.call(0, "Export", "ssa{sv}", "pi", "2-1", "1", *PERSIST)
    export(w, "1-1")
    assert w.stop_daemon(signal.SIGTERM) == 0
    w.check_clean()
    w.start_daemon()
    becomes(w, path, "attached")
    assert w.attachments() == [path]
    told = values(w, path)
    assert (told["Direction"], told["Persist"], told["OwnerUid"]) == ("export", True, 0)


def test_it_is_here_while_the_machine_sleeps(w: World) -> None:
    path = export(w, "2-1")
    with logind(w) as made:
        made.prepare(True)
        becomes(w, path, "waiting")
        wait_until(lambda: not made.held(w), "sleep is held up")
        w.check_clean()
        made.prepare(False)
        becomes(w, path, "attached")
