# SPDX-License-Identifier: GPL-3.0-or-later
"""The tray as a program of one user's session, and the panel that shows it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from integration.panel import Panel, panel
from integration.sessionbus import SessionBus
from integration.world import World

from usbipsshd.bus.values import BusError, Reply
from usbipsshd.client.bus import BUS, BUS_PATH, Asked, Bus

LIMIT = 30.0
NOTIFICATIONS = "org.freedesktop.Notifications"


@dataclass
class NotificationServer:
    """Shows nothing, and remembers."""

    bus: Bus
    told: list[tuple[str, str]] = field(default_factory=list)
    """Summary and body."""
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def serve(self, asked: Asked) -> Reply:
        """Answer like a server that can show everything."""
        if asked.member == "GetCapabilities":
            return Reply("as", [["body", "body-markup", "actions"]])
        if asked.member == "Notify":
            self.told.append((str(asked.body[3]), str(asked.body[4])))
            self.news.set()
            return Reply("u", [len(self.told)])
        raise BusError("org.freedesktop.DBus.Error.UnknownMethod", asked.member)

    async def next(self, words: str) -> tuple[str, str]:
        """The first notification with these words in its summary, once it is there."""
        async with asyncio.timeout(LIMIT):
            while not (found := [t for t in self.told if words in t[0]]):
                self.news.clear()
                await self.news.wait()
        return found[0]


@asynccontextmanager
async def notifications(address: str) -> AsyncIterator[NotificationServer]:
    """A notification server on the bus at ``address``."""
    bus = Bus(address)
    await bus.connect()
    try:
        server = NotificationServer(bus)
        bus.serve(server.serve)
        await bus.call(BUS, BUS_PATH, BUS, "RequestName", "su", [NOTIFICATIONS, 4])
        yield server
    finally:
        await bus.close()


def spawn(session: SessionBus, w: World, uid: int, **options: Any) -> subprocess.Popen[bytes]:
    """Start the tray as ``uid``, without a display."""
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(w.tree),
        "DBUS_SESSION_BUS_ADDRESS": session.address,
        "DBUS_SYSTEM_BUS_ADDRESS": w.bus.address,
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        **options.pop("environment", {}),
    }
    line = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", sys.executable]
    return subprocess.Popen(
        [*line, "-m", "usbipssh_tray"],
        env=environment,
        cwd="/",
        stdin=subprocess.DEVNULL,
        **options,
    )


@asynccontextmanager
async def tray(
    session: SessionBus, w: World, uid: int
) -> AsyncIterator[tuple[Panel, NotificationServer]]:
    """``uid``'s tray in a session with a panel and a notification server."""
    async with panel(session.address) as shown, notifications(session.address) as server:
        process = spawn(session, w, uid)
        try:
            yield shown, server
            process.terminate()
            assert await asyncio.to_thread(process.wait, LIMIT) == 0
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
