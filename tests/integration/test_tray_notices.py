# SPDX-License-Identifier: GPL-3.0-or-later
"""Notifications, with a made-up server on a bus of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
from integration.sessionbus import session_bus

from usbipssh_tray.actions import Detach, Retry
from usbipssh_tray.notices import NAME, PATH, Notices
from usbipsshd.bus.values import BusError, Reply
from usbipsshd.client.bus import BUS, BUS_PATH, Asked, Bus
from usbipsshd.client.errors import ClientError
from usbipsshd.client.snapshot import Attachment, Manager, Remote, Snapshot

SECONDS = 60.0
ME = 1000
STICK = Attachment(
    "/org/usbipssh1/attachment/1",
    remote="pi",
    name='<b>Stick</b> & "Co"',
    state="attached",
    owner_uid=ME,
    device_nodes=("/dev/sda",),
)
WAITING = replace(STICK, state="waiting", last_error=("x.ConnectionFailed", "No answer & so on."))


def snapshot(*attachments: Attachment) -> Snapshot:
    return Snapshot(True, Manager(version="1"), (Remote("/r", "pi"),), attachments)


@dataclass(frozen=True)
class Shown:
    number: int
    replaces: int
    icon: str
    summary: str
    body: str
    actions: list[str]


class FakeServer:
    """As much of a notification server as a program can notice."""

    def __init__(self, bus: Bus, capabilities: list[str]) -> None:
        self.bus = bus
        self.capabilities = capabilities
        self.shown: list[Shown] = []
        self.news = asyncio.Event()

    async def start(self) -> None:
        self.bus.serve(self._asked)
        await self.bus.call(BUS, BUS_PATH, BUS, "RequestName", "su", [NAME, 4])

    def _asked(self, asked: Asked) -> Reply:
        if asked.member == "GetCapabilities":
            return Reply("as", [self.capabilities])
        if asked.member != "Notify":
            raise BusError("org.freedesktop.DBus.Error.UnknownMethod", asked.member)
        _app, replaces, icon, summary, body, actions, _hints, _timeout = asked.body
        assert isinstance(replaces, int)
        assert isinstance(actions, list)
        number = replaces or 100 + len(self.shown)
        self.shown.append(Shown(number, replaces, str(icon), str(summary), str(body), actions))
        self.news.set()
        return Reply("u", [number])

    async def until(self, count: int) -> list[Shown]:
        async with asyncio.timeout(SECONDS):
            while len(self.shown) < count:
                self.news.clear()
                await self.news.wait()
        return self.shown

    def press(self, number: int, key: str) -> None:
        self.bus.emit(PATH, NAME, "ActionInvoked", "us", [number, key])

    def closed(self, number: int) -> None:
        self.bus.emit(PATH, NAME, "NotificationClosed", "uu", [number, 2])


class Tray:
    """Notices on a connection of their own, and what their buttons asked for."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.acted: asyncio.Queue[Detach | Retry] = asyncio.Queue()
        self.notices = Notices(bus, self.acted.put_nowait, ME, settle=0.0)

    async def next_action(self) -> Detach | Retry:
        async with asyncio.timeout(SECONDS):
            return await self.acted.get()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with session_bus() as made:
        yield made.address


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[Bus]:
    bus = Bus(address)
    await bus.connect()
    try:
        yield bus
    finally:
        await bus.close()


@asynccontextmanager
async def server_at(address: str, *capabilities: str) -> AsyncIterator[FakeServer]:
    async with connected(address) as bus:
        made = FakeServer(bus, list(capabilities))
        await made.start()
        yield made


@asynccontextmanager
async def tray_at(address: str, *first: Attachment) -> AsyncIterator[Tray]:
    async with connected(address) as bus:
        tray = Tray(bus)
        await tray.notices.start()
        tray.notices.update(snapshot(*first))
        try:
            yield tray
        finally:
            await tray.notices.stop()


