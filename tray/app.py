# SPDX-License-Identifier: GPL-3.0-or-later
"""The tray without its icon: follows the daemon, keeps the menu as it should be, acts on clicks.

Nothing here polls. What is shown comes from the daemon's signals, and from questions that such a
signal, a click or the opening of a menu gave rise to.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from usbipssh_tray.actions import Action, Quit, StartDaemon
from usbipssh_tray.doing import Ask, Doing
from usbipssh_tray.entries import Ui
from usbipssh_tray.looking import Listings
from usbipssh_tray.model import menu, status, title
from usbipssh_tray.notices import Notices
from usbipssh_tray.rows import Row, reuse
from usbipssh_tray.status import Status
from usbipsshd.client.bus import Bus
from usbipsshd.client.daemon import Client
from usbipsshd.client.errors import ClientError
from usbipsshd.client.mounted import Mounted
from usbipsshd.client.snapshot import Snapshot
from usbipsshd.client.sshagent import SshAgent

log = logging.getLogger(__name__)

_BUS_RETRY = (1.0, 5.0, 30.0)
"""Seconds between attempts to reach a system bus that is not there; the last one repeats."""
FRESH_SECONDS = 5.0
"""A remote that was looked at within this time is not looked at again when the menu opens."""


class Show(Protocol):
    """Shows the menu's rows, the icon and its title."""

    def __call__(  # noqa: D102
        self, rows: tuple[Row, ...], status: Status, title: str
    ) -> None: ...


