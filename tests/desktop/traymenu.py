# SPDX-License-Identifier: GPL-3.0-or-later
"""The tray's menu in a real panel: opened and clicked with the pointer.

A panel draws the menu itself. Which rows it must have is asked for over dbusmenu, where they are is
seen in a picture of the screen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any, cast

from desktop.screen import Box, Desktop, until

from usbipssh_tray.backend.item import ITEM, MENU, MENU_PATH
from usbipssh_tray.shapes import STATUS_COLOURS
from usbipssh_tray.status import Status
from usbipsshd.bus.values import BusError, Variant
from usbipsshd.client.bus import BUS, BUS_PATH, Bus

MENU_SECONDS = 10.0
"""How long a panel may take to open a menu; then the click is tried again."""

Rows = list[tuple[str, Any]]
"""Texts of a menu's rows from top to bottom, and what is below each."""


class TrayMenu:
    """What a person does with the icon."""

    def __init__(self, desktop: Desktop) -> None:
        self.desktop = desktop

    def icon(self, status: Status) -> Box | None:
        """Where the icon is in the panel, if it shows this state."""
        return self.desktop.find(STATUS_COLOURS[status])

    def shows(self, status: Status) -> Box:
        """Wait until the icon shows this state."""
        return until(lambda: self.icon(status), f"the icon, {status}")

    def has(self, *texts: str) -> bool:
        """Whether there are rows that begin like this."""
        labels = [text for text, _ in self._layout()]
        return all(any(label.startswith(text) for label in labels) for text in texts)

    def click(self, *texts: str, section: str = "", picture: str = "") -> None:
        """Open the menu and click the row that begins like this; several are a way into submenus.

        ``section`` is how an earlier row begins, below which the first one is. ``picture`` is kept
        before the last click.
        """
        until(lambda: self._clicked(texts, section, picture), f"the row {' > '.join(texts)}")

    def look(self, text: str, picture: str) -> None:
        """Open the menu, keep a picture of it with the row that begins like this, and close it."""
        until(lambda: self._seen(text, picture), f"the row {text}")

    def _seen(self, text: str, picture: str) -> bool:
        settled = self._open()
        if settled is not None and any(label.startswith(text) for label, _ in settled[0]):
            self.desktop.keep(picture)
            self.close()
            return True
        self.close()
        return False

    def _open(self) -> tuple[Rows, list[int]] | None:
        icon = until(lambda: next(filter(None, map(self.icon, Status)), None), "the icon")
        self.desktop.click((icon[0] + icon[2]) // 2, (icon[1] + icon[3]) // 2)
        return self._settled([])

    def _clicked(self, texts: Sequence[str], section: str, picture: str) -> bool:
        """Whether that worked. A menu that grows while it is open is clipped: then it is closed."""
        way: list[int] = []
        settled = self._open()
        for text in texts:
            if settled is None:
                self.close()
                return False
            labels = [label for label, _ in settled[0]]
            first = _beginning(labels, section) if section and not way else 0
            number = _beginning(labels, text, first)
            left, _, right, _ = self.desktop.popups()[len(way)]
            way.append(number)
            if picture and len(way) == len(texts):
                self.desktop.keep(picture)
            self.desktop.click((left + right) // 2, settled[1][number])
            settled = self._settled(way) if len(way) < len(texts) else None
        return True

    def close(self) -> None:
        """Close the menu with the keyboard."""
        while self.desktop.popups():
            before = len(self.desktop.popups())
            self.desktop.keys("Escape")
            until(partial(self._fewer_than, before), "a menu to close")

    def _fewer_than(self, count: int) -> bool:
        return len(self.desktop.popups()) < count

    def _settled(self, way: Sequence[int]) -> tuple[Rows, list[int]] | None:
        """The rows of the innermost open menu, and the height of each, once the panel has both."""

        def look() -> tuple[Rows, list[int]] | None:
            popups = self.desktop.popups()
            if len(popups) != len(way) + 1:
                return None
            rows = self._layout()
            for number in way:
                rows = rows[number][1] if number < len(rows) else []
            return rows, self.desktop.rows(popups[-1])

        def twice_the_same() -> tuple[Rows, list[int]] | None:
            one = look()
            fits = one is not None and len(one[0]) == len(one[1]) > 0
            return one if fits and one == look() else None

        with suppress(AssertionError):
            return until(twice_the_same, f"the menu at {list(way)}", MENU_SECONDS)
        return None

    def _layout(self) -> Rows:
        return asyncio.run(_layout(self.desktop.bus))


def _beginning(labels: list[str], text: str, first: int = 0) -> int:
    """Which of the rows from ``first`` on begins like this."""
    for number, label in enumerate(labels):
        if number >= first and label.startswith(text):
            return number
    raise AssertionError(f"no row {text!r} in {labels}")


async def _layout(session: str) -> Rows:
    bus = Bus(session)
    await bus.connect()
    try:
        (names,) = await bus.call(BUS, BUS_PATH, BUS, "ListNames")
        assert isinstance(names, list)
        item = next((name for name in names if name.startswith(f"{ITEM}-")), None)
        if item is None:
            return []
        body: list[object] = [0, -1, []]
        _revision, root = await bus.call(item, MENU_PATH, MENU, "GetLayout", "iias", body)
    except BusError:
        return []
    else:
        return _rows(root)
    finally:
        await bus.close()


def _rows(node: object) -> Rows:
    """What dbusmenu tells about a menu, without separators and what is hidden."""
    given: Any = node.value if isinstance(node, Variant) else node
    rows: Rows = []
    for child in given[2]:
        _number, properties, _below = cast(
            "Any", child.value if isinstance(child, Variant) else child
        )
        known = {name: value.value for name, value in properties.items()}
        if known.get("type") == "separator" or known.get("visible") is False:
            continue
        text = str(known.get("label", ""))
        rows.append((text.replace("__", "_"), _rows(child)))
    return rows
