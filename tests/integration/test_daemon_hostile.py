# SPDX-License-Identifier: GPL-3.0-or-later
"""Callers who mean no good: nothing they send stops the daemon, or makes it grow."""

from __future__ import annotations

import asyncio
import os
import xml.etree.ElementTree as ET
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from fakekernel import KEYBOARD, SERIAL_ADAPTER, STICK
from integration.busfixtures import CHECKOUT, client_call
from integration.world import (
    ALICE,
    ATTACHMENT,
    BOB,
    MANAGER,
    NAME,
    ROOT,
    STANDARD,
    World,
    wait_until,
    world,
)

from usbipsshd.bus.wire import library

HUB = "org.usbipssh1.Hub"
KEEP = {"keep": library("signature").Variant("b", True)}


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    with world() as made:
        made.pi.plug("2-1", STICK)
        made.desk.plug("1-1", KEYBOARD)
        made.add_remote()
        made.list()
        yield made


@pytest.fixture
def w(shared: World) -> Iterator[World]:
    # With the connection to pi, which a test may need, and which stays for a minute then.
    shared.list()
    tasks, files = shared.tasks(), shared.descriptors()
    pid = shared.daemon.pid if shared.daemon is not None else 0
    yield shared
    # The same process, with no more in hand than before.
    assert shared.daemon is not None
    assert shared.daemon.pid == pid
    assert shared.daemon.poll() is None
    shared.detach_all()
    wait_until(lambda: shared.descriptors() <= files, "descriptors stay open")
    wait_until(lambda: len(shared.tasks()) <= len(tasks), "tasks stay")
    assert len(shared.call(BOB, "ListLocal", "sa{sv}", "1-1", "0")) == 1
    shared.check_clean()
    assert "Traceback" not in shared.log()


def methods(interface: str) -> set[str]:
    """The methods that the contract has on an interface."""
    contract = ET.parse(CHECKOUT / "dbus/org.usbipssh1.xml").getroot()
    (found,) = contract.findall(f"interface[@name='{interface}']")
    return {method.attrib["name"] for method in found.findall("method")}


CALLS: dict[str, tuple[str, ...]] = {
    "ListRemote": ("s:pi", "s:"),
    "ListLocal": ("s:",),
    "Attach": ("s:pi", "s:2-1"),
    "AttachAll": ("s:pi", "s:"),
    "Export": ("s:pi", "s:1-1"),
    "Detach": ("s:all",),
    "Unbind": ("s:pi", "s:"),
    "Reset": ("s:pi", "s:"),
    "Preflight": ("s:pi",),
    "AddRemote": ("s:new",),
    "RemoveRemote": ("s:pi",),
    "TrustHostKey": ("s:pi", "s:SHA256:" + "A" * 43),
}
"""Every method of the Manager with good arguments, but for the options at the end."""


