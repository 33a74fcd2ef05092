# SPDX-License-Identifier: GPL-3.0-or-later
"""The program usbipssh-tray."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from usbipssh_tray import host
from usbipssh_tray.actions import Action
from usbipssh_tray.app import App
from usbipssh_tray.dialogs import ask
from usbipssh_tray.frontend import Frontend
from usbipssh_tray.notices import Notices
from usbipssh_tray.text import _
from usbipsshd import __version__
from usbipsshd.bus.values import BusError, Disconnected
from usbipsshd.client.bus import BUS, BUS_PATH, Bus
from usbipsshd.client.sshagent import SshAgent, Use

log = logging.getLogger(__name__)

NAME = "org.usbipssh1.Tray"
"""Owned on the session bus by the one tray of the session."""


class Program:
    """The icon in the main thread, as toolkits want it, and the application in another one."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._frontend = Frontend(self._act, self._opening)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._app: App | None = None
        self._backend: Future[Callable[..., Any] | None] = Future()
        self._shown = threading.Event()
        self._problem = ""

    def run(self) -> int:
        """Run until the end; an exit status."""
        thread = threading.Thread(target=self._work, name="application")
        thread.start()
        try:
            icon = self._backend.result()
            if icon is not None:
                for number in (signal.SIGTERM, signal.SIGINT):
                    signal.signal(number, lambda *_: self._frontend.stop())
                self._frontend.make(icon, self._address)
                self._shown.set()
                self._frontend.run()
        finally:
            self._shown.set()
            self._quit()
            thread.join()
        if self._problem:
            print(f"usbipssh-tray: {self._problem}", file=sys.stderr)
        return 1 if self._problem else 0

    # The icon's thread

    def _act(self, action: Action) -> None:
        if self._loop is not None and self._app is not None:
            self._loop.call_soon_threadsafe(self._app.act, action)

    def _opening(self, path: tuple[str, ...]) -> None:
        if self._loop is not None and self._app is not None:
            self._loop.call_soon_threadsafe(self._app.opening, path)

    def _quit(self) -> None:
        if self._loop is not None and self._app is not None:
            try:
                self._loop.call_soon_threadsafe(self._app.quit)
            except RuntimeError:
                log.debug("it has ended already")

    # The application's thread

    def _work(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:
            if not self._backend.done():
                self._backend.set_exception(error)
            raise
        finally:
            if not self._backend.done():
                self._backend.set_result(None)

    async def _main(self) -> None:
        bus = Bus(self._address)
        try:
            await bus.connect()
            # 4: do not queue (D-Bus specification, RequestName).
            if await bus.call(BUS, BUS_PATH, BUS, "RequestName", "su", [NAME, 4]) != (1,):
                log.info("there is one already")
                return
            icon = await self._choose(bus)
            if icon is None:
                return
            self._app = App(
                self._frontend.show,
                bus,
                ask,
                uid=os.getuid(),
                address=os.environ.get("DBUS_SYSTEM_BUS_ADDRESS", ""),
                ssh_agent=SshAgent.of(os.environ, Use.WHEN_REFUSED),
            )
            self._loop = asyncio.get_running_loop()
            self._backend.set_result(icon)
            await asyncio.to_thread(self._shown.wait)
            gone = asyncio.ensure_future(asyncio.shield(bus.gone))
            running = asyncio.create_task(self._app.run(), name="application")
            await asyncio.wait({gone, running}, return_when=asyncio.FIRST_COMPLETED)
            self._app.quit()
            await running
        except (Disconnected, BusError, TimeoutError) as error:
            self._problem = _("there is no session bus: {error}").format(error=error)
        finally:
            if self._shown.is_set():
                self._frontend.stop()
            await bus.close()

    async def _choose(self, bus: Bus) -> Callable[..., Any] | None:
        """The backend; None if there is none, which has been told then."""
        if await host.has_panel(bus):
            return host.statusnotifier()
        found = await asyncio.to_thread(host.other)
        if found is not None:
            return found
        self._problem = _("nothing here shows tray icons")
        notices = Notices(bus, lambda _: None)
        await notices.show(
            _("The USB tray icon cannot be shown"),
            _(
                "Nothing here shows tray icons. On GNOME, install the extension "
                "“AppIndicator and KStatusNotifierItem Support” (Debian: "
                "gnome-shell-extension-appindicator), and log in again."
            ),
        )
        return None


def main() -> int:
    """Run the tray; an exit status."""
    parser = argparse.ArgumentParser(
        prog="usbipssh-tray", description=_("USB devices of other machines, in the panel")
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("--debug", action="store_true", help=_("log more"))
    given = parser.parse_args()
    logging.basicConfig(
        level=logging.DEBUG if given.debug else logging.WARNING, format="%(name)s: %(message)s"
    )
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    address = os.environ.get("DBUS_SESSION_BUS_ADDRESS") or f"unix:path={runtime}/bus"
    return Program(address).run()


if __name__ == "__main__":
    sys.exit(main())
