# SPDX-License-Identifier: GPL-3.0-or-later
"""How much one caller, one user and everybody may ask for, where reaching that takes many."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

from unit.made import STICK, refused, run, settle

from usbipsshd import attachments, hubs, links
from usbipsshd.address import Address
from usbipsshd.attachment import Attachment, Direction
from usbipsshd.authority import MAX_QUESTIONS, MAX_QUESTIONS_PER_UID, Action, Authority, Question
from usbipsshd.bus import wire
from usbipsshd.bus.asking import MAX_REFUSALS, REFUSAL_SECONDS, Seldom
from usbipsshd.bus.callers import Callers
from usbipsshd.bus.serving import Limits, Server
from usbipsshd.bus.values import Call, Caller, Reply
from usbipsshd.errors import Code
from usbipsshd.hub import Hub
from usbipsshd.importing import Importing
from usbipsshd.link import Link
from usbipsshd.remotes import Remote
from usbipsshd.udev import Events

ALICE, BOB = 61001, 61002
HOME = Address("root", "pi", 22)


class SilentLink:
    """Leads to a remote that never answers."""

    @contextmanager
    def kept(self) -> Iterator[None]:
        yield

    @asynccontextmanager
    async def use(self) -> AsyncIterator[None]:
        await asyncio.Event().wait()
        yield


def test_one_user_leaves_ports_for_others() -> None:
    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            table = attachments.Attachments(
                group=group,
                crafts={
                    Direction.IMPORT: partial(
                        Importing,
                        importer=cast(Any, None),
                        chooser=cast(Any, None),
                        drivers=cast(Any, None),
                    )
                },
                events=Events(),
                now=lambda: 0.0,
            )

            def begin(uid: int) -> Attachment:
                number = table.number()
                device = replace(STICK, busid=f"1-{number % 250 + 1}.{number // 250 + 1}")
                made = Attachment(number, "pi", "", device, uid)
                table.begin(cast(Any, SilentLink()), made)
                return made

            first, *_ = [begin(ALICE) for _ in range(attachments.MAX_PER_UID)]
            with refused(Code.LIMITS_EXCEEDED, "One user"):
                begin(ALICE)
            begin(BOB)
            while len(list(table)) < attachments.MAX_ATTACHMENTS:
                begin(0)
            for uid in (BOB, 0):
                with refused(Code.LIMITS_EXCEEDED, "At most"):
                    begin(uid)
            await settle()
            await table.detach(first)
            begin(ALICE)
            await settle()
            await table.close()

    run(main(), 30)


def test_one_user_leaves_hubs_for_others() -> None:
    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            table = hubs.Hubs(
                group=group, attachments=cast(Any, []), chooser=cast(Any, None), now=lambda: 0.0
            )

            def begin(uid: int) -> Hub:
                number = table.number()
                made = Hub(number, "pi", f"{number:04x}:", uid)
                table.begin(cast(Any, SilentLink()), made)
                return made

            for _ in range(hubs.MAX_PER_UID):
                begin(ALICE)
            with refused(Code.LIMITS_EXCEEDED, "One user"):
                begin(ALICE)
            begin(BOB)
            while len(list(table)) < hubs.MAX_HUBS:
                begin(0)
            with refused(Code.LIMITS_EXCEEDED, "At most"):
                begin(0)
            await settle()
            await table.close()

    run(main(), 30)


class NoSessions:
    """Launches sessions that say nothing."""

    def session(self) -> Any:
        return self._session()

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[None]:
        await asyncio.Event().wait()
        yield


class NoWay:
    """Finds no way, for ever."""

    async def to(self, remote: Remote) -> None:
        await asyncio.Event().wait()


def test_so_many_connections_at_a_time() -> None:
    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            table = links.Links(
                group=group, launcher=cast(Any, NoSessions()), ways=cast(Any, NoWay()),
                own=cast(Any, None),
                keeper=cast(Any, SimpleNamespace(store=print, unstore=lambda name: None)),
            )  # fmt: skip

            def use(number: int, *, listed: bool) -> asyncio.Task[None]:
                link = table.to(Remote(f"pi{number}", HOME, listed=listed))
                return group.create_task(using(link))

            async def using(link: Link) -> None:
                async with link.use():
                    raise AssertionError("there is no session")

            async def check(number: int, *, listed: bool, about: str) -> None:
                link = table.to(Remote(f"pi{number}", HOME, listed=listed))
                with refused(Code.LIMITS_EXCEEDED, about):
                    async with link.use():
                        raise AssertionError("there is no session")

            waiting = [use(n, listed=False) for n in range(links.MAX_UNLISTED)]
            await settle()
            await check(900, listed=False, about="not listed")
            # Listed ones still have room, up to their own limit.
            waiting += [
                use(n, listed=True) for n in range(links.MAX_UNLISTED, links.MAX_CONNECTIONS)
            ]
            await settle()
            await check(901, listed=True, about="At most")
            # Somebody else may use what is being connected already.
            more = use(0, listed=False)
            await settle()
            assert not more.done()
            for task in (*waiting, more):
                task.cancel()
            await asyncio.gather(*waiting, more, return_exceptions=True)
            await settle()
            again = use(902, listed=False)
            await settle()
            assert not again.done()
            again.cancel()

    run(main(), 30)


class Polkit:
    """Asks people, who do not answer."""

    def __init__(self) -> None:
        self.asked = 0
        self.withdrawn = 0

    async def __call__(self, *args: Any, **_: Any) -> tuple[object, ...]:
        member, body = args[3], args[5]
        if member == "CancelCheckAuthorization":
            self.withdrawn += 1
            return ()
        if body[3]:
            self.asked += 1
            await asyncio.Event().wait()
        return ((False, True, {}),)


def test_so_many_questions_at_a_time() -> None:
    async def main() -> None:
        polkit = Polkit()
        authority = Authority(cast(Any, polkit))

        def ask(uid: int) -> asyncio.Task[None]:
            return asyncio.create_task(
                authority.check(Caller(":1.5", uid), [Action.LIST], {}, Question(True))
            )

        waiting = [ask(ALICE) for _ in range(MAX_QUESTIONS_PER_UID)]
        await settle()
        with refused(Code.LIMITS_EXCEEDED, "questions"):
            await ask(ALICE)
        people = range(1, MAX_QUESTIONS // MAX_QUESTIONS_PER_UID)
        waiting += [ask(ALICE + n) for n in people for _ in range(MAX_QUESTIONS_PER_UID)]
        await settle()
        assert polkit.asked == MAX_QUESTIONS
        with refused(Code.LIMITS_EXCEEDED, "people"):
            await ask(ALICE + 500)
        # Root is never asked.
        await ask(0)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert polkit.withdrawn == MAX_QUESTIONS
        again = ask(ALICE)
        await settle()
        assert not again.done()
        again.cancel()
        await asyncio.gather(again, return_exceptions=True)

    run(main(), 30)


def test_one_users_refusals_do_not_fill_the_log() -> None:
    clock = [1000.0]
    seldom = Seldom(lambda: clock[0])
    assert [seldom.told(ALICE) for _ in range(MAX_REFUSALS)] == [0] * MAX_REFUSALS
    assert [seldom.told(ALICE) for _ in range(500)] == [None] * 500
    # Others have lines of their own.
    assert seldom.told(BOB) == 0
    clock[0] += REFUSAL_SECONDS
    assert seldom.told(ALICE) == 500
    assert seldom.told(ALICE) == 0
    clock[0] += 3 * REFUSAL_SECONDS
    assert seldom.told(BOB) == 0


def test_many_who_just_came_do_not_keep_out_who_is_known() -> None:
    async def main() -> None:
        answers: list[Any] = []
        asked = asyncio.Event()

        async def ask_bus(*args: Any, **_: Any) -> tuple[object, ...]:
            if args[5] == [":1.1"]:
                return (BOB,)
            await asked.wait()
            return (ALICE,)

        async def dispatch(call: Call) -> Reply:
            return Reply()

        server = Server(answers.append, Callers(cast(Any, ask_bus)), Limits(strangers=4))
        server.dispatch = dispatch

        def call(name: str) -> None:
            message = wire.Message(
                destination="org.usbipssh1", path="/", interface="a.b", member="C", serial=7
            )
            message.sender = name
            server.receive(message, wire.Frame(b""), None)

        call(":1.1")
        await settle()
        assert [a.error_name for a in answers] == [None]
        for number in range(6):
            call(f":2.{number}")
            await settle()
        assert [a.error_name for a in answers[1:]] == [
            "org.freedesktop.DBus.Error.LimitsExceeded"
        ] * 2
        call(":1.1")
        await settle()
        assert answers[-1].error_name is None
        asked.set()
        await settle()
        assert len([a for a in answers if a.error_name is None]) == 6
        call(":3.1")
        await settle()
        assert answers[-1].error_name is None

    run(main())
