# SPDX-License-Identifier: GPL-3.0-or-later
"""All the virtual hubs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from itertools import count
from typing import Protocol

from usbipsshd.attachment import Attachment
from usbipsshd.attachments import Attachments, stopping
from usbipsshd.backoff import Backoff
from usbipsshd.chooser import Chooser
from usbipsshd.errors import Code, UsbipError
from usbipsshd.hub import Hub, HubLife
from usbipsshd.link import Link, LinkState

MAX_HUBS = 64
MAX_PER_UID = 32
"""Of one user, unless it is root."""


class HubListener(Protocol):
    """Who is told of hubs."""

    def hub_added(self, hub: Hub) -> None:
        """One began."""

    def hub_changed(self, hub: Hub) -> None:
        """Something published of it changed."""

    def hub_removed(self, hub: Hub) -> None:
        """One is gone."""


class Hubs:
    """The table of hubs; each life is a task in ``group``. Listens to links and attachments."""

    def __init__(
        self,
        *,
        group: asyncio.TaskGroup,
        attachments: Attachments,
        chooser: Chooser,
        now: Callable[[], float],
        backoff: Callable[[], Backoff] = Backoff,
    ) -> None:
        self._group = group
        self._attachments = attachments
        self._chooser = chooser
        self._now = now
        self._backoff = backoff
        self._numbers = count(1)
        self._lives: dict[int, HubLife] = {}
        self._listeners: list[HubListener] = []
        self._asleep = False
        self._stopping = False

    def listen(self, listener: HubListener) -> None:
        """Tell ``listener`` of everything from now on."""
        self._listeners.append(listener)

    def __iter__(self) -> Iterator[Hub]:
        return iter([life.hub for life in self._lives.values()])

    def get(self, number: int) -> Hub | None:
        """The hub of that number."""
        life = self._lives.get(number)
        return life.hub if life is not None else None

    def number(self) -> int:
        """A number for a new hub."""
        return next(self._numbers)

    def skip_numbers(self, used: int) -> None:
        """Never give out ``used`` and what comes before it."""
        self._numbers = count(max(used + 1, next(self._numbers)))

    def begin(self, link: Link, hub: Hub, *, restored: bool = False) -> None:
        """Begin a hub; raise :exc:`UsbipError` (AlreadyAttached, LimitsExceeded).

        One that is ``restored`` goes on trying from the start.
        """
        if any((h.remote, h.pattern) == (hub.remote, hub.pattern) for h in self):
            raise UsbipError(
                Code.ALREADY_ATTACHED, f"There is a hub for these devices of {hub.remote} already."
            )
        if self._stopping:
            raise stopping()
        if len(self._lives) >= MAX_HUBS:
            raise UsbipError(Code.LIMITS_EXCEEDED, f"At most {MAX_HUBS} hubs can be attached.")
        uid = hub.owner_uid
        if uid != 0 and sum(h.owner_uid == uid for h in self) >= MAX_PER_UID:
            raise UsbipError(
                Code.LIMITS_EXCEEDED,
                f"One user can attach {MAX_PER_UID} hubs at most; detach some first.",
            )
        life = HubLife(
            hub,
            link,
            attachments=self._attachments,
            chooser=self._chooser,
            now=self._now,
            changed=lambda: self._changed(hub),
            backoff=self._backoff,
            restored=restored,
        )
        self._lives[hub.number] = life
        if self._asleep:
            life.sleep()
        for listener in self._listeners:
            listener.hub_added(hub)
        self._group.create_task(self._live(life), name=f"hub {hub.number}")

    async def _live(self, life: HubLife) -> None:
        try:
            with life.link.kept():
                await life.run()
        finally:
            del self._lives[life.hub.number]
            for listener in self._listeners:
                listener.hub_removed(life.hub)

    def _changed(self, hub: Hub) -> None:
        for listener in self._listeners:
            listener.hub_changed(hub)

    async def watching(self, hub: Hub) -> None:
        """Wait until it watches; cancelled, it is detached. Raises :exc:`UsbipError`."""
        life = self._lives.get(hub.number)
        if life is None:
            raise UsbipError(Code.CANCELLED, "The hub was detached before it was ready.")
        try:
            await life.watching()
        except asyncio.CancelledError:
            life.detach()
            raise

    async def detach(self, hub: Hub, by: int | None = None) -> None:
        """Detach a hub and all that it attached; ``by`` is the uid that asks for it."""
        life = self._lives.get(hub.number)
        if life is not None:
            life.detach(by)
            await life.gone()

    def detach_soon(self, hub: Hub) -> None:
        """Begin to detach."""
        life = self._lives.get(hub.number)
        if life is not None:
            life.detach()

    async def close(self) -> None:
        """Detach everything; nothing begins any more."""
        self._stopping = True
        async with asyncio.TaskGroup() as group:
            for hub in self:
                group.create_task(self.detach(hub))

    def abandon_soon(self) -> None:
        """Begin to end without giving anything back; nothing begins any more."""
        self._stopping = True
        for life in self._lives.values():
            life.abandon()

    async def abandon(self) -> None:
        """End without giving anything back: another process takes over."""
        self.abandon_soon()
        for life in list(self._lives.values()):
            await life.gone()

    def leave_alone(self, attachment: Attachment) -> None:
        """Somebody detaches one attachment of a hub: not again until it is plugged in anew."""
        life = self._lives.get(attachment.hub)
        if life is not None:
            life.leave_alone(attachment)

    def sleep(self) -> None:
        """Stop watching until :meth:`wake`; what begins meanwhile waits for it, too."""
        self._asleep = True
        for life in self._lives.values():
            life.sleep()

    def wake(self) -> None:
        """Watch again."""
        self._asleep = False
        for life in self._lives.values():
            life.wake()

    def poke(self, remote: str = "") -> None:
        """There is good news from a remote, or from the network."""
        for life in self._lives.values():
            if not remote or life.hub.remote == remote:
                life.poke()

    def link_changed(self, link: Link) -> None:
        """See :class:`usbipsshd.links.LinkListener`: it can be reached again."""
        if link.status.state is LinkState.CONNECTED:
            for life in self._lives.values():
                if life.link is link:
                    life.nudge()

    def link_devices_changed(self, link: Link) -> None:
        """See :class:`usbipsshd.links.LinkListener`."""
        for life in self._lives.values():
            if life.link is link:
                life.poke()

    def link_released(self, link: Link, busid: str, error: UsbipError) -> None:
        """See :class:`usbipsshd.links.LinkListener`; the attachment tells."""

    def link_returned(self, link: Link, busid: str, error: UsbipError) -> None:
        """See :class:`usbipsshd.links.LinkListener`; no business of a hub's."""

    def link_lost(self, link: Link, error: UsbipError) -> None:
        """See :class:`usbipsshd.links.LinkListener`."""
        for life in self._lives.values():
            if life.link is link:
                life.lost(error)

    def attachment_added(self, attachment: Attachment) -> None:
        """See :class:`usbipsshd.attachments.AttachmentListener`."""
        life = self._lives.get(attachment.hub)
        if life is not None:
            life.added(attachment)

    def attachment_changed(self, attachment: Attachment) -> None:
        """See :class:`usbipsshd.attachments.AttachmentListener`; nothing to do."""

    def attachment_removed(self, attachment: Attachment) -> None:
        """See :class:`usbipsshd.attachments.AttachmentListener`."""
        for life in self._lives.values():
            if life.hub.number == attachment.hub:
                life.removed(attachment)
            elif life.hub.remote == attachment.remote:
                # It may be one that this hub is to have, and somebody else had.
                life.nudge()
