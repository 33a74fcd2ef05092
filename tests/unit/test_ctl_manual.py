# SPDX-License-Identifier: GPL-3.0-or-later
"""What usbipsshctl says of itself: --help on one screen, and the manual page has all of it."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest

from usbipsshd.ctl.arguments import parser
from usbipsshd.ctl.colour import Paint
from usbipsshd.ctl.exitcodes import Exit

PAGE = Path(__file__).resolve().parents[2] / "debian/usbipsshctl.1"
LINES, COLUMNS = 23, 80
"""A terminal's screen, but for the prompt that follows."""


def every(one: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield one
    for action in one._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from every(below)


PARSERS = {one.prog: one for one in every(parser())}


def plain_page() -> str:
    """The page without its markup."""
    text = re.sub(r"\\f.|^\.\w+ ?", "", PAGE.read_text(), flags=re.MULTILINE)
    return text.replace("\\-", "-").replace('"', "")


@pytest.mark.parametrize("name", PARSERS)
def test_help_fits_a_screen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(COLUMNS))
    lines = PARSERS[name].format_help().splitlines()
    assert len(lines) <= LINES, "\n".join(lines)
    assert max(map(len, lines)) <= COLUMNS, "\n".join(lines)


def test_the_page_has_every_exit_status() -> None:
    section = PAGE.read_text().partition(".SH EXIT STATUS")[2].partition(".SH ")[0]
    told = [int(number) for number in re.findall(r"^\.TP\n\.B (\d+)$", section, re.MULTILINE)]
    assert told == sorted(Exit)


# What usbipssh@.service runs nobody types.
@pytest.mark.parametrize("name", [n for n in PARSERS if not n.endswith(" unit")])
def test_the_page_has_every_command_and_option(name: str) -> None:
    page = plain_page()
    words = name.split()[1:]
    assert re.search(r"(^|, )\s*" + " ".join(words), page, re.MULTILINE), words
    for action in PARSERS[name]._actions:
        for option in action.option_strings:
            if option not in ("-h", "--help", "--version"):
                assert option in page, (name, option)


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("out", "environment", "coloured"),
    [
        (Terminal(), {"TERM": "xterm"}, True),
        (Terminal(), {"TERM": "xterm", "NO_COLOR": ""}, True),
        (Terminal(), {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (Terminal(), {"TERM": "dumb"}, False),
        (StringIO(), {"TERM": "xterm"}, False),
    ],
)
def test_colour_is_for_terminals(
    out: StringIO, environment: dict[str, str], coloured: bool
) -> None:
    paint = Paint.fitting(out, environment)
    assert (paint.good("x") != "x") is coloured
    assert paint.state("attached, kept  ").endswith("\x1b[0m" if coloured else "  ")
    assert paint.state("idle") == "idle"
    assert paint.good("") == ""
