# SPDX-License-Identifier: GPL-3.0-or-later
"""The table of attachments: what its callers find when something failed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest
from unit.made import STICK, refused, run, settle

from usbipsshd import attachments
from usbipsshd.attachment import Attachment, Direction
from usbipsshd.attachments import Attachments
from usbipsshd.control import Session
from usbipsshd.doing import Doing, Table, Where
from usbipsshd.errors import Code, UsbipError
from usbipsshd.link import Link
from usbipsshd.udev import Events


class OpenLink:
    """Stays open."""

    @contextmanager
    def kept(self) -> Iterator[None]:
        yield


class Failing(Doing):
    """Never becomes usable, and gives back once it is let."""

    def __init__(self, attachment: Attachment, table: Table, let: asyncio.Event) -> None:
        super().__init__(attachment, table)
        self._let = let

    async def attach(self, link: Link, *, again: bool) -> str:
        raise UsbipError(Code.DEVICE_FAILED, "It broke.")

    async def undo(self, where: Where | None, session: Session | None) -> None:
        await self._let.wait()

    def take_over(self, where: Where) -> bool:
        return False

    def look(self) -> None:
        pass

    async def statistics(self) -> tuple[int, int]:
        return 0, 0


def failing(group: asyncio.TaskGroup, let: asyncio.Event) -> Attachments:
    """A table whose attachments all fail."""
    return Attachments(
        group=group,
        crafts={Direction.IMPORT: lambda attachment, table: Failing(attachment, table, let)},
        events=Events(),
        now=lambda: 0.0,
    )


def begin(table: Attachments) -> Attachment:
    """Begin to attach the stick."""
    made = Attachment(table.number(), "pi", "", STICK, 1000)
    table.begin(cast(Any, OpenLink()), made)
    return made


async def failed(table: Attachments, attachment: Attachment) -> None:
    """Wait until its caller hears that it failed."""
    with refused(Code.DEVICE_FAILED, "It broke."):
        await table.usable(attachment)


def test_what_failed_is_out_of_the_way_when_its_caller_hears_of_it() -> None:
    async def main() -> None:
        let = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            table = failing(group, let)
            first = begin(table)
            waiting = group.create_task(failed(table, first))
            await settle()
            early = waiting.done()
            with refused(Code.ALREADY_ATTACHED, "detached"):
                begin(table)
            let.set()
            await waiting
            assert not early
            await failed(table, begin(table))
            assert not list(table)

    run(main())


def test_a_remote_that_does_not_answer_keeps_no_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attachments, "GIVEN_BACK_SECONDS", 0.05)

    async def main() -> None:
        let = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            table = failing(group, let)
            first = begin(table)
            await failed(table, first)
            left = list(table)
            let.set()
        assert left == [first]

    run(main())