class App:
    """Made and used inside one event loop.

    ``session`` is the connected session bus, ``address`` the system bus (empty for the usual one),
    ``ssh_agent`` the person's, for remotes that do not know the daemon's key.
    """

    def __init__(
        self,
        show: Show,
        session: Bus,
        ask: Ask,
        *,
        uid: int,
        address: str = "",
        ssh_agent: SshAgent = SshAgent(),  # noqa: B008
        clock: Callable[[], float] = time.monotonic,
        mounted: Mounted = Mounted(),  # noqa: B008
    ) -> None:
        self._show = show
        self._uid = uid
        self._address = address
        self._ssh_agent = ssh_agent
        self._ask = ask
        self._clock = clock
        self._mounted = mounted
        self._notices = Notices(session, self.act, uid)
        self._over = asyncio.Event()
        self._client: Client | None = None
        self._doing: Doing | None = None
        self._listings: Listings | None = None
        self._statistics: dict[str, tuple[int, int]] = {}
        self._asking: set[asyncio.Task[None]] = set()
        self._looked: dict[str, float] = {}
        self._before = Snapshot()
        self._soon: asyncio.Handle | None = None
        self._shown: tuple[tuple[Row, ...], Status, str] | None = None

    # Life

    async def run(self) -> None:
        """Run until :meth:`quit`, or somebody clicks on that."""
        await self._notices.start()
        try:
            following = asyncio.create_task(self._follow(), name="follow")
            over = asyncio.create_task(self._over.wait(), name="over")
            await asyncio.wait({following, over}, return_when=asyncio.FIRST_COMPLETED)
            for task in (following, over):
                task.cancel()
            await asyncio.wait({following, over})
            if not following.cancelled():
                following.result()
        finally:
            if self._soon is not None:
                self._soon.cancel()
            await self._notices.stop()

    def quit(self) -> None:
        """End :meth:`run`; what is attached stays."""
        self._over.set()

    async def _follow(self) -> None:
        tries = 0
        while True:
            client = Client(self._address, self._ssh_agent)
            try:
                await client.connect()
            except ClientError as error:
                log.warning("%s", error)
                self._update()
                await asyncio.sleep(_BUS_RETRY[min(tries, len(_BUS_RETRY) - 1)])
                tries += 1
                continue
            tries = 0
            await self._serve(client)

    async def _serve(self, client: Client) -> None:
        """Work with one connection to the system bus until it ends."""
        listings = self._listings = Listings(client.list_remote, self._update)
        doing = Doing(
            client,
            self._notices,
            self._ask,
            look=self._look,
            changed=self._update,
            mounted=self._mounted,
        )
        self._client, self._doing = client, doing
        client.listen(self._changed)
        client.listen_to_plugs(lambda remote: self._look(remote, False))
        self._changed()
        try:
            # Who opens the menu wants to see what there is.
            doing.act(StartDaemon())
            await client.disconnected()
        finally:
            self._client = self._doing = self._listings = None
            for task in self._asking:
                task.cancel()
            await listings.stop()
            await doing.stop()
            with suppress(ClientError):
                await client.close()
            self._before = Snapshot()
            self._notices.update(Snapshot())
            if not self._over.is_set():
                self._update()

    # What happens

    def act(self, action: Action) -> None:
        """Do what was clicked."""
        if isinstance(action, Quit):
            self.quit()
        elif self._doing is not None:
            self._doing.act(action)

    def opening(self, path: tuple[str, ...]) -> None:
        """A menu is about to be shown: its rows' keys on the way from the whole menu."""
        if self._client is None:
            return
        if not path:
            self._look_at_quiet_ones()
        for key in path:
            if key.startswith("more "):
                self._ask_statistics(key.removeprefix("more "))

    def _changed(self) -> None:
        client, listings = self._client, self._listings
        if client is None or listings is None:
            return
        before, now = self._before, client.snapshot
        self._before = now
        self._notices.update(now)
        listings.keep(remote.name for remote in now.remotes)
        there = {one.path for one in now.attachments}
        gone = {one.remote for one in before.attachments if one.path not in there}
        states = {remote.name: remote.state for remote in before.remotes}
        for remote in now.remotes:
            back = remote.state == "connected" and states.get(remote.name) == "unreachable"
            if back or remote.name in gone:
                listings.look(remote.name)
        self._statistics = {p: s for p, s in self._statistics.items() if p in there}
        self._update()

    def _look(self, remote: str, interactive: bool) -> None:
        if self._listings is not None and remote in self._listings.known:
            self._looked[remote] = self._clock()
            self._listings.look(remote, interactive=interactive)

    def _look_at_quiet_ones(self) -> None:
        """What is not connected tells of nothing, so who opens the menu would see old news."""
        assert self._client is not None
        now = self._clock()
        for remote in self._client.snapshot.remotes:
            fresh = now - self._looked.get(remote.name, float("-inf")) < FRESH_SECONDS
            if remote.state != "connected" and not fresh:
                self._look(remote.name, False)

    def _ask_statistics(self, remote: str) -> None:
        assert self._client is not None
        for one in self._client.snapshot.attachments:
            if one.remote == remote and one.state == "attached":
                task = asyncio.get_running_loop().create_task(self._statistics_of(one.path))
                self._asking.add(task)
                task.add_done_callback(self._asking.discard)

    async def _statistics_of(self, path: str) -> None:
        if self._client is None:
            return
        with suppress(ClientError):
            found = await self._client.statistics(path)
            self._statistics[path] = (found.get("received", 0), found.get("sent", 0))
            self._update()

    # What is shown

    def _update(self) -> None:
        """Show soon how things are, once for all that changes together."""
        if self._soon is None:
            self._soon = asyncio.get_running_loop().call_soon(self._shows)

    def _shows(self) -> None:
        self._soon = None
        snapshot = self._client.snapshot if self._client is not None else Snapshot()
        ui = self._ui()
        rows = reuse(menu(snapshot, ui), self._shown[0] if self._shown else ())
        wanted = (rows, status(snapshot, ui), title(snapshot, ui))
        if wanted != self._shown:
            self._shown = wanted
            self._show(*wanted)

    def _ui(self) -> Ui:
        doing, listings = self._doing, self._listings
        if doing is None or listings is None:
            return Ui(self._uid, no_bus=True)
        return Ui(
            self._uid,
            listings.known,
            doing.busy,
            dict(self._statistics),
            doing.started,
            doing.no_agent,
        )
