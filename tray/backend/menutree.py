# SPDX-License-Identifier: GPL-3.0-or-later
"""The menu as com.canonical.dbusmenu has it: numbered items, and what changed since last time.

An item keeps its number as long as its key and its menu's key stay the same; a number is never
used for another item.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from usbipsshd.bus.values import Variant

ROOT = 0
_REMEMBERED = 4096
"""Numbers that are kept for items that are not in the menu now."""

Properties = dict[str, Variant]
Layout = tuple[int, Properties, list[Variant]]


@dataclass(frozen=True, slots=True)
class Entry:
    """One item. What it does is no part of what is shown."""

    key: str
    label: str = ""
    enabled: bool = True
    checked: bool | None = None
    radio: bool = False
    separator: bool = False
    entries: tuple[Entry, ...] = ()
    click: Callable[[], object] | None = field(default=None, compare=False)

    def properties(self) -> Properties:
        """As dbusmenu names them; what has its default is left out."""
        if self.separator:
            return {"type": Variant("s", "separator")}
        # A single underscore marks the letter that follows as a keyboard shortcut.
        made = {"label": Variant("s", self.label.replace("_", "__"))}
        if not self.enabled:
            made["enabled"] = Variant("b", False)
        if self.checked is not None:
            made["toggle-type"] = Variant("s", "radio" if self.radio else "checkmark")
            made["toggle-state"] = Variant("i", int(self.checked))
        if self.entries:
            made["children-display"] = Variant("s", "submenu")
        return made


@dataclass(slots=True)
class _Item:
    parent: int
    entry: Entry
    properties: Properties
    children: tuple[int, ...] = ()


@dataclass(slots=True)
class Changes:
    """What is to be announced."""

    layout: list[int] = field(default_factory=list)
    """Items whose list of children is another one."""
    updated: list[tuple[int, Properties]] = field(default_factory=list)
    removed: list[tuple[int, list[str]]] = field(default_factory=list)
    """Properties that have their default again."""


class MenuTree:
    """The present menu."""

    def __init__(self) -> None:
        self.revision = 1
        self._numbers: dict[tuple[int, str], int] = {}
        self._last = ROOT
        self._items = {ROOT: _Item(ROOT, Entry(""), _root_properties())}

    def update(self, entries: Sequence[Entry]) -> Changes:
        """Show ``entries``, and tell what is different now.

        Raises :exc:`ValueError` for two items of one menu with the same key.
        """
        changes = Changes()
        root = self._items[ROOT]
        self._fill(ROOT, root, Entry("", entries=tuple(entries)), changes)
        if changes.layout:
            self.revision = self.revision % 0xFFFFFFFF + 1
            self._forget()
        return changes

    def _fill(self, number: int, item: _Item, entry: Entry, changes: Changes) -> None:
        """Bring what is below ``item`` to what ``entry`` has."""
        before, item.entry = item.entry, entry
        if before.entries is entry.entries:
            return
        keys = [each.key for each in entry.entries]
        if len(set(keys)) != len(keys):
            raise ValueError(f"two items of one menu have the same key: {sorted(keys)}")
        children = tuple(self._number(number, key) for key in keys)
        for gone in set(item.children).difference(children):
            self._drop(gone)
        if children != item.children:
            item.children = children
            changes.layout.append(number)
        for child, each in zip(children, entry.entries, strict=True):
            self._put(number, child, each, changes)

    def _put(self, parent: int, number: int, entry: Entry, changes: Changes) -> None:
        item = self._items.get(number)
        if item is None:
            item = self._items[number] = _Item(parent, Entry(""), entry.properties())
            # Who does not know the item asks for all of it.
            self._fill(number, item, entry, Changes())
            return
        if item.entry is not entry:
            old, item.properties = item.properties, entry.properties()
            new = {k: v for k, v in item.properties.items() if old.get(k) != v}
            if new:
                changes.updated.append((number, new))
            gone = [key for key in old if key not in item.properties]
            if gone:
                changes.removed.append((number, gone))
        self._fill(number, item, entry, changes)

    def _drop(self, number: int) -> None:
        for child in self._items.pop(number).children:
            self._drop(child)

    def _number(self, parent: int, key: str) -> int:
        # Moved to the end: the oldest are forgotten first.
        number = self._numbers.pop((parent, key), None)
        if number is None:
            self._last += 1
            number = self._last
        self._numbers[parent, key] = number
        return number

    def _forget(self) -> None:
        surplus = len(self._numbers) - len(self._items) - _REMEMBERED
        if surplus > 0:
            for key in [k for k, n in self._numbers.items() if n not in self._items][:surplus]:
                del self._numbers[key]

    # What a panel asks for

    def __contains__(self, number: object) -> bool:
        return number in self._items

    def __iter__(self) -> Iterator[int]:
        return iter(self._items)

    def properties(self, number: int, names: Sequence[str] = ()) -> Properties:
        """An item's properties, those of ``names`` or all; raise :exc:`KeyError` for no item."""
        found = self._items[number].properties
        return {k: v for k, v in found.items() if not names or k in names}

    def layout(self, number: int, depth: int, names: Sequence[str] = ()) -> Layout:
        """An item and ``depth`` levels below it, all of them if that is negative.

        Raises :exc:`KeyError` for no item.
        """
        item = self._items[number]
        children = [
            Variant("(ia{sv}av)", self.layout(child, depth - 1, names))
            for child in (item.children if depth else ())
        ]
        return number, self.properties(number, names), children

    def entry(self, number: int) -> Entry:
        """What an item shows and does; raise :exc:`KeyError` for no item."""
        return self._items[number].entry

    def path(self, number: int) -> tuple[str, ...]:
        """The keys on the way to an item; none for the menu itself or no item."""
        keys: list[str] = []
        while number != ROOT and number in self._items:
            item = self._items[number]
            keys.append(item.entry.key)
            number = item.parent
        return tuple(reversed(keys))


def _root_properties() -> Properties:
    return {"children-display": Variant("s", "submenu")}
