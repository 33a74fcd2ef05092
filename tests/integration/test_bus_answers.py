# SPDX-License-Identifier: GPL-3.0-or-later
"""Answers that nobody asked for: of polkit, logind and the bus, by somebody else."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from integration.busfixtures import client_call, system_bus
from integration.test_bus_mends import ALICE, BOB, Service, client, service
from integration.world import MANAGER, NAME, ROOT, STANDARD, World, world

from usbipsshd.bus import wire
from usbipsshd.bus.values import BusError
from usbipsshd.bus.wire import library

BUS, BUS_PATH = "org.freedesktop.DBus", "/org/freedesktop/DBus"
LOGIN = "org.freedesktop.login1"
TYPES = library("constants").MessageType
SERIALS = 1001
"""A daemon that has not run for long has used fewer. 0 is none: a bus hangs up on who says it."""


def forged(
    serial: int, signature: str, body: list[Any], *, to: str, error: str = "", sender: str = ""
) -> Any:
    """An answer to the call with a number."""
    return wire.Message(
        destination=to,
        message_type=TYPES.ERROR if error else TYPES.METHOD_RETURN,
        error_name=error or None,
        reply_serial=serial,
        signature=signature,
        body=body,
        sender=sender or None,
        # Not a number that the sender's own calls have: it is told that they were refused.
        serial=1_000_000 + serial,
    )


@pytest.fixture(scope="module")
def open_world() -> Iterator[World]:
    with world(any_answer=True) as made:
        made.add_remote()
        yield made


def test_somebody_answers_in_polkits_place(open_world: World) -> None:
    """While polkit thinks, Bob says yes for it, to every call that the daemon may have made."""
    w = open_world

    async def talk() -> tuple[Any, list[Any]]:
        bob, other = w.bus.connect(BOB), w.bus.connect(BOB)
        told: list[Any] = []
        other.add_message_handler(told.append)
        await bob.connect()
        await other.connect()
        owner = (await client_call(bob, BUS, BUS_PATH, BUS, "GetNameOwner", "s", NAME)).body[0]
        w.polkit.freeze()
        try:
            asked = asyncio.ensure_future(
                client_call(bob, NAME, ROOT, MANAGER, "ListRemote", "ssa{sv}", "pi", "", {})
            )
            # Its question has reached polkit, or will before these are looked at.
            await client_call(bob, NAME, ROOT, MANAGER, "ListLocal", "sa{sv}", "", {})
            for serial in range(1, SERIALS):
                other.send(forged(serial, "(bba{ss})", [[True, False, {}]], to=owner))
                other.send(forged(serial, "s", ["no"], to=owner, error=f"{BUS}.Error.Failed"))
                if serial % 50 == 0:
                    # All of that has arrived. (The library hangs up where its socket is full.)
                    await client_call(other, NAME, ROOT, MANAGER, "ListLocal", "sa{sv}", "", {})
            assert not asked.done()
        finally:
            w.polkit.thaw()
        async with asyncio.timeout(30):
            answer = await asked
        bob.disconnect()
        other.disconnect()
        return answer, [m for m in told if m.message_type is TYPES.ERROR]

    answer, refusals = asyncio.run(talk())
    assert answer.error_name == STANDARD + "AccessDenied"
    assert "polkit rule" in answer.body[0]
    # The bus has let them all through: it was the daemon that did not believe them.
    assert refusals == []
    assert w.list(pattern="") == []


def play(act: Any, *, any_answer: bool) -> None:
    with system_bus(any_answer=any_answer) as bus:

        async def run() -> None:
            async with asyncio.timeout(120), service(bus) as here:
                await act(here)

        asyncio.run(run())


async def _logind(here: Service) -> tuple[Any, asyncio.Queue[Any]]:
    """A connection of root's that owns logind's name, and the calls that reach it."""
    root = here.bus.connect(0)
    calls: asyncio.Queue[Any] = asyncio.Queue()

    def take(message: Any) -> bool:
        if message.message_type is TYPES.METHOD_CALL:
            calls.put_nowait(message)
            return True
        return False

    root.add_message_handler(take)
    await root.connect()
    await client_call(root, BUS, BUS_PATH, BUS, "RequestName", "su", LOGIN, 4)
    return root, calls


@pytest.mark.parametrize("by_name", [True, False], ids=["by its name", "by its connection"])
def test_only_who_was_asked_answers(by_name: bool) -> None:
    async def act(here: Service) -> None:
        root, calls = await _logind(here)
        async with client(here.bus, BOB) as bob:
            ours = here.connection.unique_name
            to = LOGIN if by_name else root.unique_name
            for turn in ("first", "second"):
                asked = asyncio.ensure_future(here.connection.call(to, "/", LOGIN, "Ask"))
                call = await calls.get()
                bob.send(forged(call.serial, "s", ["forged"], to=ours))
                bob.send(forged(call.serial, "s", ["x"], to=ours, error=f"{BUS}.Error.Failed"))
                await client_call(bob, NAME, ROOT, MANAGER, "Ping")
                assert not asked.done()
                root.send(library("message").Message.new_method_return(call, "s", [turn]))
                assert await asked == (turn,)
        root.disconnect()

    play(act, any_answer=True)


def test_who_has_taken_the_name_over_may_answer_and_who_had_it_too() -> None:
    async def act(here: Service) -> None:
        first, calls = await _logind(here)
        for answering in ("the old one", "the new one"):
            asked = asyncio.ensure_future(here.connection.call(LOGIN, "/", LOGIN, "Ask"))
            call = await calls.get()
            await client_call(first, BUS, BUS_PATH, BUS, "ReleaseName", "s", LOGIN)
            second, more = await _logind(here)
            who = first if answering == "the old one" else second
            who.send(forged(call.serial, "s", [answering], to=here.connection.unique_name))
            assert await asked == (answering,)
            first.disconnect()
            first, calls = second, more
        first.disconnect()

    play(act, any_answer=True)


def test_nobody_is_there_to_answer() -> None:
    async def act(here: Service) -> None:
        for _ in range(2):
            with pytest.raises(BusError, match="ServiceUnknown"):
                await here.connection.call(LOGIN, "/", LOGIN, "Ask")
        # Then somebody is.
        root, calls = await _logind(here)
        asked = asyncio.ensure_future(here.connection.call(LOGIN, "/", LOGIN, "Ask"))
        root.send(library("message").Message.new_method_return(await calls.get(), "s", ["here"]))
        assert await asked == ("here",)
        root.disconnect()
        assert here.connection._pending == {}

    play(act, any_answer=False)


def test_nobody_says_in_the_buss_place_whose_a_connection_is() -> None:
    """Not by a bus, which has answered by then: by what arrives before its answer is read."""

    async def act(here: Service) -> None:
        async with client(here.bus, ALICE) as alice:
            connection = here.connection
            asked = asyncio.ensure_future(
                connection.call(
                    BUS, BUS_PATH, BUS, "GetConnectionUnixUser", "s", [alice.unique_name]
                )
            )
            await asyncio.sleep(0)
            (serial,) = connection._pending
            for sender in (":1.99", "org.freedesktop.login1", ""):
                message = forged(serial, "u", [0], to=str(connection.unique_name), sender=sender)
                connection._receive(wire.Frame(bytes(message._marshall()), []))
            assert not asked.done()
            assert await asked == (ALICE,)

    play(act, any_answer=False)


def test_a_bus_with_the_usual_policy_passes_none_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so to who sent them, and does not hang up on them."""

    async def act(here: Service) -> None:
        async with client(here.bus, BOB) as bob:
            told: list[Any] = []
            bob.add_message_handler(told.append)
            heard: list[bytes] = []
            receive = here.connection._receive

            def spy(frame: wire.Frame) -> None:
                heard.append(frame.data)
                receive(frame)

            monkeypatch.setattr(here.connection, "_receive", spy)
            ours = here.connection.unique_name
            for serial in range(1, 100):
                bob.send(forged(serial, "s", ["forged"], to=ours))
            await client_call(bob, NAME, ROOT, MANAGER, "Ping")
            refusals = [m for m in told if m.error_name == STANDARD + "AccessDenied"]
            assert len(refusals) == 99
            assert heard
            assert [data for data in heard if b"forged" in data] == []

    play(act, any_answer=False)
