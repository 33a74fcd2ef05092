# SPDX-License-Identifier: GPL-3.0-or-later
"""Which of pystray's backends has somewhere to show an icon here."""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Callable
from typing import Any

from usbipssh_tray.backend import library
from usbipssh_tray.backend.item import PROPERTIES, WATCHER, WATCHER_PATH
from usbipsshd.bus.values import BusError, Variant
from usbipsshd.client.bus import BUS, BUS_PATH, Bus, Signal

log = logging.getLogger(__name__)

PANEL_SECONDS = 15.0
"""For a panel that starts at the same time as we do."""


async def has_panel(bus: Bus, seconds: float = PANEL_SECONDS) -> bool:
    """Whether something shows StatusNotifierItems, now or within ``seconds``.

    Raises :exc:`Disconnected` without a session bus.
    """
    news = asyncio.Event()

    def heard(signal: Signal) -> None:
        if signal.member in ("NameOwnerChanged", "StatusNotifierHostRegistered"):
            news.set()

    unlisten = bus.listen(heard)
    try:
        await bus.subscribe(
            sender=BUS, path=BUS_PATH, interface=BUS, member="NameOwnerChanged", arg0=WATCHER
        )
        await bus.subscribe(sender=WATCHER, member="StatusNotifierHostRegistered")
        async with asyncio.timeout(seconds):
            while not await _hosted(bus):
                await news.wait()
                news.clear()
    except TimeoutError:
        return False
    else:
        return True
    finally:
        unlisten()


async def _hosted(bus: Bus) -> bool:
    if not await bus.owner(WATCHER):
        return False
    try:
        (value,) = await bus.call(
            WATCHER, WATCHER_PATH, PROPERTIES, "Get", "ss",
            [WATCHER, "IsStatusNotifierHostRegistered"],
        )  # fmt: skip
    except (BusError, TimeoutError) as error:
        log.info("the panel does not say whether it shows icons: %s", error)
        return True
    return not isinstance(value, Variant) or value.value is not False


def statusnotifier() -> Callable[..., Any]:
    """Our own backend's icon."""
    module = importlib.import_module("usbipssh_tray.backend._statusnotifier")
    icon: Callable[..., Any] = module.Icon
    return icon


def other(x_tray: Callable[[], bool] | None = None) -> Callable[..., Any] | None:
    """The icon of a backend of pystray's own that has a menu and a place here, if there is one.

    Both use the older system tray of X11.
    """
    if not (x_tray or has_x_tray)():
        return None
    for name in ("appindicator", "gtk"):
        try:
            icon: Any = library.backend(name).Icon
        except Exception as error:
            # Whatever a missing typelib or display makes of an import.
            log.info("no %s backend: %s", name, error)
            continue
        if icon.HAS_MENU:
            found: Callable[..., Any] = icon
            return found
    return None


def has_x_tray() -> bool:
    """Whether some program is X11's system tray (System Tray Protocol Specification)."""
    try:
        display = importlib.import_module("Xlib.display").Display()
    except Exception as error:
        # Its own errors, and those of connecting.
        log.info("no X11 display: %s", error)
        return False
    try:
        atom = display.intern_atom(f"_NET_SYSTEM_TRAY_S{display.get_default_screen()}")
        return bool(display.get_selection_owner(atom))
    finally:
        display.close()
