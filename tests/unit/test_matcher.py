# SPDX-License-Identifier: GPL-3.0-or-later
"""Expressions are tried where they can do no harm: in bounded time and memory."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from unit.made import KEYBOARD, STICK, refused, run

from usbipsshd.device import Device
from usbipsshd.errors import Code, UsbipError
from usbipsshd.matcher import _CHILD, MATCH_SECONDS, MAX_CHILDREN, Matcher
from usbipsshd.pattern import Pattern

PYTHON = "/usr/bin/python3"
MUCH = 15.0
"""Seconds that no expression may take, be the machine ever so busy."""
LONG = replace(STICK, product="a" * 60 + "!")


def _children() -> set[int]:
    return {int(p) for p in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}


def test_what_the_child_finds_is_selected() -> None:
    async def main() -> None:
        matcher = Matcher(PYTHON)

        async def busids(text: str) -> list[str]:
            return [d.busid for d in await matcher.select(Pattern.parse(text), [KEYBOARD, STICK])]

        found = await asyncio.gather(
            busids("Key.oard"), busids("!Key.oard"), busids("q.w"), busids("2-2"), busids("USB")
        )
        assert list(found) == [["1-1"], ["2-2"], [], ["2-2"], ["1-1", "2-2"]]
        assert await matcher.select(Pattern.parse("Key.oard"), []) == []

    run(main())


@pytest.mark.parametrize(
    "text", ["(a+)+$", "(a|aa)+$", "(.*)*x(.*)*y", r"(?:(?:a{1,30}){1,30}){1,30}b"]
)
def test_an_expression_that_takes_for_ever_is_refused_in_time(text: str) -> None:
    async def main() -> None:
        before = _children()
        began = time.monotonic()
        with refused(Code.INVALID_ARGS, "too long"):
            await Matcher(PYTHON).select(Pattern.parse(text), [LONG] * 20)
        assert time.monotonic() - began < MUCH
        assert _children() <= before

    run(main())


@pytest.mark.parametrize(
    "text",
    [r"(?:(?:(?:a{1000}){1000}){1000}){1000}", r"((((a*)*)*)*)*$", r"(?=(a+))*\1+b", "(?:(a)|.)*"],
)
def test_whatever_the_expression_it_ends_in_time_with_an_answer(text: str) -> None:
    async def main() -> None:
        began = time.monotonic()
        try:
            await Matcher(PYTHON).select(Pattern.parse(text), [LONG] * 5)
        except UsbipError as error:
            assert error.code is Code.INVALID_ARGS
        assert time.monotonic() - began < MUCH

    run(main())


def test_on_a_busy_machine_a_quick_expression_has_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What counts is the processor's time, which others may take away for long."""
    away = "import json, re, time\nreal = re.compile\n"
    away += f"re.compile = lambda text: (time.sleep({3 * MATCH_SECONDS}), real(text))[1]\n"

    async def main() -> None:
        matcher = Matcher(PYTHON)
        monkeypatch.setattr(matcher, "_command", (PYTHON, "-c", away + _CHILD))
        assert await matcher.select(Pattern.parse("Key.oard"), [KEYBOARD, STICK]) == [KEYBOARD]

    run(main())


def test_a_slow_expression_delays_nobody_else() -> None:
    async def main() -> None:
        matcher = Matcher(PYTHON)
        slow = asyncio.create_task(matcher.select(Pattern.parse("(a+)+$"), [LONG]))
        await asyncio.sleep(0)
        assert await matcher.select(Pattern.parse("2-2"), [STICK]) == [STICK]
        assert await matcher.select(Pattern.parse("STICK"), [STICK]) == [STICK]
        assert not slow.done()
        with refused(Code.INVALID_ARGS):
            await slow

    run(main())


def test_cancelling_ends_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        before = _children()
        matcher = Matcher("/bin/sh")
        monkeypatch.setattr(matcher, "_command", ("/bin/sleep", "60"))
        tasks = [
            asyncio.create_task(matcher.select(Pattern.parse("S.ICK"), [STICK]))
            for _ in range(MAX_CHILDREN + 2)
        ]
        while len(_children() - before) < MAX_CHILDREN:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert all(t.cancelled() for t in tasks)
        assert _children() <= before

    run(main())


@pytest.mark.parametrize(
    "command", [("/bin/false",), ("/bin/true",), ("/bin/sh", "-c", f"kill -{signal.SIGKILL} $$")]
)
def test_a_child_that_fails_is_an_answer_too(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        matcher = Matcher(PYTHON)
        monkeypatch.setattr(matcher, "_command", command)
        many: list[Device] = [STICK] * 1024
        with refused(Code.INVALID_ARGS):
            await matcher.select(Pattern.parse("S.ICK"), many)

    run(main())


def test_a_listing_of_the_largest_size() -> None:
    async def main() -> None:
        many = [replace(STICK, busid=f"{1 + n // 100}-{1 + n % 100}") for n in range(1024)]
        assert await Matcher(PYTHON).select(Pattern.parse("STI.K"), many) == many

    run(main())
