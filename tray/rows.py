# SPDX-License-Identifier: GPL-3.0-or-later
"""A menu as plain data."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace

from usbipssh_tray.actions import Action

WIDTH = 60
"""Characters of a line in the menu; longer sentences are broken."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the menu. Without action and rows of its own it cannot be clicked."""

    key: str
    """Tells it from the others in its menu, and stays the same when it changes."""
    label: str = ""
    action: Action | None = None
    checked: bool | None = None
    """None where there is nothing to check."""
    rows: tuple[Row, ...] = ()
    separator: bool = False

    @property
    def enabled(self) -> bool:
        """Whether it can be clicked or opened."""
        return self.action is not None or bool(self.rows)


def separator(key: str) -> Row:
    """A line between rows."""
    return Row(key, separator=True)


def sentence(key: str, text: str) -> list[Row]:
    """A sentence on as many lines as it needs."""
    lines = textwrap.wrap(text, WIDTH, break_on_hyphens=False)
    return [Row(f"{key} {number}", line) for number, line in enumerate(lines)]


def reuse(new: tuple[Row, ...], old: Sequence[Row]) -> tuple[Row, ...]:
    """``new``, where whatever is as in ``old`` is the very same object.

    Who comes next then sees at once what has not changed.
    """
    before = {row.key: row for row in old}
    made = []
    for row in new:
        known = before.get(row.key)
        if known == row:
            made.append(known or row)
        elif known is not None and known.rows:
            made.append(replace(row, rows=reuse(row.rows, known.rows)))
        else:
            made.append(row)
    same = len(made) == len(old) and all(a is b for a, b in zip(made, old, strict=True))
    return old if same and isinstance(old, tuple) else tuple(made)
