# SPDX-License-Identifier: GPL-3.0-or-later
"""Before sleep every device is given back, after it each comes back; logind may be restarted."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from fakekernel import KEYBOARD, SERIAL_ADAPTER, STICK
from integration.fakeowner import FakeOwner, owning
from integration.world import ALICE, ATTACHMENT, BOB, World, wait_until, world

from usbipsshd.bus.wire import library

KEEP = ("keep", "b", "true")
PORTS = {"2-1": STICK, "1-1": KEYBOARD, "1-2": SERIAL_ADAPTER}
SECONDS = 60.0


class FakeLogind(FakeOwner):
    """Grants inhibitor locks (org.freedesktop.login1(5), Inhibit), and announces sleep."""

    def __init__(self) -> None:
        super().__init__("org.freedesktop.login1")
        self.asked: list[list[Any]] = []
        self.allows: float | None = 60.0
        """For how many seconds a sleep may be delayed; None if it does not say. What a machine that
        is busy needs for giving back is more than the usual five."""
        self._pipes: list[tuple[int, int]] = []

    def answer(self, path: str, member: str, body: list[Any]) -> tuple[str, list[Any]]:
        if member == "Get" and body[1] == "InhibitDelayMaxUSec" and self.allows is not None:
            return "v", [library("signature").Variant("t", int(self.allows * 1_000_000))]
        if member != "Inhibit":
            raise NotImplementedError
        self.asked.append(body)
        self._pipes.append(os.pipe())
        return "h", [0]

    def descriptors(self, member: str) -> list[int]:
        return [self._pipes[-1][1]] if member == "Inhibit" else []

    def close(self) -> None:
        """Close what it made."""
        for pipe in self._pipes:
            for fd in pipe:
                os.close(fd)

    def held(self, w: World) -> bool:
        """Whether the daemon has one of its locks open now."""
        assert w.daemon is not None
        ours = {f"pipe:[{os.fstat(read).st_ino}]" for read, _ in list(self._pipes)}
        for fd in Path(f"/proc/{w.daemon.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if str(fd.readlink()) in ours:
                    return True
        return False

    def prepare(self, start: bool) -> None:
        """Announce that the machine is about to sleep, or that it is awake again."""
        self.emit(
            "/org/freedesktop/login1",
            "org.freedesktop.login1.Manager",
            "PrepareForSleep",
            "b",
            start,
        )


@contextmanager
def logind(w: World) -> Iterator[FakeLogind]:
    made = FakeLogind()
    try:
        with owning(w.bus, made):
            wait_until(lambda: made.held(w), "no delay is asked for", SECONDS)
            yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    with world() as made:
        made.add_remote()
        yield made


@pytest.fixture
def w(shared: World) -> Iterator[World]:
    for busid, device in PORTS.items():
        shared.pi.plug(busid, device)
    yield shared
    shared.pi.fail("bind 1-1", times=0)
    shared.pi.delay("unbind 2-1", 0)
    shared.detach_all()
    shared.check_clean()
    shared.unplug_all()


def state(w: World, path: str) -> object:
    return w.get(path, ATTACHMENT, "State")


def becomes(w: World, wanted: str, *paths: str) -> None:
    wait_until(
        lambda: [state(w, p) for p in paths] == [wanted] * len(paths), f"not {wanted}", SECONDS
    )


def fall_asleep(w: World, made: FakeLogind) -> None:
    """Announce sleep, and wait until the daemon lets the machine sleep."""
    made.prepare(True)
    wait_until(lambda: not made.held(w), "it does not let the machine sleep", SECONDS)


def test_everything_is_given_back_and_comes_back(w: World) -> None:
    with logind(w) as made:
        assert made.asked[0][0] == "sleep"
        assert made.asked[0][3] == "delay"
        findings = w.call(BOB, "Preflight", "sa{sv}", "", "0")
        (found,) = [one for one in findings if one["id"] == "suspend"]
        assert found["ok"] == "ok"
        kept = w.attach("2-1", ALICE, "pi", *KEEP)
        plain = w.attach("1-2")
        fall_asleep(w, made)
        # By the time that the machine may sleep, and without a port taken, for vhci refuses to.
        assert w.desk.state()["ports"] == []
        assert w.pi.state()["bound"] == []
        becomes(w, "waiting", kept, plain)
        wait_until(lambda: not w.sessions(), "a connection is open")
        made.prepare(False)
        becomes(w, "attached", kept, plain)
        wait_until(lambda: made.held(w), "the next sleep would not wait", SECONDS)
        assert w.desk.transfer(int(w.get(kept, ATTACHMENT, "Port")), 50_000) == 50_000


def test_what_takes_longer_is_waited_for_where_logind_allows_it(w: World) -> None:
    with logind(w) as made:
        path = w.attach("2-1")
        w.pi.delay("unbind 2-1", 7)
        fall_asleep(w, made)
        assert w.pi.state()["bound"] == []
        made.prepare(False)
        becomes(w, "attached", path)


def test_one_that_fails_does_not_stop_the_others(w: World) -> None:
    with logind(w) as made:
        failing = w.attach("1-1", ALICE, "pi", *KEEP)
        others = [w.attach("2-1", ALICE, "pi", *KEEP), w.attach("1-2")]
        fall_asleep(w, made)
        w.pi.fail("bind 1-1", "EIO", -1)
        made.prepare(False)
        becomes(w, "attached", *others)
        becomes(w, "waiting", failing)
        w.pi.fail("bind 1-1", times=0)
        becomes(w, "attached", failing)


def test_a_hub_comes_back_with_all_its_devices(w: World) -> None:
    with logind(w) as made:
        w.call(ALICE, "AttachAll", "ssa{sv}", "pi", "", "0")
        wait_until(lambda: len(w.desk.state()["ports"]) == len(PORTS), "not all are attached")
        fall_asleep(w, made)
        assert w.desk.state()["ports"] == []
        made.prepare(False)
        wait_until(
            lambda: [state(w, p) for p in w.attachments()] == ["attached"] * len(PORTS),
            "not all are back",
            SECONDS,
        )


def test_what_is_asked_for_meanwhile_waits(w: World) -> None:
    with logind(w) as made:
        fall_asleep(w, made)
        wait_until(lambda: not w.sessions(), "a connection is open")
        asked = w.begin(ALICE, "Attach", "ssa{sv}", "pi", "2-1", "0")
        # What is asked after it is answered before it: it waits, and no connection is made.
        assert w.call(ALICE, "ListLocal", "sa{sv}", "", "0") is not None
        assert w.sessions() == []
        made.prepare(False)
        path = asked.answer().value()
        assert state(w, path) == "attached"


def test_logind_restarted(w: World) -> None:
    path = w.attach("2-1", ALICE, "pi", *KEEP)
    with logind(w):
        pass
    # Its successor is asked anew, and heard. It does not say how long it allows.
    with logind(w) as made:
        made.allows = None
        fall_asleep(w, made)
        becomes(w, "waiting", path)
        made.prepare(False)
        becomes(w, "attached", path)
        fall_asleep(w, made)
        becomes(w, "waiting", path)
    # It went while the machine slept, and its successor knows nothing of that.
    with logind(w):
        becomes(w, "attached", path)


def test_somebody_else_announces_sleep(w: World) -> None:
    """Only logind's word counts, also when the signal is sent to the daemon alone."""
    path = w.attach("2-1", ALICE, "pi", *KEEP)
    with logind(w) as made:
        for destination in ((), ("--destination=org.usbipssh1",)):
            done = w.bus.busctl(
                ALICE, *destination, "emit", "/org/freedesktop/login1",
                "org.freedesktop.login1.Manager", "PrepareForSleep", "b", "true",
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
        assert w.call(ALICE, "ListLocal", "sa{sv}", "", "0") is not None
        assert state(w, path) == "attached"
        assert made.held(w)
