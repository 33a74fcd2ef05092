# SPDX-License-Identifier: GPL-3.0-or-later
"""A panel without pixels: a StatusNotifierWatcher, and a client of the items' menus.

Runs in the test's own loop, beside programs that have their own processes or threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from usbipsshd.bus.values import BusError, Reply, Variant
from usbipsshd.client.bus import BUS, BUS_PATH, Asked, Bus, Signal

WATCHER = "org.kde.StatusNotifierWatcher"
WATCHER_PATH = "/StatusNotifierWatcher"
ITEM = "org.kde.StatusNotifierItem"
ITEM_PATH = "/StatusNotifierItem"
MENU = "com.canonical.dbusmenu"
PROPERTIES = "org.freedesktop.DBus.Properties"
LIMIT = 60.0


@dataclass
class Shown:
    """One item of a menu."""

    id: int
    properties: dict[str, Any]
    children: list[Shown] = field(default_factory=list)

    @property
    def label(self) -> str:
        """What a person reads."""
        return str(self.properties.get("label", "")).replace("__", "_")

    @property
    def enabled(self) -> bool:
        """Whether it can be clicked."""
        return bool(self.properties.get("enabled", True))

    @property
    def checked(self) -> bool:
        """Whether it has a check mark."""
        return self.properties.get("toggle-state") == 1

    def walk(self) -> Iterator[Shown]:
        """It and all below it."""
        yield self
        for child in self.children:
            yield from child.walk()

    def labels(self) -> list[str]:
        """What is read in this menu."""
        return [c.label for c in self.children if c.properties.get("type") != "separator"]

    def find(self, start: str) -> Shown:
        """The first item below whose label begins so."""
        for each in self.walk():
            if each.label.startswith(start):
                return each
        raise LookupError(f"no {start!r} among {[e.label for e in self.walk()]}")


def plain(value: Any) -> Any:
    """A value without the types of variants."""
    if isinstance(value, Variant):
        return plain(value.value)
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value


class Panel:
    """Takes items, and shows what they have when asked."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus
        self.items: list[str] = []
        self.signals: list[Signal] = []
        self._news = asyncio.Event()

    async def start(self, *, watch: bool = True) -> None:
        """Be the session's panel; without ``watch`` only look on."""
        self.bus.serve(self._serve)
        self.bus.listen(self._signal)
        for interface in (ITEM, MENU):
            await self.bus.subscribe(interface=interface)
        if watch:
            await self.bus.call(BUS, BUS_PATH, BUS, "RequestName", "su", [WATCHER, 4])

    async def named(self, name: str) -> None:
        """Wait until somebody owns ``name``."""
        news = asyncio.Event()
        unlisten = self.bus.listen(lambda _signal: news.set())
        try:
            await self.bus.subscribe(sender=BUS, member="NameOwnerChanged", arg0=name)
            async with asyncio.timeout(LIMIT):
                while not await self.bus.owner(name):
                    await news.wait()
                    news.clear()
        finally:
            unlisten()

    async def leave(self) -> None:
        """Be no panel any more, as one that was killed."""
        self.items.clear()
        await self.bus.call(BUS, BUS_PATH, BUS, "ReleaseName", "s", [WATCHER])

    def _serve(self, asked: Asked) -> Reply:
        if asked.member == "RegisterStatusNotifierItem":
            self.items.append(str(asked.body[0]))
            self._news.set()
            return Reply()
        if asked.member == "Get" and asked.body[1:] == ("IsStatusNotifierHostRegistered",):
            return Reply("v", [Variant("b", True)])
        raise BusError("org.freedesktop.DBus.Error.UnknownMethod", asked.member)

    def _signal(self, signal: Signal) -> None:
        if signal.interface in (ITEM, MENU):
            self.signals.append(signal)
            self._news.set()

    async def until(self, condition: Callable[[], object], what: str = "it") -> None:
        """Wait for something that comes with a signal or an item."""
        try:
            async with asyncio.timeout(LIMIT):
                while not condition():
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            raise AssertionError(f"{what} did not come; {self.items} {self.signals}") from None

    async def item(self) -> str:
        """The item, once there is one."""
        await self.until(lambda: self.items, "an item")
        return self.items[-1]

    async def look(self) -> dict[str, Any]:
        """The item's properties."""
        item = await self.item()
        (values,) = await self.bus.call(item, ITEM_PATH, PROPERTIES, "GetAll", "s", [ITEM])
        found: dict[str, Any] = plain(values)
        return found

    async def titled(self, words: str) -> str:
        """The item's title, once it has these words: it need not come with the menu."""
        async with asyncio.timeout(LIMIT):
            while True:
                self._news.clear()
                title = str((await self.look())["Title"])
                if words in title:
                    return title
                await self._news.wait()

    async def call(self, member: str, signature: str = "", *body: object) -> Any:
        """Call the item's menu."""
        path = (await self.look())["Menu"]
        item = await self.item()
        return plain(await self.bus.call(item, path, MENU, member, signature, body))

    async def menu(self, number: int = 0, depth: int = -1) -> Shown:
        """The menu as it is now."""
        _revision, layout = await self.call("GetLayout", "iias", number, depth, [])
        return _shown(layout)

    async def menu_with(self, condition: Callable[[Shown], object], what: str = "it") -> Shown:
        """The menu, once it is as ``condition`` wants it; looked at after each signal."""
        try:
            async with asyncio.timeout(LIMIT):
                while True:
                    self._news.clear()
                    shown = await self.menu()
                    try:
                        if condition(shown):
                            return shown
                    except LookupError:
                        pass
                    await self._news.wait()
        except TimeoutError:
            text = [each.label for each in (await self.menu()).walk()]
            raise AssertionError(f"{what} did not come; there is {text}") from None

    async def click(self, item: Shown) -> None:
        """Click one item."""
        await self.call("Event", "isvu", item.id, "clicked", Variant("s", ""), 0)

    async def press(self, label: str) -> None:
        """Click the item of that label, once there is one that does not go before the click."""
        async with asyncio.timeout(LIMIT):
            while True:
                menu = await self.menu_with(lambda m: m.find(label), label)
                try:
                    await self.click(menu.find(label))
                except BusError:
                    continue
                return


def _shown(layout: Any) -> Shown:
    number, properties, children = layout
    return Shown(number, properties, [_shown(child) for child in children])


@asynccontextmanager
async def panel(address: str, *, watch: bool = True) -> AsyncIterator[Panel]:
    """A panel on the bus at ``address``."""
    bus = Bus(address)
    await bus.connect()
    try:
        made = Panel(bus)
        await made.start(watch=watch)
        yield made
    finally:
        await bus.close()
