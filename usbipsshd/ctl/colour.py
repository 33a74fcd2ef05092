# SPDX-License-Identifier: GPL-3.0-or-later
"""Colour, on terminals only, and not where NO_COLOR says so (no-color.org)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TextIO

_STATES = {"attached": "32", "connected": "32", "connecting": "33", "waiting": "33"}
_BAD = frozenset({"unreachable", "detaching"})


class Paint:
    """Puts colours (ECMA-48, SGR) around text, or leaves it alone."""

    def __init__(self, enabled: bool = False) -> None:
        self._enabled = enabled

    @classmethod
    def fitting(cls, out: TextIO, environment: Mapping[str, str]) -> Paint:
        """For what is written to ``out``."""
        wanted = not environment.get("NO_COLOR") and environment.get("TERM", "") != "dumb"
        return cls(wanted and out.isatty())

    def _with(self, number: str, text: str) -> str:
        return f"\x1b[{number}m{text}\x1b[0m" if self._enabled and text else text

    def strong(self, text: str) -> str:
        """What people look for first."""
        return self._with("1", text)

    def good(self, text: str) -> str:
        """All is well."""
        return self._with("32", text)

    def warning(self, text: str) -> str:
        """Worth a look."""
        return self._with("33", text)

    def bad(self, text: str) -> str:
        """Something is wrong."""
        return self._with("31", text)

    def state(self, text: str) -> str:
        """By the state that it begins with; spaces at the end stay."""
        word = text.split(" ", 1)[0].rstrip(",")
        if word in _BAD:
            return self.bad(text)
        number = _STATES.get(word)
        return self._with(number, text) if number else text


PLAIN = Paint()
