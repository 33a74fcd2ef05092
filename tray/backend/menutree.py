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
        """Show ``entries``, and tell what is different now."""
        before, changes = self._items, Changes()
        root = _Item(ROOT, Entry("", entries=tuple(entries)), _root_properties())
        self._items = {ROOT: root}
        self._fill(ROOT, root)
        for number, item in self._items.items():
            old = before.get(number)
            if old is None:
                continue
            if old.children != item.children:
                changes.layout.append(number)
            new = {k: v for k, v in item.properties.items() if old.properties.get(k) != v}
            if new:
                changes.updated.append((number, new))
            gone = [key for key in old.properties if key not in item.properties]
            if gone:
                changes.removed.append((number, gone))
        if changes.layout:
            self.revision = self.revision % 0xFFFFFFFF + 1
        self._forget()
        return changes

    def _fill(self, parent: int, item: _Item) -> None:
        children = []
        for entry in item.entry.entries:
            number = self._number(parent, entry.key)
            if number in self._items:
                raise ValueError(f"two items with the key {entry.key!r} in one menu")
            made = self._items[number] = _Item(parent, entry, entry.properties())
            children.append(number)
            self._fill(number, made)
        item.children = tuple(children)

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
