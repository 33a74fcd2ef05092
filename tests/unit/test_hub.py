# SPDX-License-Identifier: GPL-3.0-or-later
"""One hub's life, moment by moment: what it looks at, what it tries, and what it leaves alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pytest
from unit.made import KEYBOARD, STICK, run, settle

from usbipsshd.attachment import Attachment, State
from usbipsshd.backoff import Backoff
from usbipsshd.control import Reply
from usbipsshd.device import Device
from usbipsshd.errors import Code, UsbipError
from usbipsshd.hub import MAX_TRIES, Hub, HubLife
from usbipsshd.messages import Packet, decode, device_to_json, encode
from usbipsshd.pattern import Pattern
from usbipsshd.seqpacket import Descriptors

LOST = UsbipError(Code.CONNECTION_FAILED, "The connection to pi was lost.")


@dataclass
class Remote:
    """A remote that can be reached or not; stands for its link and its session."""

    devices: list[Device] = field(default_factory=list)
    reachable: bool = True
    gone: bool = False
    looks: int = 0
    connections: int = 0
    news: asyncio.Event = field(default_factory=asyncio.Event)

    @asynccontextmanager
    async def use(self) -> AsyncIterator[Remote]:
        if not self.reachable:
            raise LOST
        self.connections += 1
        yield self

    async def request(self, op: str, *, seconds: float, **fields: Any) -> Reply:
        assert op == "list"
        found = [d for d in self.devices if fields["busid"] in ("", d.busid)]
        if not fields["busid"]:
            self.looks += 1
            self.news.set()
        rows: list[Packet] = [decode(encode({"device": device_to_json(d)})) for d in found]
        return Reply({}, rows, Descriptors([]))


class Table:
    """Stands for the attachments."""

    def __init__(self) -> None:
        self.now: list[Attachment] = []
        self.begun: list[str] = []
        self.life: HubLife | None = None
        self._last = 0

    def __iter__(self) -> Iterator[Attachment]:
        return iter(list(self.now))

    def number(self) -> int:
        self._last += 1
        return self._last

    def at(self, remote: str, busid: str) -> Attachment | None:
        return next((a for a in self.now if a.device.busid == busid), None)

    def begin(self, link: object, attachment: Attachment) -> None:
        self.begun.append(attachment.device.busid)
        self.now.append(attachment)
        assert self.life is not None
        self.life.added(attachment)

    def end(self, busid: str) -> None:
        """It failed, was lost or detached."""
        attachment = self.at("pi", busid)
        assert attachment is not None
        self.now.remove(attachment)
        assert self.life is not None
        self.life.removed(attachment)

    async def detach(self, attachment: Attachment, by: int | None = None) -> None:
        self.end(attachment.device.busid)


class Everything:
    """Chooses whatever there is."""

    async def select(self, pattern: Pattern, devices: Sequence[Device]) -> list[Device]:
        return list(devices)


class Clock:
    """Seconds since the epoch, which pass when somebody says so."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Scene:
    """A hub, and everything around it."""

    remote: Remote
    table: Table
    clock: Clock
    life: HubLife
    task: asyncio.Task[None]

    async def looked(self, times: int = 1) -> None:
        """Wait until it has looked at the remote so many times, and rests."""
        async with asyncio.timeout(30):
            while self.remote.looks < times:
                self.remote.news.clear()
                await self.remote.news.wait()
        await settle()

    async def end(self) -> None:
        self.life.detach()
        async with asyncio.timeout(30):
            await self.task


@asynccontextmanager
async def hub(
    *devices: Device, pattern: str = "", aside: tuple[tuple[str, int], ...] = ()
) -> AsyncIterator[Scene]:
    remote, table, clock = Remote(list(devices)), Table(), Clock()
    made = Hub(1, "pi", pattern, 1000, aside=list(aside))
    life = HubLife(
        made,
        cast(Any, remote),
        attachments=cast(Any, table),
        chooser=cast(Any, Everything()),
        now=clock,
        changed=lambda: None,
        backoff=lambda: Backoff(random=lambda: 0.0),
    )
    table.life = life
    scene = Scene(remote, table, clock, life, asyncio.create_task(life.run()))
    try:
        yield scene
    finally:
        await scene.end()


def test_it_takes_what_is_there_and_what_comes() -> None:
    async def main() -> None:
        async with hub(STICK) as scene:
            await scene.looked()
            assert scene.table.begun == ["2-2"]
            assert scene.life.hub.state is State.ATTACHED
            scene.remote.devices.append(KEYBOARD)
            scene.life.poke()
            await scene.looked(2)
            assert scene.table.begun == ["2-2", "1-1"]
            assert scene.life.hub.attachments == [1, 2]
        assert scene.table.now == []

    run(main())


def test_it_looks_only_when_there_is_news() -> None:
    async def main() -> None:
        async with hub(STICK) as scene:
            await scene.looked()
            # One that failed and is attached by now is no reason to look, however late it is.
            scene.table.end("2-2")
            await scene.looked(2)
            scene.clock.now += 1.0
            scene.life.poke()
            await scene.looked(3)
            assert scene.table.begun == ["2-2", "2-2"]
            scene.clock.now += 600.0
            scene.life.nudge()
            await scene.looked(4)
            await asyncio.sleep(0.05)
            assert scene.remote.looks == 4

    run(main())


