# SPDX-License-Identifier: GPL-3.0-or-later
"""The daemon goes and comes back, and nothing is unplugged; or everything is, and comes back."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fakekernel import KEYBOARD, SERIAL_ADAPTER, STICK
from integration.sshagents import ask_with, persons_agent
from integration.world import ALICE, ATTACHMENT, BOB, World, wait_until, world

from usbipsshd.letgo import let_go
from usbipsshd.settings import Paths

PERSIST = ("persist", "b", "true")
KEEP = ("keep", "b", "true")
KEPT = {"keep": True}
HUB_INTERFACE = "org.usbipssh1.Hub"


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    with world(with_systemd=True) as made:
        made.add_remote()
        yield made


@pytest.fixture
def w(shared: World) -> Iterator[World]:
    for busid, device in {"2-1": STICK, "1-1": KEYBOARD, "1-2": SERIAL_ADAPTER}.items():
        shared.pi.plug(busid, device)
    yield shared
    shared.detach_all()
    assert shared.attachments() == []
    shared.check_clean()
    assert not (shared.folder / "state/persistent.json").exists()
    shared.unplug_all()


def values(w: World, path: str) -> dict[str, Any]:
    return w.get_all(path, ATTACHMENT)


def state(w: World, path: str) -> Any:
    return w.get(path, ATTACHMENT, "State")


def becomes(w: World, path: str, wanted: str, seconds: float = 60) -> None:
    wait_until(lambda: state(w, path) == wanted, f"not {wanted}", seconds)


class Writer:
    """Moves bytes through a port until it is stopped; then none may have been lost."""

    def __init__(self, w: World, port: int) -> None:
        self._over = threading.Event()
        self.rounds = 0
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(w, port))

    def _run(self, w: World, port: int) -> None:
        try:
            sock = w.desk._connect()
            with sock, sock.makefile("rwb") as file:
                while not self._over.is_set():
                    request = {"op": "transfer", "port": port, "size": 20_000}
                    file.write(json.dumps(request).encode() + b"\n")
                    file.flush()
                    assert json.loads(file.readline()) == {"ok": 20_000}
                    self.rounds += 1
        except BaseException as error:
            self.error = error

    def moved(self) -> None:
        """Some more bytes have gone through by now."""
        before = self.rounds
        wait_until(lambda: self.error is not None or self.rounds > before + 3, "nothing moves")
        assert self.error is None, self.error


@contextmanager
def writing(w: World, path: str) -> Iterator[Writer]:
    writer = Writer(w, values(w, path)["Port"])
    writer._thread.start()
    try:
        writer.moved()
        yield writer
        writer.moved()
    finally:
        writer._over.set()
        writer._thread.join()


def kill(w: World) -> None:
    assert w.stop_daemon(signal.SIGKILL) != 0


def test_killed_while_bytes_move(w: World) -> None:
    stick = w.attach("2-1", ALICE, "pi", "rebind", "b", "true", "unmount", "b", "false")
    adapter = w.attach("1-2", 0, "pi", *KEEP)
    before = {p: values(w, p) for p in (stick, adapter)}
    binds = [x for x in w.pi.state()["log"] if x.startswith("bind")]
    sessions = w.sessions()
    assert w.systemd is not None
    w.systemd.wait_stored(1)
    with writing(w, stick) as writer:
        for _ in range(3):
            kill(w)
            writer.moved()
            w.start_daemon()
            assert {p: values(w, p) for p in (stick, adapter)} == before
            assert w.sessions() == sessions
    assert [x for x in w.pi.state()["log"] if x.startswith("bind")] == binds
    # It is all still what it was: whose, how to end, what it does when lost.
    w.refused("AccessDenied", BOB, "Detach", "sa{sv}", stick, "0", says="detach")
    statistics = w.call(ALICE, "GetStatistics", "a{sv}", "0", path=stick, interface=ATTACHMENT)
    assert statistics["sent"] > 20_000
    new = w.attach("1-1")
    assert int(new.rpartition("/")[2]) > int(adapter.rpartition("/")[2])
    w.pi.unplug("1-2")
    becomes(w, adapter, "waiting")
    w.call(ALICE, "Detach", "sa{sv}", "pi/2-1", "0")
    w.pi.wait(lambda s: s["devices"]["2-1"]["driver"] == "usb")


def test_killed_without_the_store(w: World) -> None:
    kept = w.attach("2-1", ALICE, "pi", *KEEP)
    w.attach("1-2")
    assert w.systemd is not None
    w.systemd.wait_stored(1)
    kill(w)
    w.systemd.drop_store()
    w.check_clean(held=True)
    wait_until(lambda: not w.sessions(), "a session stays")
    w.start_daemon()
    becomes(w, kept, "attached")
    assert w.attachments() == [kept]
    assert "lost with the process before: 1-2 of pi" in w.log()


def test_without_a_next_daemon_the_bus_is_held_until_the_last_device_has_left(w: World) -> None:
    places = Paths(sys=w.desk.root, run=w.folder / "run")
    w.attach("2-1")
    path = w.attach("1-2")
    assert w.systemd is not None
    w.systemd.wait_stored(1)
    with writing(w, path):
        kill(w)
        # One of the two buses has a device of ours, and keeps it.
        w.pi.unplug("2-1")
        w.desk.wait(lambda s: len(s["ports"]) == 1)
        assert not let_go(places, seconds=0)
    switches = [int(v) for v in w.desk.state()["authorized_default"].values()]
    assert switches.count(0) == 1
    # The sessions end once nobody keeps their sockets.
    w.systemd.drop_store()
    assert let_go(places, seconds=30)
    w.check_clean()


def test_its_device_went_while_the_daemon_was_away(w: World) -> None:
    kept = w.attach("2-1", ALICE, "pi", *KEEP)
    w.attach("1-2")
    assert w.systemd is not None
    w.systemd.wait_stored(1)
    kill(w)
    w.pi.unplug("2-1")
    w.pi.unplug("1-2")
    w.desk.wait(lambda s: not s["ports"])
    w.start_daemon()
    assert w.attachments() == [kept]
    becomes(w, kept, "waiting")
    w.pi.plug("2-1", STICK)
    becomes(w, kept, "attached")


def test_what_came_with_an_ssh_agent_goes_on_and_comes_back(w: World) -> None:
    # The session that all share may still be open from a test before.
    w.stop_daemon()
    w.start_daemon()
    keys = w.ssh.folder / "authorized_keys"
    before = keys.read_text()
    keys.write_text(before.splitlines()[0] + "\n")
    try:
        with persons_agent(ALICE, w.ssh.client_key) as agent:
            with agent.connect() as sock:
                kept = str(ask_with(w, ALICE, "Attach", ("pi", "2-1"), sock, KEPT).value())
            with agent.connect() as sock:
                once = str(ask_with(w, ALICE, "Attach", ("pi", "1-2"), sock).value())
            assert w.systemd is not None
            # Two sessions, and two agents.
            w.systemd.wait_stored(4)
            sessions = w.sessions()
            with writing(w, kept) as writer:
                kill(w)
                writer.moved()
                w.start_daemon()
                assert w.sessions() == sessions
            assert {state(w, p) for p in (kept, once)} == {"attached"}
            # The agent was kept, too: it logs in once more.
            for session in sessions:
                os.kill(session, signal.SIGKILL)
            wait_until(lambda: w.attachments() == [kept], "not lost")
            becomes(w, kept, "attached")
            w.systemd.wait_stored(2)
            # Without it, as after systemd has seen its end, there is nobody to log in.
            kill(w)
            w.systemd.drop_store()
            agent.stop()
            w.start_daemon()
            wait_until(
                lambda: "does not answer" in w.get(kept, ATTACHMENT, "LastError")[1], "no word"
            )
            w.call(ALICE, "Detach", "sa{sv}", kept, "0")
            w.systemd.wait_stored(0)
    finally:
        keys.write_text(before)
