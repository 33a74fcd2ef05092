# SPDX-License-Identifier: GPL-3.0-or-later
"""AttachAll: everything that matches, now and later, each device with a life of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from fakekernel import BLUETOOTH, HUB, KEYBOARD, SERIAL_ADAPTER, STICK
from integration.world import ALICE, ATTACHMENT, CAROL, LONG, ROOT, World, wait_until, world

HUB_INTERFACE = "org.usbipssh1.Hub"
PORTS = {"2-1": STICK, "1-1": KEYBOARD, "1-2": SERIAL_ADAPTER, "1-3": HUB}

# Carol may list and attach, but nothing that can type.
RULES = """
polkit.addRule(function(action, subject) {
    if (action.id.indexOf("org.usbipssh1.") != 0) return polkit.Result.NOT_HANDLED;
    if (subject.user == "alice") return polkit.Result.YES;
    if (subject.user == "bob") return polkit.Result.NO;
    return action.id == "org.usbipssh1.attach-input" || action.id == "org.usbipssh1.manage-remotes"
        ? polkit.Result.NO : polkit.Result.YES;
});
"""


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    with world(rules=RULES) as made:
        made.add_remote()
        yield made


@pytest.fixture
def w(shared: World) -> Iterator[World]:
    for busid, device in PORTS.items():
        shared.pi.plug(busid, device)
    yield shared
    for operation in ("bind", "bind 1-2", "enumerate"):
        shared.pi.fail(operation, times=0)
    shared.detach_all()
    shared.check_clean()
    shared.unplug_all()


def attach_all(w: World, pattern: str = "", uid: int = ALICE) -> str:
    path: str = w.call(uid, "AttachAll", "ssa{sv}", "pi", pattern, "0")
    return path


def everything(w: World) -> dict[str, dict[str, Any]]:
    """The properties of every attachment, as they are at one moment."""
    manager = "org.freedesktop.DBus.ObjectManager"
    objects: dict[str, Any] = w.call(ALICE, "GetManagedObjects", interface=manager)
    return {path: each[ATTACHMENT] for path, each in objects.items() if ATTACHMENT in each}


def attached(w: World) -> dict[str, str]:
    """Paths of what is attached, by bus id there."""
    found = everything(w).items()
    return {v["RemoteBusId"]: path for path, v in found if v["State"] == "attached"}


def states(w: World) -> list[str]:
    return [str(values["State"]) for values in everything(w).values()]


def comes_to(w: World, *busids: str, seconds: float = 60) -> None:
    wait_until(lambda: set(attached(w)) == set(busids), f"not {busids}", seconds)


def binds(w: World, busid: str) -> int:
    return int(w.pi.state()["log"].count(f"bind {busid}"))


def test_what_is_there_and_what_comes_later(w: World) -> None:
    hub = attach_all(w)
    comes_to(w, "1-1", "1-2", "2-1")
    assert w.get(hub, HUB_INTERFACE, "State") == "attached"
    assert sorted(w.get(hub, HUB_INTERFACE, "Attachments")) == sorted(attached(w).values())
    for path in attached(w).values():
        assert w.get(path, ATTACHMENT, "Hub") == hub
        assert w.desk.transfer(w.get(path, ATTACHMENT, "Port"), 10_000) == 10_000
    w.pi.plug("1-4", BLUETOOTH)
    comes_to(w, "1-1", "1-2", "1-4", "2-1")
    w.pi.unplug("1-2")
    comes_to(w, "1-1", "1-4", "2-1")
    w.pi.plug("1-2", SERIAL_ADAPTER)
    comes_to(w, "1-1", "1-2", "1-4", "2-1")
    # A hub never.
    assert binds(w, "1-3") == 0
    assert w.call(ALICE, "Detach", "sa{sv}", hub, "0") == 4
    assert attached(w) == {}
    assert hub not in w.objects()
    w.check_clean()


def test_only_what_matches(w: World) -> None:
    others = binds(w, "1-1") + binds(w, "1-2")
    hub = attach_all(w, "SanDisk")
    comes_to(w, "2-1")
    w.pi.plug("2-2", STICK.but(serial="SECOND"))
    comes_to(w, "2-1", "2-2")
    assert binds(w, "1-1") + binds(w, "1-2") == others
    w.refused("AlreadyAttached", ALICE, "AttachAll", "ssa{sv}", "pi", "SanDisk", "0", says="pi")
    w.call(ALICE, "Detach", "a{sv}", "0", path=hub, interface=HUB_INTERFACE)
    assert w.attachments() == []


def test_one_that_fails_is_set_aside_and_the_others_are_not(w: World) -> None:
    w.pi.fail("bind 1-2", "EIO", -1)
    count = binds(w, "1-2")
    hub = attach_all(w, "!1-1")
    comes_to(w, "2-1")
    wait_until(
        lambda: "1-2 of pi is left alone until it is plugged in anew" in w.log(), "on and on", 120
    )
    tried = binds(w, "1-2") - count
    assert tried == 6
    wait_until(lambda: w.get(hub, HUB_INTERFACE, "State") == "attached", "not watched")
    # Events, other devices and calls change nothing for it.
    w.pi.plug("2-2", STICK.but(serial="SECOND"))
    comes_to(w, "2-1", "2-2")
    w.list()
    assert binds(w, "1-2") - count == tried
    assert w.log().count("1-2 of pi is left alone") == 1
    w.pi.fail("bind 1-2", times=0)
    w.pi.unplug("1-2")
    w.pi.plug("1-2", SERIAL_ADAPTER)
    comes_to(w, "1-2", "2-1", "2-2")


def test_one_detached_by_hand_stays_away_until_it_is_plugged_in_anew(w: World) -> None:
    attach_all(w)
    comes_to(w, "1-1", "1-2", "2-1")
    w.call(ALICE, "Detach", "sa{sv}", "pi/1-2", "0")
    count = binds(w, "1-2")
    w.pi.plug("2-2", STICK.but(serial="SECOND"))
    comes_to(w, "1-1", "2-1", "2-2")
    assert binds(w, "1-2") == count
    w.pi.unplug("1-2")
    wait_until(lambda: len(w.list()) == 4, "still there")
    w.pi.plug("1-2", SERIAL_ADAPTER)
    comes_to(w, "1-1", "1-2", "2-1", "2-2")


def test_its_session_is_killed(w: World) -> None:
    hub = attach_all(w)
    comes_to(w, "1-1", "1-2", "2-1")
    before = attached(w)
    (pid,) = w.sessions()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: w.sessions() not in ([], [pid]), "no new session")
    wait_until(lambda: not set(before.values()) & set(w.attachments()), "not all were lost")
    comes_to(w, "1-1", "1-2", "2-1")
    wait_until(lambda: w.get(hub, HUB_INTERFACE, "State") == "attached", "not watched")


def test_polkit_is_asked_for_what_can_type(w: World) -> None:
    w.refused(
        "AccessDenied", CAROL, "AttachAll", "ssa{sv}", "pi", "SanDisk", "0", says="attach-input"
    )
    w.attach("2-1", CAROL)
    assert [p for p in w.objects() if "/hub/" in p] == []


def test_detached_while_its_devices_connect(w: World) -> None:
    w.pi.delay("bind 1-2", LONG)
    count = binds(w, "1-2")
    hub = attach_all(w)
    w.pi.wait(lambda s: s["log"].count("bind 1-2") > count)
    detach = w.begin(ALICE, "Detach", "sa{sv}", hub, "0")
    wait_until(lambda: "detaching" in states(w), "it is not detached")
    w.pi.delay("bind 1-2", 0)
    detach.value()
    assert w.attachments() == []
    w.check_clean()


def test_a_remote_that_cannot_be_reached(w: World) -> None:
    w.call(0, "AddRemote", "sa{sv}", "nowhere", "1", "address", "s", "root@127.0.0.1:1")
    w.refused("ConnectionFailed", ALICE, "AttachAll", "ssa{sv}", "nowhere", "", "0", says="nowhere")
    assert [p for p in w.objects() if "/hub/" in p] == []
    w.call(0, "RemoveRemote", "sa{sv}", "nowhere", "0")


def test_its_remote_is_removed(w: World) -> None:
    address = f"root@127.0.0.1:{w.ssh.port}"
    w.call(0, "AddRemote", "sa{sv}", "again", "1", "address", "s", address)
    w.call(0, "TrustHostKey", "ssa{sv}", "again", w.fingerprint(), "0")
    w.call(ALICE, "AttachAll", "ssa{sv}", "again", "", "0")
    comes_to(w, "1-1", "1-2", "2-1")
    w.call(0, "RemoveRemote", "sa{sv}", "again", "0")
    assert w.objects() == [f"{ROOT}/remote/pi"]