def test_one_that_fails_waits_longer_each_time_and_is_then_set_aside() -> None:
    async def main() -> None:
        async with hub(STICK) as scene:
            await scene.looked()
            for tries in range(1, MAX_TRIES):
                scene.table.end("2-2")
                await scene.looked(scene.remote.looks + 1)
                # Not before its time.
                assert len(scene.table.begun) == tries
                scene.clock.now += 0.5 * 2 ** (tries - 1)
                scene.life.nudge()
                await scene.looked(scene.remote.looks + 1)
                assert len(scene.table.begun) == tries + 1
            scene.table.end("2-2")
            assert scene.life.hub.aside == [("2-2", 2)]
            scene.clock.now += 10_000
            scene.life.poke()
            await scene.looked(scene.remote.looks + 1)
            assert len(scene.table.begun) == MAX_TRIES
            # Plugged in anew it has another number.
            scene.remote.devices = [replace(STICK, devnum=9)]
            scene.life.poke()
            await scene.looked(scene.remote.looks + 1)
            assert len(scene.table.begun) == MAX_TRIES + 1
            assert scene.life.hub.aside == []

    run(main())


def test_what_a_lost_connection_ends_is_no_failure_of_its_device() -> None:
    async def main() -> None:
        async with hub(STICK) as scene:
            await scene.looked()
            for _ in range(MAX_TRIES + 1):
                scene.life.lost(LOST)
                scene.table.end("2-2")
                await settle()
                assert scene.life.hub.state is State.WAITING
                assert scene.life.hub.last_error == (LOST.dbus_name, LOST.message)
                looks = scene.remote.looks
                scene.life.nudge()
                await scene.looked(looks + 1)
                assert scene.table.at("pi", "2-2") is not None
            assert scene.life.hub.aside == []

    run(main())


def test_what_somebody_detaches_stays_away_also_after_a_restart() -> None:
    async def main() -> None:
        async with hub(STICK, KEYBOARD) as scene:
            await scene.looked()
            attachment = scene.table.at("pi", "2-2")
            assert attachment is not None
            scene.life.leave_alone(attachment)
            scene.table.end("2-2")
            await scene.looked(2)
            assert scene.table.begun == ["1-1", "2-2"]
            aside = tuple(scene.life.hub.aside)
        async with hub(STICK, KEYBOARD, aside=aside) as scene:
            await scene.looked()
            assert scene.table.begun == ["1-1"]

    run(main())


def test_what_is_attached_otherwise_is_taken_when_it_is_free() -> None:
    async def main() -> None:
        async with hub() as scene:
            await scene.looked()
            other = Attachment(7, "pi", "2-2", STICK, 1000)
            scene.table.now.append(other)
            scene.remote.devices.append(STICK)
            scene.life.poke()
            await scene.looked(2)
            assert scene.table.begun == []
            scene.table.now.remove(other)
            scene.life.nudge()
            await scene.looked(3)
            assert scene.table.begun == ["2-2"]

    run(main())


@pytest.mark.parametrize("device", [replace(STICK, class_=9), replace(STICK, virtual=True)])
def test_hubs_and_what_is_attached_from_elsewhere_are_never_taken(device: Device) -> None:
    async def main() -> None:
        async with hub(device, KEYBOARD) as scene:
            await scene.looked()
            assert scene.table.begun == ["1-1"]

    run(main())


def test_a_remote_that_cannot_be_reached_ends_a_new_hub_and_not_one_that_has_watched() -> None:
    async def main() -> None:
        remote, table = Remote(reachable=False), Table()
        failed: Callable[[], HubLife] = lambda: HubLife(  # noqa: E731
            Hub(1, "pi", "", 1000),
            cast(Any, remote),
            attachments=cast(Any, table),
            chooser=cast(Any, Everything()),
            now=Clock(),
            changed=lambda: None,
        )
        life = failed()
        async with asyncio.timeout(30):
            await life.run()
        with pytest.raises(UsbipError) as told:
            await life.watching()
        assert told.value is LOST
        async with hub(STICK) as scene:
            await scene.looked()
            scene.remote.reachable = False
            scene.life.lost(LOST)
            scene.table.end("2-2")
            await settle()
            assert scene.life.hub.state is State.WAITING
            scene.remote.reachable = True
            scene.life.poke()
            await scene.looked(2)
            assert str(scene.life.hub.state) == "attached"

    run(main())


def test_asleep_it_neither_looks_nor_tries() -> None:
    async def main() -> None:
        async with hub(STICK) as scene:
            await scene.looked()
            scene.life.sleep()
            scene.table.end("2-2")
            await settle()
            scene.life.nudge()
            await settle()
            assert scene.remote.looks == 1
            assert scene.life.hub.retry_at == 0
            scene.life.wake()
            await scene.looked(2)

    run(main())
