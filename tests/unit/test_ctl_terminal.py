# SPDX-License-Identifier: GPL-3.0-or-later
"""What is shown while something takes long, and where."""

from __future__ import annotations

import asyncio
from io import StringIO

import pytest
from unit.made import run

from usbipsshd.ctl import terminal
from usbipsshd.ctl.terminal import Terminal


class Screen(StringIO):
    """Somebody looks at it."""

    def __init__(self) -> None:
        super().__init__()
        self.written = asyncio.Event()

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.written.set()
        return super().write(text)


def test_progress_is_shown_on_a_terminal_and_wiped_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "PROGRESS_SECONDS", 0.01)

    async def main() -> None:
        screen, out = Screen(), StringIO()
        async with Terminal(asks=False, out=out, err=screen).progress("Asking pi"):
            await screen.written.wait()
        first, *_, last = screen.getvalue().split("\r")[1:]
        assert first == "\x1b[KAsking pi … 1 s"
        assert last == "\x1b[K"
        assert out.getvalue() == ""

    run(main())


def test_progress_stays_on_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "PROGRESS_SECONDS", 0.01)
    monkeypatch.setenv("COLUMNS", "20")

    async def main() -> None:
        screen = Screen()
        async with Terminal(asks=False, out=StringIO(), err=screen).progress("Asking " + "x" * 64):
            await screen.written.wait()
        shown = screen.getvalue().split("\r")[1].removeprefix("\x1b[K")
        assert shown == "Asking xxxxxx … 1 s"

    run(main())


def test_what_is_quick_or_goes_to_a_file_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        screen, file = Screen(), StringIO()
        async with Terminal(asks=False, out=StringIO(), err=screen).progress("Asking pi"):
            pass
        assert screen.getvalue() == "\r\x1b[K"
        monkeypatch.setattr(terminal, "PROGRESS_SECONDS", 0.0)
        async with Terminal(asks=False, out=StringIO(), err=file).progress("Asking pi"):
            for _ in range(5):
                await asyncio.sleep(0)
        assert file.getvalue() == ""

    run(main())
