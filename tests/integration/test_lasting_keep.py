# SPDX-License-Identifier: GPL-3.0-or-later
"""What is kept comes back: after cables, sessions and sshd; and nothing else comes in its place."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakekernel import KEYBOARD, SERIAL_ADAPTER, STICK, FakeInterface
from integration.otherremotes import listed, other_sshd
from integration.recorder import Recorder, recording
from integration.world import (
    ALICE,
    ATTACHMENT,
    ERROR,
    LONG,
    NAME,
    REMOTE,
    ROOT,
    World,
    command_lines,
    wait_until,
    world,
)

from usbipsshd.backoff import JITTER, SHORTEST

KEEP = ("keep", "b", "true")
PORTS = {"2-1": STICK, "1-1": KEYBOARD, "1-2": SERIAL_ADAPTER}


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
    shared.pi.fail("bind 2-1", times=0)
    shared.pi.delay("bind 2-1", 0)
    shared.detach_all()
    shared.check_clean()
    shared.unplug_all()


def told(w: World, path: str, name: str) -> object:
    return w.get(path, ATTACHMENT, name)


def becomes(w: World, path: str, state: str, seconds: float = 60) -> None:
    wait_until(lambda: told(w, path, "State") == state, f"not {state}", seconds)


def binds(w: World, busid: str) -> int:
    return int(w.pi.state()["log"].count(f"bind {busid}"))


def bytes_move(w: World, path: str) -> bool:
    return w.desk.transfer(int(str(told(w, path, "Port"))), 50_000) == 50_000


def test_unplugged_and_plugged_in_again(w: World) -> None:
    with recording(w.bus, NAME) as record:
        path = w.attach("2-1", ALICE, "pi", *KEEP)
        before = time.time()
        w.pi.unplug("2-1")
        becomes(w, path, "waiting")
        record.wait(lambda _: [v for v in record.values(path, "RetryAt") if v])
        retry_at = max(record.values(path, "RetryAt")) / 1e6
        assert before < retry_at < time.time() + 60
        error, message = record.values(path, "LastError")[-1]
        assert error.startswith(ERROR)
        assert "pi" in message
        assert told(w, path, "LocalBusId") == ""
        assert told(w, path, "AttachedAt") == 0
        assert w.desk.state()["ports"] == []
        w.pi.plug("2-1", STICK)
        becomes(w, path, "attached")
        assert told(w, path, "LastError") == ["", ""]
        assert told(w, path, "RetryAt") == 0
        assert before * 1e6 < float(str(told(w, path, "AttachedAt")))
        assert bytes_move(w, path)
        record.wait_value(path, "State", "attached")
        states = [state for state, _ in itertools.groupby(record.values(path, "State"))]
        assert states[:3] == ["connecting", "attached", "waiting"]
        assert states[-2:] == ["connecting", "attached"]
    assert w.log().count(f"restored 2-1 of pi as {told(w, path, 'LocalBusId')}") >= 1


def test_another_device_in_its_place_is_left_alone(w: World) -> None:
    path = w.attach("2-1", ALICE, "pi", *KEEP)
    count = binds(w, "2-1")
    w.pi.unplug("2-1")
    becomes(w, path, "waiting")
    for other in (
        STICK.but(serial="ANOTHER"),
        STICK.but(interfaces=(*STICK.interfaces, *KEYBOARD.interfaces)),
    ):
        w.pi.plug("2-1", other)
        wait_until(
            lambda: told(w, path, "LastError")[0] == ERROR + "DeviceChanged",  # type: ignore[index]
            "it is not told",
        )
        # "waiting", or on its way to see that nothing has changed.
        assert told(w, path, "State") != "attached"
        assert binds(w, "2-1") == count
        assert w.pi.state()["devices"]["2-1"]["driver"] == "usb"
        w.pi.unplug("2-1")
    w.pi.plug("2-1", STICK)
    becomes(w, path, "attached")


def test_by_pattern_what_matches_but_nothing_that_can_do_more(w: World) -> None:
    path = w.attach("0781:5581", ALICE, "pi", *KEEP)
    w.pi.unplug("2-1")
    becomes(w, path, "waiting")
    typing = FakeInterface(3, 1, 1, "usbhid", nodes=("input/event#",))
    w.pi.plug("2-2", STICK.but(serial="EVIL", interfaces=(*STICK.interfaces, typing)))
    wait_until(
        lambda: told(w, path, "LastError")[0] == ERROR + "DeviceChanged",  # type: ignore[index]
        "it is not told",
    )
    assert binds(w, "2-2") == 0
    w.pi.unplug("2-2")
    w.pi.plug("2-3", STICK.but(serial="ANOTHER"))
    becomes(w, path, "attached")
    assert told(w, path, "RemoteBusId") == "2-3"
    assert bytes_move(w, path)


def test_by_pattern_nothing_that_carries_the_network_by_its_driver_here(w: World) -> None:
    # Two of one class, a vendor's own, and of one vendor: what the second is, only its driver says.
    w.driver("kernel/drivers/usb/serial/quatech2.ko", "v061Dp0001d*dc*dsc*dp*ic*isc*ip*in*")
    w.driver("kernel/drivers/net/usb/asix.ko.xz", "v061Dp0002d*dc*dsc*dp*ic*isc*ip*in*")
    serial = SERIAL_ADAPTER.but(vendor_id=0x061D, product_id=1, product="Box")
    w.pi.plug("1-5", serial)
    path = w.attach("FTDI Box", ALICE, "pi", *KEEP)
    w.pi.unplug("1-5")
    becomes(w, path, "waiting")
    w.pi.plug("1-5", serial.but(product_id=2))
    wait_until(
        lambda: told(w, path, "LastError")[0] == ERROR + "DeviceChanged",  # type: ignore[index]
        "it is not told",
    )
    assert "network" in told(w, path, "LastError")[1]  # type: ignore[index]
    assert w.pi.state()["devices"]["1-5"]["driver"] == "usb"
    w.pi.unplug("1-5")
    w.pi.plug("1-5", serial)
    becomes(w, path, "attached")
    # Approved as what it is, it comes back as before.
    w.call(ALICE, "Detach", "sa{sv}", "pi/1-5", "0")
    w.pi.unplug("1-5")
    w.pi.plug("1-5", serial.but(product_id=2))
    path = w.attach("FTDI Box", ALICE, "pi", *KEEP)
    w.pi.unplug("1-5")
    becomes(w, path, "waiting")
    w.pi.plug("1-5", serial.but(product_id=2))
    becomes(w, path, "attached")


def test_its_session_is_killed(w: World) -> None:
    path = w.attach("2-1", ALICE, "pi", *KEEP)
    lost = w.attach("1-2")
    (pid,) = w.sessions()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: w.sessions() not in ([], [pid]), "no new session")
    becomes(w, path, "attached")
    assert bytes_move(w, path)
    wait_until(lambda: w.attachments() == [path], f"{lost} was not kept")


def test_sshd_is_killed_and_comes_back(w: World) -> None:
    with contextlib.ExitStack() as stack:
        first = contextlib.ExitStack()
        (port,) = first.enter_context(other_sshd(w))
        stack.enter_context(listed(w, "second", port))
        path = w.attach("2-1", ALICE, "second", *KEEP)
        # Nobody listens any more, and who was connected is cut off.
        first.close()
        for pid in w.agents():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        becomes(w, path, "waiting")
        remote = f"{ROOT}/remote/second"
        wait_until(lambda: w.get(remote, REMOTE, "State") == "unreachable", "still there")
        w.refused("ConnectionFailed", ALICE, "ListRemote", "ssa{sv}", "second", "", "0")
        assert told(w, path, "State") in ("waiting", "connecting")
        w.call(ALICE, "Detach", "sa{sv}", path, "0")
        assert w.attachments() == []


def test_retries_back_off_and_one_that_fails_there_is_not_hammered(w: World) -> None:
    with recording(w.bus, NAME) as record:
        path = w.attach("2-1", ALICE, "pi", *KEEP)
        w.pi.fail("bind 2-1", "EIO", -1)
        w.pi.end_connection("2-1")
        becomes(w, path, "waiting")
        count = binds(w, "2-1")
        lines = w.log().count("2-1")

        def gaps(_: object) -> list[float] | None:
            told_at = [v / 1e6 for v in record.values(path, "RetryAt") if v]
            told_at = sorted(set(told_at))
            between = [b - a for a, b in itertools.pairwise(told_at)]
            return between if len(between) >= 4 else None

        between = record.wait(gaps, 120)
        # What a try takes comes on top of each wait.
        for gap, double in zip(between, (1, 2, 4, 8), strict=False):
            assert gap >= SHORTEST * double * (1 - JITTER), between
        assert binds(w, "2-1") <= count + 5
        # Told once, when it was lost.
        daemon = [x for x in w.log()[:].splitlines() if x.startswith("daemon: ") and "2-1" in x]
        assert len([x for x in daemon if "lost" in x and "pi" in x]) >= 1
        assert w.log().count("2-1") - lines < 20
        # Plugged in anew it is tried at once.
        w.pi.fail("bind 2-1", times=0)
        with tried_early(path, record):
            w.pi.unplug("2-1")
            w.pi.plug("2-1", STICK)
            becomes(w, path, "attached")


@contextlib.contextmanager
def tried_early(path: str, record: Recorder) -> Iterator[None]:
    """What happens in the context begins a try before the time that was told for the next one."""
    since = time.time()
    retry_at = next(v / 1e6 for v in reversed(record.values(path, "RetryAt")) if v)
    yield
    record.wait_value(path, "State", "attached")
    begun = [
        signal.at
        for signal in record.signals
        if signal.path == path and signal.body[1].get("State") == "connecting"
    ]
    assert any(since < at < retry_at for at in begun), (since, begun, retry_at)


def test_a_call_cuts_the_wait_short(w: World) -> None:
    with recording(w.bus, NAME) as record:
        path = w.attach("2-1", ALICE, "pi", *KEEP)
        w.pi.fail("bind 2-1", "EIO", -1)
        w.pi.end_connection("2-1")
        record.wait(
            lambda _: any(v / 1e6 > time.time() + 5 for v in record.values(path, "RetryAt")), 120
        )
        w.pi.fail("bind 2-1", times=0)
        with tried_early(path, record):
            answer = w.ask(ALICE, "Attach", "ssa{sv}", "pi", "2-1", "0")
            assert answer.error == ERROR + "AlreadyAttached"
            becomes(w, path, "attached")


def test_detached_while_it_waits(w: World) -> None:
    path = w.attach("2-1", ALICE, "pi", *KEEP)
    w.pi.unplug("2-1")
    becomes(w, path, "waiting")
    w.call(ALICE, "Detach", "sa{sv}", "pi/2-1", "0")
    assert w.attachments() == []
    count = binds(w, "2-1")
    w.pi.plug("2-1", STICK)
    assert w.list()[-1]["state"] == "available"
    assert binds(w, "2-1") == count


def test_detached_while_it_connects_again(w: World) -> None:
    path = w.attach("2-1", ALICE, "pi", *KEEP)
    w.pi.unplug("2-1")
    becomes(w, path, "waiting")
    w.pi.delay("bind 2-1", LONG)
    count = binds(w, "2-1")
    w.pi.plug("2-1", STICK)
    w.pi.wait(lambda s: s["log"].count("bind 2-1") > count)
    assert told(w, path, "State") == "connecting"
    detach = w.begin(ALICE, "Detach", "sa{sv}", path, "0")
    becomes(w, path, "detaching")
    w.pi.delay("bind 2-1", 0)
    detach.value()
    assert w.attachments() == []
    w.check_clean()


def test_detached_in_the_middle_of_being_lost(w: World) -> None:
    for _ in range(5):
        path = w.attach("2-1", ALICE, "pi", *KEEP)
        w.pi.end_connection("2-1")
        w.ask(ALICE, "Detach", "sa{sv}", path, "0")
        assert w.attachments() == []
        w.check_clean()


def test_the_sshd_of_its_connection_is_killed(w: World) -> None:
    path = w.attach("2-1", ALICE, "pi", *KEEP)
    before = set(w.agents())
    restored = w.log().count("restored 2-1 of pi")
    servers = {pid for pid, words in command_lines() if words[0].startswith(b"sshd: root")}
    for pid in {parent(p) for p in before} & servers:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not before & set(w.agents()), "the agent stays")
    wait_until(lambda: w.log().count("restored 2-1 of pi") > restored, "it is not restored")
    becomes(w, path, "attached")
    assert bytes_move(w, path)


def parent(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0
