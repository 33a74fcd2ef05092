# SPDX-License-Identifier: GPL-3.0-or-later
"""What connections and this machine's agent tell, passed on to the attachments it concerns."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator

from usbipsshd.attachment import Direction, State
from usbipsshd.entry import Entry
from usbipsshd.errors import UsbipError
from usbipsshd.link import Link, LinkState
from usbipsshd.remoteusb import RemoteUsb


class AttachmentNews:
    """Listens to links, see :class:`usbipsshd.links.LinkListener`; ``entries`` are all."""

    def __init__(self, group: asyncio.TaskGroup, entries: Callable[[], Iterable[Entry]]) -> None:
        self._group = group
        self._entries = entries
        self._looking: set[Link] = set()

    def link_changed(self, link: Link) -> None:
        """See :class:`usbipsshd.links.LinkListener`: it can be reached again."""
        if link.status.state is LinkState.CONNECTED:
            for entry in self._entries():
                if entry.link is link:
                    entry.life.nudge()

    def link_devices_changed(self, link: Link) -> None:
        """See :class:`usbipsshd.links.LinkListener`: what is missing may be back."""
        failed = False
        for entry in self._entries():
            if entry.link is not link:
                continue
            doing = entry.doing
            if entry.attachment.state is State.ATTACHED:
                doing.look_there()
            elif entry.attachment.state is State.WAITING and doing.waits_for_remote:
                if doing.failed is None:
                    entry.life.poke()
                else:
                    failed = True
        if failed and link not in self._looking:
            self._looking.add(link)
            self._group.create_task(
                self._see_what_changed(link), name=f"look at {link.remote.name}"
            )

    async def _see_what_changed(self, link: Link) -> None:
        """Try at once what had failed and was unplugged or plugged in anew meanwhile."""
        name = link.remote.name
        try:
            async with link.use() as session:
                # From here on, another change is worth another look.
                self._looking.discard(link)
                there = {(d.busid, d.devnum) for d in await RemoteUsb(session, name).devices()}
        except UsbipError:
            return
        finally:
            self._looking.discard(link)
        for entry in self._entries():
            doing = entry.doing
            if entry.link is not link or not doing.waits_for_remote:
                continue
            if doing.failed is not None and doing.failed not in there:
                doing.failed = None
                entry.life.poke()

    def link_released(self, link: Link, busid: str, error: UsbipError) -> None:
        """The session says that an export of the remote's ended by itself."""
        for entry in self._of(Direction.IMPORT, busid):
            if entry.link is link:
                entry.doing.end(error)

    def link_returned(self, link: Link, busid: str, error: UsbipError) -> None:
        """The session says that a device of this machine left the remote by itself."""
        for entry in self._of(Direction.EXPORT, busid):
            if entry.link is link:
                entry.doing.end(error)

    def link_lost(self, link: Link, error: UsbipError) -> None:
        """The connection is gone, and with it every attachment that used it."""
        for entry in self._entries():
            if entry.link is link:
                entry.doing.end(error)

    def here_lost(self, busid: str, error: UsbipError) -> None:
        """Nobody on this machine looks after a device of its own any more."""
        for entry in self._of(Direction.EXPORT, busid):
            entry.doing.end(error)

    def _of(self, direction: Direction, busid: str) -> Iterator[Entry]:
        for entry in self._entries():
            attachment = entry.attachment
            if (attachment.direction, attachment.device.busid) == (direction, busid):
                yield entry
