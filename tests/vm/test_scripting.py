# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/scripting.md: its examples run as they stand, by root on desk, and print what it says."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
from vm.testbed.desk import Desk
from vm.testbed.host import CHECKOUT

pytestmark = pytest.mark.usefixtures("listed")

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SECONDS = 180.0


@dataclass(frozen=True)
class Example:
    language: str
    program: str
    prints: str

    def wanted(self) -> str:
        """What it prints as an expression: an ellipsis is anything on its line."""
        return "[^\n]*".join(re.escape(part) for part in self.prints.split("…"))


def examples() -> list[Example]:
    """Programs, each with the block of text that follows it."""
    blocks = _BLOCK.findall((CHECKOUT / "docs/scripting.md").read_text())
    programs, texts = blocks[::2], blocks[1::2]
    assert [kind for kind, _ in texts] == ["text"] * len(programs)
    return [
        Example(kind, text, told) for (kind, text), (_, told) in zip(programs, texts, strict=True)
    ]


def test_the_page_has_an_example_of_each_kind() -> None:
    found = examples()
    assert {example.language for example in found} == {"sh", "python"}
    text = " ".join(example.program for example in found)
    for program in ("usbipsshctl ", "busctl ", "gdbus ", "dbus_next"):
        assert program in text


@pytest.mark.parametrize("number", range(len(examples())))
def test_it_prints_what_the_page_says(desk: Desk, number: int) -> None:
    example = examples()[number]
    program = ["python3", "-"] if example.language == "python" else ["sh", "-s"]
    printed = desk.run(*program, data=example.program, timeout=SECONDS)
    assert re.fullmatch(example.wanted(), printed), printed
