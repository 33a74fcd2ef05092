# SPDX-License-Identifier: GPL-3.0-or-later
"""Calls run side by side: what is slow delays nobody else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fakekernel import KEYBOARD, SERIAL_ADAPTER, STICK
from integration.otherremotes import bad, listed, other_sshd, silent_port
from integration.world import (
    ALICE,
    BOB,
    ERROR,
    LONG,
    MANAGER,
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
        made.pi.plug("1-1", KEYBOARD)
        made.pi.plug("1-2", SERIAL_ADAPTER)
        made.add_remote()
        made.list()
        yield made


@pytest.fixture
def w(shared: World) -> Iterator[World]:
    yield shared
    shared.pi.answer("2-1", "")
    shared.pi.delay("bind 2-1", 0)
    shared.detach_all()
    shared.check_clean()


def test_a_slow_attach_delays_nothing_else_on_its_remote(w: World) -> None:
    w.pi.delay("bind 2-1", LONG)
    slow = w.begin(ALICE, "Attach", "ssa{sv}", "pi", "2-1", "0")
    w.pi.wait(lambda s: "bind 2-1" in s["log"])
    quick = [
        w.begin(ALICE, "ListRemote", "ssa{sv}", "pi", "", "0"),
        w.begin(ALICE, "Attach", "ssa{sv}", "pi", "1-9", "0"),
        w.begin(ALICE, "Unbind", "ssa{sv}", "pi", "1-1", "0"),
    ]
    assert [c.answer().error for c in quick] == ["", ERROR + "DeviceNotFound", ""]
    assert slow.pending
    w.pi.delay("bind 2-1", 0)
    slow.value()


def test_a_device_that_never_answers_delays_nothing_else(w: World) -> None:
    w.pi.answer("2-1", "stall")
    slow = w.begin(ALICE, "Attach", "ssa{sv}", "pi", "2-1", "0")
    w.desk.wait(lambda s: s["ports"])
    assert len(w.list()) == 3
    # On the same virtual bus even: it is held, but only from strangers.
    for busid in ("1-1", "1-2"):
        w.attach(busid)
    assert slow.pending
    w.call(ALICE, "Detach", "sa{sv}", "pi/2-1", "0")
    assert slow.answer().error == ERROR + "Cancelled"


def test_a_remote_that_hangs_delays_no_other(w: World) -> None:
    with silent_port() as (port, listener), listed(w, "hung", port):
        slow = [
            w.begin(ALICE, "ListRemote", "ssa{sv}", "hung", "", "0"),
            w.begin(ALICE, "Attach", "ssa{sv}", "hung", "1-1", "0"),
            w.begin(ALICE, "TrustHostKey", "ssa{sv}", "hung", "SHA256:" + "A" * 43, "0"),
        ]
        path = f"{ROOT}/remote/hung"
        wait_until(lambda: w.get(path, REMOTE, "State") == "connecting", "nobody connects")
        assert len(w.list()) == 3
        w.attach("2-1")
        assert w.call(BOB, "ListLocal", "sa{sv}", "2-1", "0") == []
        assert w.get(ROOT, MANAGER, "VhciAvailable") is True
        assert all(call.pending for call in slow)
        # Removing it ends whoever waits for it.
        w.call(ALICE, "RemoveRemote", "sa{sv}", "hung", "0")
        w.call(ALICE, "AddRemote", "sa{sv}", "hung", "0")
        listener.close()
        for call in slow:
            assert call.answer().error in (
                ERROR + "Cancelled",
                ERROR + "ConnectionFailed",
                ERROR + "TimedOut",
            )
    assert len(w.list()) == 3


def test_an_agent_that_hangs_delays_no_other(w: World) -> None:
    with other_sshd(w, forced=[bad("hang", "0: d 2-1$")]) as ports, listed(w, "hung", ports[0]):
        slow = w.begin(ALICE, "ListRemote", "ssa{sv}", "hung", "", "0")
        path = f"{ROOT}/remote/hung"
        wait_until(lambda: w.get(path, REMOTE, "State") == "connected", "never connected")
        assert len(w.list()) == 3
        w.attach("2-1")
        assert slow.pending
        slow.leave()


def test_many_of_one_remote_share_one_connection(w: World) -> None:
    with other_sshd(w) as ports, listed(w, "shared", ports[0]):
        before = set(w.sessions())
        calls = [w.begin(ALICE, "ListRemote", "ssa{sv}", "shared", "", "0") for _ in range(8)]
        assert [len(call.value()) for call in calls] == [3] * 8
        # One of a remote before may have been ending meanwhile.
        assert len(set(w.sessions()) - before) == 1


def test_two_who_want_the_same_device(w: World) -> None:
    calls = [w.begin(ALICE, "Attach", "ssa{sv}", "pi", "2-1", "0") for _ in range(4)]
    answers = [call.answer() for call in calls]
    assert sorted(a.error for a in answers) == ["", *[ERROR + "AlreadyAttached"] * 3]
    assert len(w.attachments()) == 1