def run(main: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(2 * SECONDS):
            await main
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(bounded())


def test_markup_is_escaped_where_the_server_reads_it(address: str) -> None:
    async def main() -> None:
        async with server_at(address, "body", "body-markup") as server, tray_at(address) as tray:
            await tray.notices.show("<b>1 & 2</b>", "<i>a & b</i>")
            tray.notices.update(snapshot(STICK))
            plain, attached = await server.until(2)
            assert (plain.summary, plain.body) == ("<b>1 & 2</b>", "&lt;i&gt;a &amp; b&lt;/i&gt;")
            assert attached.summary == '<b>Stick</b> & "Co" is attached'
            assert attached.body == "From pi: /dev/sda"
            assert attached.actions == []

    run(main())


def test_a_server_without_markup_gets_the_text_as_it_is(address: str) -> None:
    async def main() -> None:
        async with server_at(address, "body") as server, tray_at(address) as tray:
            await tray.notices.show("a", "<b> & c")
            assert (await server.until(1))[0].body == "<b> & c"
        async with server_at(address) as server, tray_at(address) as tray:
            await tray.notices.show("a", "b")
            (shown,) = await server.until(1)
            assert (shown.summary, shown.body) == ("a: b", "")

    run(main())


def test_lost_and_back_are_one_notification_with_buttons(address: str) -> None:
    async def main() -> None:
        async with (
            server_at(address, "actions", "body", "body-markup") as server,
            tray_at(address, STICK) as tray,
        ):
            tray.notices.update(snapshot(WAITING))
            (lost,) = await server.until(1)
            assert lost.body == "No answer &amp; so on. It is attached again when pi has it."
            assert lost.icon == "usbipssh-tray-trouble"
            assert lost.actions == ["retry", "Retry", "detach", "Detach"]
            server.press(lost.number, "retry")
            assert await tray.next_action() == Retry(STICK.path)
            tray.notices.update(snapshot(STICK))
            back = (await server.until(2))[1]
            assert back.replaces == lost.number
            assert back.actions == ["detach", "Detach"]
            server.press(back.number, "retry")
            server.press(back.number + 1, "detach")
            server.press(back.number, "detach")
            assert await tray.next_action() == Detach(STICK.path, STICK.name)
            assert tray.acted.empty()

    run(main())


def test_what_was_clicked_off_is_not_told_and_the_next_one_is(address: str) -> None:
    async def main() -> None:
        async with server_at(address, "body") as server, tray_at(address, STICK) as tray:
            tray.notices.clicked_off(STICK.path)
            tray.notices.update(snapshot())
            other = replace(STICK, path="/org/usbipssh1/attachment/2", name="Other")
            await asyncio.sleep(0)
            tray.notices.update(snapshot(other))
            assert [s.summary for s in await server.until(1)] == ["Other is attached"]

    run(main())


def test_a_refusal_is_told_once_and_a_change_of_mind_is_not(address: str) -> None:
    async def main() -> None:
        async with server_at(address, "body") as server, tray_at(address) as tray:
            connecting = replace(STICK, state="connecting")
            tray.notices.update(snapshot(connecting))
            tray.notices.failed("Attaching X", ClientError("org.usbipssh1.Error.Cancelled", "c"))
            tray.notices.failed("Attaching X", ClientError("a.b.AccessDenied", "Not allowed."))
            tray.notices.update(snapshot())
            tray.notices.failed("Attaching Y", ClientError("a.b.DeviceBusy", "It is in use."))
            told = [(s.summary, s.body) for s in await server.until(2)]
            assert told == [
                ("Attaching X was refused", "Not allowed."),
                ("Attaching Y did not work", "It is in use."),
            ]

    run(main())


def test_a_server_that_is_absent_or_restarted_does_no_harm(address: str) -> None:
    async def main() -> None:
        async with tray_at(address, STICK) as tray:
            await tray.notices.show("nobody", "is there")
            async with server_at(address, "actions", "body") as first:
                tray.notices.update(snapshot(WAITING))
                (lost,) = await first.until(1)
            async with server_at(address, "body") as second:
                # Who gets an answer has heard what came before it.
                await tray.bus.owner(NAME)
                tray.notices.update(snapshot(STICK))
                (back,) = await second.until(1)
                assert back.replaces == 0
                assert back.actions == []
                # A number of the first server's means nothing to the second.
                second.press(lost.number, "retry")
                second.closed(back.number)
                await tray.notices.show("still", "here")
                assert tray.acted.empty()

    run(main())


def test_somebody_else_cannot_press_a_button(address: str) -> None:
    async def main() -> None:
        async with (
            server_at(address, "actions", "body") as server,
            tray_at(address, STICK) as tray,
            connected(address) as stranger,
        ):
            tray.notices.update(snapshot(WAITING))
            (lost,) = await server.until(1)
            stranger.emit(PATH, NAME, "ActionInvoked", "us", [lost.number, "detach"])
            await stranger.owner(NAME)
            server.press(lost.number, "retry")
            assert await tray.next_action() == Retry(STICK.path)

    run(main())
