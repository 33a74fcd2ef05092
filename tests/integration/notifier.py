# SPDX-License-Identifier: GPL-3.0-or-later
"""A notification server that shows nothing; needs nothing but the daemon's package."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from integration import panel

from usbipsshd.bus.values import BusError, Reply
from usbipsshd.client.bus import BUS, BUS_PATH, Asked, Bus

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
        async with asyncio.timeout(panel.LIMIT):
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
