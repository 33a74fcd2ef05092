# SPDX-License-Identifier: GPL-3.0-or-later
"""The menu's rows as pystray's items, for whichever of its backends shows them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from usbipssh_tray.actions import Action
from usbipssh_tray.backend import library
from usbipssh_tray.rows import Row

_Menu = library.pystray().Menu
_MenuItem = library.pystray().MenuItem


class KeyedItem(_MenuItem):  # type: ignore[misc, valid-type]
    """An item that can be told from the others, whatever its text."""

    def __init__(self, key: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.key = key


class FixedMenu(_Menu):  # type: ignore[misc, valid-type]
    """A menu none of whose items ever changes; a change is another menu."""

    fixed = True

    def __init__(self, *items: Any) -> None:
        super().__init__(*items)
        self._cleaned: tuple[Any, ...] | None = None

    def _visible_items(self) -> tuple[Any, ...]:
        # pystray goes through all that is below whenever it asks whether a menu is visible.
        if self._cleaned is None:
            self._cleaned = super()._visible_items()
        return self._cleaned


class Renderer:
    """Makes pystray's items of rows. A click calls ``act``, in the icon's thread.

    Rows that are the very same object as last time have the same menu as last time.
    """

    def __init__(self, act: Callable[[Action], None]) -> None:
        self._act = act
        self._before: dict[int, tuple[tuple[Row, ...], Any]] = {}
        self._now: dict[int, tuple[tuple[Row, ...], Any]] = {}

    def items(self, rows: Iterable[Row]) -> tuple[Any, ...]:
        """pystray's items for the rows of the whole menu."""
        self._before, self._now = self._now, {}
        return tuple(self._item(row) for row in rows)

    def _menu(self, rows: tuple[Row, ...]) -> Any:
        # The rows are kept with it, so their number is nobody else's.
        found = self._before.get(id(rows))
        if found is None:
            found = (rows, FixedMenu(*(self._item(row) for row in rows)))
        self._now[id(rows)] = found
        return found[1]

    def _item(self, row: Row) -> Any:
        if row.separator:
            return _Menu.SEPARATOR
        if row.rows:
            return KeyedItem(row.key, row.label, self._menu(row.rows))
        action, state = row.action, row.checked
        clicked = None if action is None else lambda _icon, _item: self._act(action)
        checked = None if state is None else lambda _item: state
        return KeyedItem(row.key, row.label, clicked, checked, enabled=action is not None)
