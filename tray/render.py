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


def items(rows: Iterable[Row], act: Callable[[Action], None]) -> tuple[Any, ...]:
    """pystray's items for ``rows``; a click calls ``act``, in the icon's thread."""
    return tuple(_item(row, act) for row in rows)


def _item(row: Row, act: Callable[[Action], None]) -> Any:
    if row.separator:
        return _Menu.SEPARATOR
    if row.rows:
        return KeyedItem(row.key, row.label, _Menu(*items(row.rows, act)))
    action, state = row.action, row.checked
    clicked = None if action is None else lambda _icon, _item: act(action)
    checked = None if state is None else lambda _item: state
    return KeyedItem(row.key, row.label, clicked, checked, enabled=action is not None)