def arguments(member: str, options: tuple[str, ...]) -> list[str]:
    """As busctl takes them, with ``options`` for the dictionary."""
    count = str(len(options) // 3)
    return ["s" * len(CALLS[member]) + "a{sv}", *(a[2:] for a in CALLS[member]), count, *options]


def test_every_method_is_tried() -> None:
    assert set(CALLS) == methods(MANAGER)


@pytest.mark.parametrize("member", CALLS)
def test_unknown_options_and_wrong_types(w: World, member: str) -> None:
    good = arguments(member, ())
    unknown = ("kepe", "keep-", "Unmount", "", "-oProxyCommand", "x" * 3000)
    calls = [w.begin(ALICE, member, *arguments(member, (k, "b", "true"))) for k in unknown]
    calls += [
        w.begin(ALICE, member, *arguments(member, wrong))
        for wrong in (
            ("keep", "s", "true"), ("unmount", "i", "1"), ("rebind", "u", "0"),
            ("expect-vendor-id", "s", "0781"), ("expect-vendor-id", "u", "1"),
            ("address", "b", "true"), ("sudo", "s", "yes"), ("label", "i", "1"),
        )
    ]  # fmt: skip
    # Too few, too many, and of other types.
    calls.append(w.begin(ALICE, member))
    calls.append(w.begin(ALICE, member, good[0] + "s", *good[1:], "more"))
    calls.append(w.begin(ALICE, member, "u", "1"))
    calls.append(w.begin(ALICE, member, "i" + good[0][1:], "1", *good[2:]))
    calls.append(w.begin(ALICE, member, good[0].replace("a{sv}", "a{ss}"), *good[1:]))
    for call in calls:
        answer = call.answer()
        assert answer.error == STANDARD + "InvalidArgs", answer
        assert answer.message.endswith(".")
    assert w.objects() == [f"{ROOT}/remote/pi"]


@pytest.mark.parametrize("text", ["x" * 513, "x" * 60_000, "-oProxyCommand=id", "\x1b[2J", "a\tb"])
def test_strings_that_are_none_of_ours(w: World, text: str) -> None:
    for member in ("ListRemote", "Attach", "Unbind"):
        if member != "Unbind" or text:
            w.refused("InvalidArgs", ALICE, member, "ssa{sv}", text, "2-1", "0")
    w.refused("InvalidArgs", ALICE, "Detach", "sa{sv}", text, "0")
    for member in ("AddRemote", "RemoveRemote"):
        w.refused("InvalidArgs", ALICE, member, "sa{sv}", text, "0")
    if not text.startswith("-"):
        w.refused("InvalidArgs", ALICE, "ListRemote", "ssa{sv}", "pi", text, "0")
    label = ("address", "s", "h", "label", "s", text)
    if not text.startswith("-"):
        w.refused("InvalidArgs", ALICE, "AddRemote", "sa{sv}", "new", "2", *label)


def run(w: World, talk: Callable[[Any], Awaitable[None]], uid: int = ALICE) -> None:
    """Talk over a connection of our own."""

    async def connected() -> None:
        client = w.bus.connect(uid)
        await client.connect()
        try:
            await talk(client)
        finally:
            client.disconnect()

    asyncio.run(connected())


def call(client: Any, member: str, signature: str, *args: object, **more: Any) -> Awaitable[Any]:
    return client_call(client, NAME, ROOT, MANAGER, member, signature, *args, **more)


def test_two_hundred_calls_at_once(w: World) -> None:
    errors: list[str] = []

    async def talk(client: Any) -> None:
        answers = await asyncio.gather(
            *(call(client, "ListRemote", "ssa{sv}", "pi", "", {}) for _ in range(200))
        )
        errors.extend(a.error_name or "" for a in answers)

    run(w, talk)
    assert len(errors) == 200
    assert set(errors) == {"", STANDARD + "LimitsExceeded"}
    assert errors.count("") >= 32


def test_one_user_does_not_use_up_what_others_need(w: World) -> None:
    w.pi.answer("2-1", "stall")

    async def talk(client: Any) -> None:
        waiting = [
            asyncio.ensure_future(call(client, "Attach", "ssa{sv}", "pi", "2-1", {}))
            for _ in range(40)
        ]
        answer = await asyncio.to_thread(w.ask, 0, "ListRemote", "ssa{sv}", "pi", "", "0")
        assert answer.error == ""
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    run(w, talk)
    w.desk.wait(lambda s: not s["ports"])
    w.pi.answer("2-1", "")


def test_thirty_megabytes(w: World) -> None:
    long = "x" * (30 << 20)

    async def talk(client: Any) -> None:
        for member, signature, args in (
            ("ListLocal", "sa{sv}", (long, {})),
            ("Detach", "sa{sv}", (long, {})),
            ("ListLocal", "s" + "a{sv}" + "s", ("", {}, long)),
        ):
            answer = await call(client, member, signature, *args)
            assert answer.error_name in (STANDARD + "InvalidArgs", STANDARD + "LimitsExceeded")
            assert len(answer.body[0]) < 400

    run(w, talk)
    assert w.resident() < 100_000


def test_stray_descriptors(w: World) -> None:
    files = w.descriptors()

    async def talk(client: Any) -> None:
        read, write = os.pipe()
        try:
            for _ in range(20):
                answer = await call(
                    client, "ListLocal", "sa{sv}h", "", {}, 0, fds=(read, write, read)
                )
                assert answer.error_name == STANDARD + "InvalidArgs"
        finally:
            os.close(read)
            os.close(write)

    run(w, talk)
    wait_until(lambda: w.descriptors() <= files, "received descriptors stay open")


def test_callers_that_leave_in_the_middle_of_every_method(w: World) -> None:
    fingerprint = w.fingerprint()
    calls: list[tuple[str, str, tuple[object, ...]]] = [
        ("ListRemote", "ssa{sv}", ("pi", "", {})),
        ("ListRemote", "ssa{sv}", ("pi", "(a|b)+", {})),
        ("ListLocal", "sa{sv}", ("", {})),
        ("Attach", "ssa{sv}", ("pi", "2-1", {})),
        ("AttachAll", "ssa{sv}", ("pi", "", {})),
        ("Export", "ssa{sv}", ("pi", "1-2", {})),
        ("Unbind", "ssa{sv}", ("pi", "", {})),
        ("Reset", "ssa{sv}", ("pi", "2-1", {})),
        ("Preflight", "sa{sv}", ("pi", {})),
        ("Detach", "sa{sv}", ("all", {})),
        ("AddRemote", "sa{sv}", ("pi", {})),
        ("TrustHostKey", "ssa{sv}", ("pi", fingerprint, {})),
        ("RemoveRemote", "sa{sv}", ("nothere", {})),
    ]

    assert {member for member, _, _ in calls} == methods(MANAGER)

    async def leave(member: str, signature: str, args: tuple[object, ...], turns: int) -> None:
        client = w.bus.connect(ALICE)
        await client.connect()
        pending = asyncio.ensure_future(call(client, member, signature, *args))
        # A different moment each time.
        for _ in range(turns):
            await asyncio.sleep(0)
        client.disconnect()
        pending.cancel()
        await asyncio.gather(pending, return_exceptions=True)

    async def all_of_them() -> None:
        for turns in (1, 10, 300):
            for member, signature, args in calls:
                await leave(member, signature, args, turns)

    asyncio.run(all_of_them())
    w.desk.wait(lambda s: not s["ports"])
    wait_until(lambda: not [t for t in w.tasks() if t.startswith("call ")], "a call goes on")
    assert len(w.list()) == 1


def test_callers_that_leave_in_the_middle_of_an_objects_method(w: World) -> None:
    calls: list[tuple[str, str, tuple[str, ...], dict[str, Any]]] = [
        (HUB, "Detach", ("pi", ""), {}),
        (ATTACHMENT, "GetStatistics", ("pi", "2-1"), {}),
        (
            ATTACHMENT,
            "SetOptions",
            ("pi", "2-1"),
            {"keep": library("signature").Variant("b", True)},
        ),
        (ATTACHMENT, "Detach", ("pi", "2-1"), {}),
    ]
    assert {(i, m) for i, m, _, _ in calls} == {
        (i, m) for i in (ATTACHMENT, HUB) for m in methods(i)
    }

    async def leave(path: str, interface: str, member: str, options: object, turns: int) -> None:
        client = w.bus.connect(ALICE)
        await client.connect()
        pending = asyncio.ensure_future(
            client_call(client, NAME, path, interface, member, "a{sv}", options)
        )
        for _ in range(turns):
            await asyncio.sleep(0)
        client.disconnect()
        pending.cancel()
        await asyncio.gather(pending, return_exceptions=True)

    for turns in (1, 300):
        for interface, member, args, options in calls:
            made = "AttachAll" if interface == HUB else "Attach"
            path = w.call(ALICE, made, "ssa{sv}", *args, "0")
            asyncio.run(leave(path, interface, member, options, turns))
            wait_until(lambda: not [t for t in w.tasks() if t.startswith("call ")], "goes on")
            w.detach_all()
            w.desk.wait(lambda s: not s["ports"])


def test_calls_that_want_no_answer(w: World) -> None:
    async def talk(client: Any) -> None:
        made = library("message").Message
        flags = library("constants").MessageFlag.NO_REPLY_EXPECTED
        for member in ("ListLocal", "Nonsense"):
            client.send(
                made(
                    destination=NAME, path=ROOT, interface=MANAGER, member=member,
                    signature="sa{sv}", body=["(", {}], flags=flags,
                )
            )  # fmt: skip
        answer = await call(client, "ListLocal", "sa{sv}", "", {})
        assert not answer.error_name

    run(w, talk, BOB)


def test_forged_signals_are_not_believed(w: World) -> None:
    path = w.attach("2-1")
    w.pi.plug("1-2", SERIAL_ADAPTER)
    w.pi.answer("1-2", "stall")

    async def talk(client: Any) -> None:
        alice = w.bus.connect(ALICE)
        await alice.connect()
        waiting = asyncio.ensure_future(call(alice, "Attach", "ssa{sv}", "pi", "1-2", {}))
        await asyncio.to_thread(wait_until, lambda: len(w.attachments()) == 2, "it does not begin")
        bus, login = "org.freedesktop.DBus", "org.freedesktop.login1"
        systemd = "org.freedesktop.systemd1"
        polkit = "org.freedesktop.PolicyKit1.Authority"
        gone = [[name, owner, ""] for name, owner in (
            (alice.unique_name, alice.unique_name), (NAME, ":1.1"),
            ("org.freedesktop.PolicyKit1", ":1.1"), (login, ":1.1"),
        )]  # fmt: skip
        forged: list[tuple[str, str, str, str, list[Any]]] = [
            *(("/org/freedesktop/DBus", bus, "NameOwnerChanged", "sss", body) for body in gone),
            ("/org/freedesktop/DBus", bus, "NameLost", "s", [NAME]),
            ("/org/freedesktop/systemd1", systemd + ".Manager", "Reloading", "b", [True]),
            ("/org/freedesktop/PolicyKit1/Authority", polkit, "Changed", "", []),
            ("/org/freedesktop/login1", login + ".Manager", "PrepareForSleep", "b", [True]),
            ("/org/freedesktop/login1", login + ".Manager", "PrepareForShutdown", "b", [True]),
            (ROOT, MANAGER, "Detach", "s", ["all"]),
            (path, "org.freedesktop.DBus.Properties", "PropertiesChanged", "sa{sv}as",
             [ATTACHMENT, {}, ["State"]]),
        ]  # fmt: skip
        for where, interface, member, signature, body in forged:
            signal = library("message").Message.new_signal(
                where, interface, member, signature, body
            )
            client.send(signal)
            # To the daemon alone: what rules it has does not matter then.
            signal.serial = 0
            signal.destination = NAME
            client.send(signal)
        answer = await call(client, "ListLocal", "sa{sv}", "", {})
        assert not answer.error_name
        refused = await call(client, "ListRemote", "ssa{sv}", "pi", "", {})
        assert refused.error_name == STANDARD + "AccessDenied"
        assert not waiting.done()
        alice.disconnect()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    run(w, talk, BOB)
    wait_until(lambda: w.attachments() == [path], "who has left still waits")
    assert w.list(pattern="2-1")[0]["state"] == "attached"
    w.pi.answer("1-2", "")
    w.pi.unplug("1-2")
