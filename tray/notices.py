# SPDX-License-Identifier: GPL-3.0-or-later
"""Notifications through org.freedesktop.Notifications (Desktop Notifications Specification 1.2).

What to tell is decided in :mod:`usbipssh_tray.news`; here it is sent. A server that is absent,
restarted or slow costs the notification and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence
from html import escape

from usbipssh_tray.actions import Detach, Retry
from usbipssh_tray.news import Kind, Memory, Notice, tell
from usbipssh_tray.text import _
from usbipsshd.bus.values import BusError, Disconnected, Variant
from usbipsshd.client.bus import BUS, BUS_PATH, Bus, Signal
from usbipsshd.client.errors import ClientError
from usbipsshd.client.snapshot import Snapshot

log = logging.getLogger(__name__)

NAME = "org.freedesktop.Notifications"
PATH = "/org/freedesktop/Notifications"
SETTLE_SECONDS = 0.5
"""How long a change is left to settle: a device that is back within that time was never away."""
SERVER_SECONDS = 10.0
QUEUED = 50
"""Notices that wait for a slow server; what comes beyond is left out."""
REMEMBERED = 100
"""Notifications whose buttons are still listened to."""

_ICONS = {
    Kind.ATTACHED: "usbipssh-tray-attached",
    Kind.BACK: "usbipssh-tray-attached",
    Kind.DETACHED: "usbipssh-tray-idle",
    Kind.LOST: "usbipssh-tray-trouble",
    Kind.REFUSED: "usbipssh-tray-trouble",
    Kind.PLAIN: "usbipssh-tray-idle",
}
_CATEGORIES = {
    Kind.ATTACHED: "device.added",
    Kind.BACK: "device.added",
    Kind.DETACHED: "device.removed",
    Kind.LOST: "device.removed",
    Kind.REFUSED: "device.error",
    Kind.PLAIN: "device",
}


class Notices:
    """Tells a person what happens. :meth:`start` first, :meth:`stop` at the end.

    ``act`` is called with what a button of a notification asks for. ``bus`` is the session bus,
    ``uid`` whose session it is, ``icon`` turns an icon's name into what the server can find.
    """

    def __init__(
        self,
        bus: Bus,
        act: Callable[[Detach | Retry], None],
        uid: int | None = None,
        *,
        now: Callable[[], float] = time.time,
        settle: float = SETTLE_SECONDS,
        icon: Callable[[str], str] = str,
    ) -> None:
        self._bus = bus
        self._act = act
        self._uid = os.getuid() if uid is None else uid
        self._now = now
        self._settle = settle
        self._icon = icon
        self._memory = Memory()
        self._snapshot = Snapshot()
        self._clicked_off: set[str] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._queue: asyncio.Queue[Notice] = asyncio.Queue(QUEUED)
        self._sender: asyncio.Task[None] | None = None
        self._unlisten: Callable[[], None] | None = None
        self._server = ""
        self._capabilities: frozenset[str] | None = None
        self._shown: dict[int, Notice] = {}

    async def start(self) -> None:
        """Listen for buttons; no server there is no error."""
        self._unlisten = self._bus.listen(self._signal)
        for member in ("ActionInvoked", "NotificationClosed"):
            await self._bus.subscribe(sender=NAME, interface=NAME, member=member)
        await self._bus.subscribe(
            sender=BUS, path=BUS_PATH, interface=BUS, member="NameOwnerChanged", arg0=NAME
        )
        self._server = await self._bus.owner(NAME)
        self._sender = asyncio.create_task(self._send_all(), name="notices")

    async def stop(self) -> None:
        """End; what was not sent is left out."""
        if self._timer is not None:
            self._timer.cancel()
        if self._unlisten is not None:
            self._unlisten()
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.wait([self._sender])

    # What happens

    def update(self, snapshot: Snapshot) -> None:
        """Take in what the daemon publishes now; what is new is told when it has settled."""
        self._snapshot = snapshot
        if not snapshot.present or not snapshot.manager.version:
            # Now, and not when it has settled: a daemon that is back at once is a new one, too.
            self._tell()
        elif not self._memory.started:
            self._tell()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._settle, self._tell)

    def clicked_off(self, path: str) -> None:
        """Say nothing when the attachment or hub at ``path`` ends: this person has ended it."""
        self._clicked_off.add(path)

    def failed(self, what: str, error: ClientError) -> None:
        """Tell that what this person asked for did not work: ``what`` as in "Attaching Stick"."""
        if error.code == "Cancelled":
            return
        summary = _("{what} did not work").format(what=what)
        if error.code in ("AccessDenied", "InteractiveAuthorizationRequired"):
            summary = _("{what} was refused").format(what=what)
        self._put(Notice(Kind.REFUSED, summary, error.message))

    async def show(self, summary: str, body: str) -> None:
        """Show one plain notification and wait until the server has it."""
        await self._send(Notice(Kind.PLAIN, summary, body))

    def _tell(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._memory, notices = tell(
            self._memory,
            self._snapshot,
            self._clicked_off,
            self._uid,
            int(self._now() * 1_000_000),
        )
        there = {one.path for one in self._snapshot.attachments}
        self._clicked_off &= there | {hub.path for hub in self._snapshot.hubs}
        for notice in notices:
            self._put(notice)

    def _put(self, notice: Notice) -> None:
        try:
            self._queue.put_nowait(notice)
        except asyncio.QueueFull:
            log.warning("left out a notification: %s", notice.summary)

    # The server

    async def _send_all(self) -> None:
        while True:
            await self._send(await self._queue.get())

    async def _send(self, notice: Notice) -> None:
        try:
            await self._notify(notice)
        except (BusError, Disconnected, TimeoutError) as error:
            log.warning("no notification (%s): %s", error or "no answer", notice.summary)

    async def _notify(self, notice: Notice) -> None:
        if self._capabilities is None:
            (names,) = await self._call("GetCapabilities")
            self._capabilities = frozenset(names if isinstance(names, list) else ())
        capabilities = self._capabilities
        summary, body = notice.summary, notice.body
        if "body-markup" in capabilities:
            body = escape(body, quote=False)
        if "body" not in capabilities and body:
            summary, body = f"{summary}: {body}", ""
        actions: list[str] = []
        if "actions" in capabilities:
            if notice.can_retry:
                actions += ["retry", _("Retry")]
            if notice.can_detach:
                actions += ["detach", _("Detach")]
        hints = {
            "category": Variant("s", _CATEGORIES[notice.kind]),
            "desktop-entry": Variant("s", "usbipssh-tray"),
        }
        icon = self._icon(_ICONS[notice.kind])

        def shown(answer: tuple[object, ...]) -> None:
            # Before its buttons can be pressed.
            if len(answer) == 1 and isinstance(answer[0], int):
                self._remember(answer[0], notice)

        await self._call(
            "Notify",
            "susssasa{sv}i",
            [
                _("USB over ssh"), self._earlier(notice), icon, summary, body, actions, hints, -1,
            ],
            shown,
        )  # fmt: skip

    def _remember(self, number: int, notice: Notice) -> None:
        self._shown.pop(number, None)
        self._shown[number] = notice
        while len(self._shown) > REMEMBERED:
            del self._shown[next(iter(self._shown))]

    async def _call(
        self,
        member: str,
        signature: str = "",
        body: Sequence[object] = (),
        at_once: Callable[[tuple[object, ...]], None] | None = None,
    ) -> tuple[object, ...]:
        # The bus starts a server where there is a file that says how.
        return await self._bus.call(
            NAME, PATH, NAME, member, signature, body, timeout=SERVER_SECONDS, at_once=at_once
        )

    def _earlier(self, notice: Notice) -> int:
        """The number of a notification about the same object, to be replaced; 0 for none."""
        for number, shown in self._shown.items():
            if notice.path and shown.path == notice.path:
                return number
        return 0

    def _signal(self, signal: Signal) -> None:
        match signal.sender, signal.member, signal.body:
            case (sender, "NameOwnerChanged", (str(name), _old, str(new))):
                if sender == BUS and name == NAME:
                    self._server = new
                    self._capabilities = None
                    self._shown.clear()
            case (sender, "ActionInvoked", (int(number), str(key))):
                if sender == self._server:
                    self._invoked(number, key)
            case (sender, "NotificationClosed", (int(number), _why)):
                if sender == self._server:
                    self._shown.pop(number, None)
            case _:
                pass

    def _invoked(self, number: int, key: str) -> None:
        notice = self._shown.get(number)
        if notice is None:
            return
        if key == "detach" and notice.can_detach:
            self._act(Detach(notice.path, notice.name))
        elif key == "retry" and notice.can_retry:
            self._act(Retry(notice.path))
