# SPDX-License-Identifier: GPL-3.0-or-later
"""The pystray backend: :class:`Icon` has pystray's interface and shows a StatusNotifierItem.

Beyond pystray's own arguments it takes these:

``statusnotifier_address``
    The session bus; DBUS_SESSION_BUS_ADDRESS if not given.
``statusnotifier_look``
    A function of the icon's title that returns a :class:`Look`; by default the image is shown.
``statusnotifier_opening``
    Called with the keys of a menu that is about to be shown, none for the whole menu.

Menu items keep their number in the panel as long as their attribute ``key``, or without one their
text, stays the same.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from usbipssh_tray.backend import library
from usbipssh_tray.backend.item import Item, Look
from usbipssh_tray.backend.menutree import Entry
from usbipsshd.client.bus import Bus

if TYPE_CHECKING:
    from PIL.Image import Image

_LibraryIcon = library.pystray().Icon
_SEPARATOR = library.pystray().Menu.SEPARATOR


class Icon(_LibraryIcon):  # type: ignore[misc, valid-type]
    """See :class:`pystray.Icon`. :meth:`run` may be called in any thread, and ends with the bus."""

    HAS_DEFAULT_ACTION = False
    HAS_NOTIFICATION = False

    _options: dict[str, Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._item: Item | None = None
        self._over: asyncio.Event | None = None
        self._lock = threading.Lock()
        self._fresh = False
        """Whether an update is under way that will show what is set now."""

    def _look(self) -> Look:
        made: Callable[[str], Look] | None = self._options.get("look")
        if made is not None:
            return made(self.title)
        return Look(self.name, self.title, pixmaps=[pixmap(self.icon)] if self.icon else [])

    # What pystray calls, in any thread

    def _show(self) -> None:
        self._soon()

    def _hide(self) -> None:
        self._soon()

    def _update_icon(self) -> None:
        self._icon_valid = True
        self._soon()

    def _update_title(self) -> None:
        self._soon()

    def _update_menu(self) -> None:
        self._soon()

    def _soon(self) -> None:
        """Show soon what is set now; once for all that is set meanwhile."""
        with self._lock:
            if self._loop is None or self._fresh:
                return
            self._fresh = True
            self._loop.call_soon_threadsafe(self._refresh)

    def _refresh(self) -> None:
        with self._lock:
            self._fresh = False
        if self._item is not None and self.visible:
            self._item.show(self._look())
            self._item.set_menu(entries(self.menu, self))

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        finally:
            if not self._running:
                # pystray's other thread waits for this, and the program could not end.
                self._mark_ready()

    def _run_detached(self) -> None:
        threading.Thread(target=self._run, name="icon").start()

    def _stop(self) -> None:
        with self._lock:
            if self._loop is not None and self._over is not None:
                self._loop.call_soon_threadsafe(self._over.set)

    async def _serve(self) -> None:
        address = self._options.get("address") or os.environ.get("DBUS_SESSION_BUS_ADDRESS", "")
        bus = Bus(address)
        await bus.connect()
        item = Item(bus, self._look(), self._options.get("opening"))
        over = asyncio.Event()
        bus.gone.add_done_callback(lambda _: over.set())
        with self._lock:
            self._item, self._over, self._loop = item, over, asyncio.get_running_loop()
        try:
            # pystray sets `visible` in a thread of its own once it is told that we are ready.
            item.set_menu(entries(self.menu, self))
            self._mark_ready()
            await item.start()
            await over.wait()
        finally:
            with self._lock:
                self._item = self._loop = self._over = None
            await item.stop()
            await bus.close()


def pixmap(image: Image) -> tuple[int, int, bytes]:
    """Width, height and ARGB32 in network byte order."""
    red, green, blue, alpha = image.convert("RGBA").split()
    bands = [band.tobytes() for band in (alpha, red, green, blue)]
    pixels = bytes(v for pixel in zip(*bands, strict=True) for v in pixel)
    return image.width, image.height, pixels


def entries(menu: Any, icon: Any) -> tuple[Entry, ...]:
    """A pystray menu as it is now. One that has a true attribute ``fixed`` is read once."""
    if getattr(menu, "read", None) is not None:
        read: tuple[Entry, ...] = menu.read
        return read
    made = _entries(menu, icon)
    if getattr(menu, "fixed", False):
        menu.read = made
    return made


def _entries(menu: Any, icon: Any) -> tuple[Entry, ...]:
    made: list[Entry] = []
    used: Counter[str] = Counter()
    for item in () if menu is None else menu:
        separator = item is _SEPARATOR
        key = getattr(item, "key", "") or ("" if separator else item.text)
        used[key] += 1
        if used[key] > 1:
            key = f"{key}\n{used[key]}"
        if separator:
            made.append(Entry(f"\n{key}", separator=True))
            continue
        below = entries(item.submenu, icon) if item.submenu is not None else ()
        made.append(
            Entry(
                key,
                item.text,
                bool(item.enabled),
                item.checked,
                bool(item.radio),
                entries=below,
                click=None if item.submenu is not None else _click(item, icon),
            )
        )
    return tuple(made)


def _click(item: Any, icon: Any) -> Callable[[], None]:
    def clicked() -> None:
        try:
            item(icon)
        finally:
            icon.update_menu()

    return clicked
