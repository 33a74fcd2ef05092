# SPDX-License-Identifier: GPL-3.0-or-later
"""Callers who want too much: they are told so, others notice nothing, and memory stays."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fakekernel import KEYBOARD, STICK
from integration.busfixtures import Agent, client_call
from integration.world import (
    ALICE,
    BOB,
    CAROL,
    MANAGER,
    NAME,
    ROOT,
    STANDARD,
    World,
    wait_until,
    world,
)

from usbipsshd.authority import MAX_QUESTIONS_PER_UID
from usbipsshd.bus.asking import MAX_REFUSALS
from usbipsshd.hubs import MAX_PER_UID as MAX_HUBS_PER_UID

INTERACTIVE = 4
"""The message flag ALLOW_INTERACTIVE_AUTHORIZATION (D-Bus specification)."""
TOO_MUCH = STANDARD + "LimitsExceeded"


@pytest.fixture(scope="module")
def w() -> Iterator[World]:
    with world() as made:
        made.pi.plug("2-1", STICK)
        made.desk.plug("1-1", KEYBOARD)
        made.add_remote()
        made.list()
        yield made


@asynccontextmanager
async def clients(w: World, uid: int, count: int) -> Any:
    """Connections to the bus of one user."""
    made = [w.bus.connect(uid) for _ in range(count)]
    await asyncio.gather(*(client.connect() for client in made))
    try:
        yield made
    finally:
        for client in made:
            client.disconnect()


async def call(client: Any, member: str, signature: str, *args: object, **more: Any) -> Any:
    return await client_call(client, NAME, ROOT, MANAGER, member, signature, *args, **more)


def test_a_thousand_calls_at_once(w: World) -> None:
    before = w.resident()

    async def main() -> Counter[str]:
        async with clients(w, ALICE, 40) as alices, clients(w, BOB, 1) as (bob,):
            calls = [
                asyncio.ensure_future(call(client, "ListRemote", "ssa{sv}", "pi", "2-1", {}))
                for _ in range(25)
                for client in alices
            ]
            # Somebody else is served meanwhile.
            for _ in range(10):
                assert not (await call(bob, "ListLocal", "sa{sv}", "", {})).error_name
            answers = await asyncio.gather(*calls)
        for answer in answers:
            assert not answer.error_name or answer.body[0].endswith("."), answer.body
        return Counter(answer.error_name or "" for answer in answers)

    errors = asyncio.run(main())
    assert errors.total() == 1000
    assert set(errors) <= {"", TOO_MUCH}
    assert errors[""] >= 32
    assert len(w.list()) == 1
    assert w.resident() < before + 16_000


def test_tight_loops(w: World) -> None:
    """Somebody asks without a pause over many connections, for what costs most without leave."""

    async def loop(client: Any, stop: asyncio.Event) -> int:
        done = 0
        while not stop.is_set():
            path = "/org/usbipssh1"
            await asyncio.gather(
                call(client, "ListLocal", "sa{sv}", "", {}),
                call(client, "ListLocal", "sa{sv}", "(", {}),
                call(client, "Nonsense", "s", "x" * 60_000),
                client_call(
                    client, NAME, path, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects"
                ),
                client_call(
                    client, NAME, path, "org.freedesktop.DBus.Introspectable", "Introspect"
                ),
            )
            done += 1
        return done

    async def main(rounds: int) -> int:
        stop = asyncio.Event()
        async with clients(w, BOB, 4) as bobs, clients(w, ALICE, 1) as (alice,):
            loops = [asyncio.ensure_future(loop(client, stop)) for client in bobs]
            for _ in range(rounds):
                answer = await call(alice, "ListRemote", "ssa{sv}", "pi", "", {})
                assert not answer.error_name
                assert len(answer.body[0]) == 1
            stop.set()
            return sum(await asyncio.gather(*loops))

    assert asyncio.run(main(4))
    files, before = w.descriptors(), w.resident()
    assert asyncio.run(main(12)) > 4
    assert w.resident() < before + 4_000
    wait_until(lambda: w.descriptors() <= files, "descriptors stay open")
    wait_until(lambda: not [t for t in w.tasks() if t.startswith("call ")], "a call goes on")


def test_one_users_hubs(w: World) -> None:
    async def main() -> None:
        async with clients(w, ALICE, 1) as (alice,):
            for number in range(MAX_HUBS_PER_UID):
                answer = await call(alice, "AttachAll", "ssa{sv}", "pi", f"dead:{number:04x}", {})
                assert not answer.error_name, answer.body
            answer = await call(alice, "AttachAll", "ssa{sv}", "pi", "dead:ffff", {})
            assert answer.error_name == TOO_MUCH
            assert "detach some first." in answer.body[0]

    asyncio.run(main())
    w.call(0, "AttachAll", "ssa{sv}", "pi", "dead:ffff", "0")
    w.call(ALICE, "Detach", "sa{sv}", "all", "0")
    w.call(ALICE, "AttachAll", "ssa{sv}", "pi", "dead:fffe", "0")
    w.detach_all()
    w.check_clean()


def test_one_users_questions(w: World) -> None:
    async def main() -> None:
        async with Agent(w.bus, CAROL, lambda _action, _text: None) as agent:
            async with clients(w, CAROL, 1) as (carol,):
                calls = [
                    asyncio.ensure_future(
                        call(carol, "ListRemote", "ssa{sv}", "pi", "", {}, flags=INTERACTIVE)
                    )
                    for _ in range(MAX_QUESTIONS_PER_UID + 1)
                ]
                done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
                (refused,) = [one.result() for one in done]
                assert refused.error_name == TOO_MUCH
                assert refused.body[0].endswith("answer one first.")
                async with asyncio.timeout(30):
                    await agent.open.wait()
                assert len(await asyncio.to_thread(w.list, ALICE)) == 1
            async with asyncio.timeout(30):
                await agent.withdrawn.wait()
            for one in calls:
                one.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    asyncio.run(main())
    wait_until(lambda: not [t for t in w.tasks() if t.startswith("call ")], "a call goes on")


def test_refusals_do_not_fill_the_log(w: World) -> None:
    async def main() -> None:
        async with clients(w, BOB, 1) as (bob,):
            for _ in range(10):
                answers = await asyncio.gather(
                    *(call(bob, "ListRemote", "ssa{sv}", "pi", "", {}) for _ in range(20))
                )
                assert {a.error_name for a in answers} == {STANDARD + "AccessDenied"}

    asyncio.run(main())
    told = [line for line in w.journal() if line["MESSAGE"].startswith(f"refused uid {BOB}")]
    # A minute may have begun meanwhile.
    assert 1 <= len(told) <= 3 * MAX_REFUSALS
