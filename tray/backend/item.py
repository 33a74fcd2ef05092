# SPDX-License-Identifier: GPL-3.0-or-later
"""One icon with its menu on the session bus: org.kde.StatusNotifierItem and com.canonical.dbusmenu.

https://www.freedesktop.org/wiki/Specifications/StatusNotifierItem/ and, for the menu,
dbus-menu.xml of libdbusmenu.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from typing import Any

from usbipssh_tray.backend import interfaces
from usbipssh_tray.backend.menutree import ROOT, Changes, Entry, MenuTree
from usbipsshd.bus.values import BusError, Disconnected, Reply, Variant
from usbipsshd.client.bus import BUS, BUS_PATH, Asked, Bus, Signal

log = logging.getLogger(__name__)

WATCHER = "org.kde.StatusNotifierWatcher"
WATCHER_PATH = "/StatusNotifierWatcher"
ITEM = "org.kde.StatusNotifierItem"
ITEM_PATH = "/StatusNotifierItem"
MENU = "com.canonical.dbusmenu"
MENU_PATH = "/StatusNotifierItem/menu"
PROPERTIES = "org.freedesktop.DBus.Properties"
_ERROR = "org.freedesktop.DBus.Error."

_numbers = count(1)

Pixmaps = Sequence[tuple[int, int, bytes]]


@dataclass(frozen=True, slots=True)
class Look:
    """What is to be seen without opening the menu."""

    id: str
    title: str = ""
    icon_name: str = ""
    """In the icon theme, or below ``theme_path``; empty if only ``pixmaps`` show it."""
    theme_path: str = ""
    pixmaps: Pixmaps = ()
    """Width, height and ARGB32 in network byte order."""
    visible: bool = True

    @property
    def status(self) -> str:
        """As the specification names it."""
        return "Active" if self.visible else "Passive"

    def properties(self) -> dict[str, Variant]:
        """All properties of the interface."""
        pixmaps = [list(each) for each in self.pixmaps]
        return {
            "Category": Variant("s", "Hardware"),
            "Id": Variant("s", self.id),
            "Title": Variant("s", self.title),
            "Status": Variant("s", self.status),
            "WindowId": Variant("i", 0),
            "IconName": Variant("s", self.icon_name),
            "IconThemePath": Variant("s", self.theme_path),
            "IconPixmap": Variant("a(iiay)", pixmaps),
            "OverlayIconName": Variant("s", ""),
            "OverlayIconPixmap": Variant("a(iiay)", []),
            "AttentionIconName": Variant("s", ""),
            "AttentionIconPixmap": Variant("a(iiay)", []),
            "AttentionMovieName": Variant("s", ""),
            "ToolTip": Variant("(sa(iiay)ss)", [self.icon_name, pixmaps, self.title, ""]),
            "ItemIsMenu": Variant("b", True),
            "Menu": Variant("o", MENU_PATH),
        }


_SIGNALS = {
    "Title": "NewTitle",
    "ToolTip": "NewToolTip",
    "IconThemePath": "NewIconThemePath",
    "IconName": "NewIcon",
    "IconPixmap": "NewIcon",
    "Status": "NewStatus",
}
_WITH_VALUE = frozenset({"NewStatus", "NewIconThemePath"})


class Item:
    """Shows itself wherever a panel asks for such items, again after each restart of the panel.

    ``opening`` is told when a menu is about to be shown: its keys on the way from the root.
    """

    def __init__(
        self, bus: Bus, look: Look, opening: Callable[[tuple[str, ...]], None] | None = None
    ) -> None:
        self._bus = bus
        self._look = look
        self._opening = opening
        self._menu = MenuTree()
        self._name = f"{ITEM}-{os.getpid()}-{next(_numbers)}"
        self._unlisten: Callable[[], None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.hosted = asyncio.Event()
        """Set while a panel has taken the item."""

    # Life

    async def start(self) -> None:
        """Be there, and register with the watcher, now and whenever there is a new one.

        Raises :exc:`BusError`, :exc:`Disconnected` or :exc:`TimeoutError` without a session bus.
        """
        self._bus.serve(self._serve)
        self._unlisten = self._bus.listen(self._signal)
        await self._bus.subscribe(
            sender=BUS, path=BUS_PATH, interface=BUS, member="NameOwnerChanged", arg0=WATCHER
        )
        # 4: do not queue (D-Bus specification, RequestName). Some panels take no unique name.
        await self._bus.call(BUS, BUS_PATH, BUS, "RequestName", "su", [self._name, 4])
        if await self._bus.owner(WATCHER):
            await self._register()

    async def stop(self) -> None:
        """Be gone."""
        if self._unlisten is not None:
            self._unlisten()
        for task in self._tasks:
            task.cancel()
        with suppress(BusError, Disconnected, TimeoutError):
            await self._bus.call(BUS, BUS_PATH, BUS, "ReleaseName", "s", [self._name])

    async def _register(self) -> None:
        try:
            await self._bus.call(
                WATCHER, WATCHER_PATH, WATCHER, "RegisterStatusNotifierItem", "s", [self._name]
            )
        except (BusError, TimeoutError) as error:
            log.warning("the panel does not take the icon: %s", error)
        except Disconnected:
            pass
        else:
            self.hosted.set()

    def _signal(self, signal: Signal) -> None:
        match signal.sender, signal.member, signal.body:
            case (sender, "NameOwnerChanged", (str(name), _old, str(new))):
                if (sender, name) != (BUS, WATCHER):
                    return
                self.hosted.clear()
                if new:
                    task = asyncio.get_running_loop().create_task(self._register())
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
            case _:
                pass

    # What is shown

    def show(self, look: Look) -> None:
        """Look like this from now on."""
        before, after = self._look.properties(), look.properties()
        self._look = look
        signals = [s for name, s in _SIGNALS.items() if before[name] != after[name]]
        for member in dict.fromkeys(signals):
            if member in _WITH_VALUE:
                value = after[{"NewStatus": "Status"}.get(member, "IconThemePath")].value
                self._bus.emit(ITEM_PATH, ITEM, member, "s", [value])
            else:
                self._bus.emit(ITEM_PATH, ITEM, member)

    def set_menu(self, entries: Sequence[Entry]) -> Changes:
        """Have this menu from now on; what is different is announced, and returned."""
        changes = self._menu.update(entries)
        if changes.updated or changes.removed:
            self._bus.emit(
                MENU_PATH, MENU, "ItemsPropertiesUpdated", "a(ia{sv})a(ias)",
                [[list(u) for u in changes.updated], [list(r) for r in changes.removed]],
            )  # fmt: skip
        if changes.layout:
            parent = changes.layout[0] if len(changes.layout) == 1 else ROOT
            self._bus.emit(MENU_PATH, MENU, "LayoutUpdated", "ui", [self._menu.revision, parent])
        return changes

    # What others ask for

    def _serve(self, asked: Asked) -> Reply:
        try:
            return self._answer(asked)
        except BusError:
            raise
        except (KeyError, IndexError):
            raise BusError(_ERROR + "InvalidArgs", "There is no such item.") from None
        except (TypeError, ValueError, AttributeError):
            raise BusError(_ERROR + "InvalidArgs", "The arguments make no sense.") from None

    def _answer(self, asked: Asked) -> Reply:
        if asked.member == "Introspect":
            return Reply("s", [interfaces.introspect(asked.path)])
        if asked.member == "Ping":
            return Reply()
        if asked.path == ITEM_PATH:
            return self._answer_item(asked)
        if asked.path == MENU_PATH:
            return self._answer_menu(asked)
        raise BusError(_ERROR + "UnknownObject", "There is no such object.")

    def _answer_item(self, asked: Asked) -> Reply:
        if asked.interface in (PROPERTIES, "") and asked.member in ("Get", "GetAll", "Set"):
            return _property(asked, ITEM, self._look.properties())
        if asked.interface in (ITEM, "") and asked.member in interfaces.ITEM_METHODS:
            # The menu is all there is, and panels open it by themselves.
            return Reply()
        raise BusError(_ERROR + "UnknownMethod", "There is no such method.")

    def _answer_menu(self, asked: Asked) -> Reply:  # noqa: PLR0911
        menu, body = self._menu, asked.body
        if asked.interface in (PROPERTIES, "") and asked.member in ("Get", "GetAll", "Set"):
            return _property(asked, MENU, interfaces.MENU_PROPERTIES)
        if asked.interface not in (MENU, ""):
            raise BusError(_ERROR + "UnknownInterface", "There is no such interface.")
        match asked.member, body:
            case "GetLayout", (int(parent), int(depth), list(names)):
                layout = menu.layout(parent, depth, names)
                return Reply("u(ia{sv}av)", [menu.revision, layout])
            case "GetGroupProperties", (list(numbers), list(names)):
                wanted = numbers or list(menu)
                found = [[n, menu.properties(n, names)] for n in wanted if n in menu]
                return Reply("a(ia{sv})", [found])
            case "GetProperty", (int(number), str(name)):
                return Reply("v", [menu.properties(number)[name]])
            case "Event", (int(number), str(kind), _data, _time):
                self._event(number, kind)
                return Reply()
            case "EventGroup", (list(events),):
                return Reply("ai", [self._events(events)])
            case "AboutToShow", (int(number),):
                return Reply("b", [self._about_to_show(number)])
            case "AboutToShowGroup", (list(numbers),):
                unknown = [n for n in numbers if n not in menu]
                changed = [n for n in numbers if n in menu and self._about_to_show(n)]
                return Reply("aiai", [changed, unknown])
            case _:
                if asked.member in interfaces.MENU_METHODS:
                    raise BusError(_ERROR + "InvalidArgs", "The arguments make no sense.")
                raise BusError(_ERROR + "UnknownMethod", "There is no such method.")

    def _events(self, events: Sequence[Any]) -> list[int]:
        unknown = []
        for number, kind, _data, _time in events:
            if number in self._menu:
                self._event(number, kind)
            else:
                unknown.append(number)
        if events and len(unknown) == len(events):
            raise BusError(_ERROR + "InvalidArgs", "There is none of these items.")
        return unknown

    def _event(self, number: int, kind: str) -> None:
        entry = self._menu.entry(number)
        if kind == "clicked" and entry.enabled and entry.click is not None:
            # Not before the panel has its answer.
            asyncio.get_running_loop().call_soon(entry.click)

    def _about_to_show(self, number: int) -> bool:
        self._menu.entry(number)
        revision = self._menu.revision
        if self._opening is not None:
            self._opening(self._menu.path(number))
        return self._menu.revision != revision


def _property(asked: Asked, interface: str, values: Mapping[str, Variant]) -> Reply:
    if not asked.body or asked.body[0] != interface:
        raise BusError(_ERROR + "UnknownInterface", "There is no such interface.")
    if asked.member == "GetAll":
        return Reply("a{sv}", [dict(values)])
    if asked.member == "Set":
        raise BusError(_ERROR + "PropertyReadOnly", "All properties are read-only.")
    name = str(asked.body[1])
    if name not in values:
        raise BusError(_ERROR + "UnknownProperty", "There is no such property.")
    return Reply("v", [values[name]])
