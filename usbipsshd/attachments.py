# SPDX-License-Identifier: GPL-3.0-or-later
"""All the attachments: begun, watched and ended here."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Protocol

from usbipsshd.attachment import Attachment, Life, State, Steps
from usbipsshd.control import Session
from usbipsshd.device import Device
from usbipsshd.errors import Code, UsbipError
from usbipsshd.importer import Imported, Importer
from usbipsshd.link import Link
from usbipsshd.remoteusb import RemoteUsb
from usbipsshd.udev import Events

log = logging.getLogger(__name__)

MAX_ATTACHMENTS = 240
"""As many as vhci has ports in Debian's kernels."""
PORT_FREE_SECONDS = 5.0


class AttachmentListener(Protocol):
    """Who is told of attachments."""

    def attachment_added(self, attachment: Attachment) -> None:
        """One began, in ``connecting``."""

    def attachment_changed(self, attachment: Attachment) -> None:
        """Something published of it changed."""

    def attachment_removed(self, attachment: Attachment) -> None:
        """One is gone; everything was given back."""


@dataclass(slots=True)
class _Entry:
    attachment: Attachment
    link: Link
    life: Life
    ended: asyncio.Future[UsbipError]
    imported: Imported | None = None
    session: Session | None = None
    """The session that exports it; None before it was asked to."""


class Attachments:
    """The table of attachments; each life is a task in ``group``."""

    def __init__(
        self,
        *,
        group: asyncio.TaskGroup,
        importer: Importer,
        events: Events,
        now: Callable[[], float],
    ) -> None:
        self._group = group
        self._importer = importer
        self._now = now
        self._numbers = count(1)
        self._entries: dict[int, _Entry] = {}
        self._listeners: list[AttachmentListener] = []
        events.listen(self.look)

    def listen(self, listener: AttachmentListener) -> None:
        """Tell ``listener`` of everything from now on."""
        self._listeners.append(listener)

    def __iter__(self) -> Iterator[Attachment]:
        return iter([e.attachment for e in self._entries.values()])

    def get(self, number: int) -> Attachment | None:
        """The attachment of that number."""
        entry = self._entries.get(number)
        return entry.attachment if entry is not None else None

    def at(self, remote: str, busid: str) -> Attachment | None:
        """The attachment of a remote's device, in whatever state."""
        for attachment in self:
            if (attachment.remote, attachment.device.busid) == (remote, busid):
                return attachment
        return None

    def begin(
        self,
        link: Link,
        device: Device,
        pattern: str,
        owner_uid: int,
        *,
        unmount: bool,
        rebind: bool,
    ) -> Attachment:
        """Begin to attach a device, known with its descriptors.

        Raises :exc:`UsbipError` (AlreadyAttached, LimitsExceeded).
        """
        name = link.remote.name
        if (other := self.at(name, device.busid)) is not None:
            doing = "being detached" if other.state is State.DETACHING else "attached"
            raise UsbipError(
                Code.ALREADY_ATTACHED, f"{device.busid} of {name} is {doing} here already."
            )
        if len(self._entries) >= MAX_ATTACHMENTS:
            raise UsbipError(
                Code.LIMITS_EXCEEDED, f"At most {MAX_ATTACHMENTS} devices can be attached."
            )
        attachment = Attachment(
            next(self._numbers), name, pattern, device, owner_uid, rebind=rebind
        )
        steps = Steps(
            attach=lambda: self._attach(entry, unmount=unmount),
            ended=lambda: self._ended(entry),
            give_back=lambda: self._give_back(entry),
        )
        entry = _Entry(
            attachment,
            link,
            Life(attachment, steps, self._changed),
            asyncio.get_running_loop().create_future(),
        )
        self._entries[attachment.number] = entry
        for listener in self._listeners:
            listener.attachment_added(attachment)
        self._group.create_task(self._live(entry), name=f"attachment {attachment.number}")
        return attachment

    async def _live(self, entry: _Entry) -> None:
        attachment = entry.attachment
        try:
            # The link stays open for as long as anything may have to be given back.
            with entry.link.kept():
                await entry.life.run()
        finally:
            del self._entries[attachment.number]
            for listener in self._listeners:
                listener.attachment_removed(attachment)

    async def usable(self, attachment: Attachment) -> None:
        """Wait until it is usable here; cancelled, it is detached. Raises :exc:`UsbipError`."""
        entry = self._entries.get(attachment.number)
        if entry is None:
            raise UsbipError(Code.CANCELLED, "The attachment was detached before it was ready.")
        try:
            await entry.life.usable()
        except asyncio.CancelledError:
            entry.life.detach()
            raise

    async def detach(self, attachment: Attachment) -> None:
        """Detach and wait until everything was given back."""
        entry = self._entries.get(attachment.number)
        if entry is not None:
            entry.life.detach()
            await entry.life.gone()

    async def statistics(self, attachment: Attachment) -> tuple[int, int]:
        """Bytes received from and sent to the device; raise :exc:`UsbipError`."""
        entry = self._entries.get(attachment.number)
        if entry is None or entry.session is None or attachment.state is not State.ATTACHED:
            raise UsbipError(Code.NOT_ATTACHED, "The device is not attached at the moment.")
        usb = RemoteUsb(entry.session, attachment.remote)
        return await usb.statistics(attachment.device.busid)

    async def close(self) -> None:
        """Detach everything."""
        async with asyncio.TaskGroup() as group:
            for attachment in self:
                group.create_task(self.detach(attachment))

    def look(self) -> None:
        """Something changed on this machine: see who is still there, and with which nodes."""
        for entry in self._entries.values():
            attachment = entry.attachment
            if entry.imported is None or attachment.state is not State.ATTACHED:
                continue
            if not self._importer.present(entry.imported):
                self._end(
                    entry,
                    UsbipError(
                        Code.DEVICE_FAILED,
                        "The device left this machine: it was unplugged from "
                        f"{attachment.remote}, or detached by another program.",
                    ),
                )
                continue
            nodes = self._importer.nodes(attachment.local_busid)
            if nodes != attachment.device_nodes:
                attachment.device_nodes = nodes
                self._changed(attachment)

    def link_changed(self, link: Link) -> None:
        """See :class:`usbipsshd.links.LinkListener`; nothing to do."""

    def link_devices_changed(self, link: Link) -> None:
        """See :class:`usbipsshd.links.LinkListener`; nothing to do."""

    def link_released(self, link: Link, busid: str, error: UsbipError) -> None:
        """The session says that an export ended by itself."""
        for entry in self._entries.values():
            if entry.link is link and entry.attachment.device.busid == busid:
                self._end(entry, error)

    def link_lost(self, link: Link, error: UsbipError) -> None:
        """The connection is gone, and with it every attachment that used it."""
        for entry in self._entries.values():
            if entry.link is link:
                self._end(entry, error)

    @staticmethod
    def _end(entry: _Entry, error: UsbipError) -> None:
        if not entry.ended.done():
            entry.ended.set_result(error)

    def _changed(self, attachment: Attachment) -> None:
        for listener in self._listeners:
            listener.attachment_changed(attachment)

    async def _attach(self, entry: _Entry, *, unmount: bool) -> None:
        attachment, device = entry.attachment, entry.attachment.device
        await self._importer.prepare(device.speed)
        async with entry.link.use() as session:
            usb = RemoteUsb(session, attachment.remote)
            entry.session = session
            fd = await usb.export(device, unmount=unmount)
        try:
            imported = await self._importer.attach(fd, device, lambda i: self._taken(entry, i))
        except UsbipError as error:
            # What the other end says of it tells more than "it went away".
            if error.code is Code.DEVICE_FAILED and entry.ended.done():
                raise entry.ended.result() from None
            raise
        finally:
            os.close(fd)
        attachment.device_nodes = self._importer.nodes(imported.local_busid)
        attachment.attached_at = int(self._now() * 1_000_000)
        log.info(
            "attached %s of %s as %s for uid %d",
            device.busid, attachment.remote, imported.local_busid, attachment.owner_uid,
        )  # fmt: skip

    def _taken(self, entry: _Entry, imported: Imported) -> None:
        entry.imported = imported
        entry.attachment.port = imported.port
        entry.attachment.local_busid = imported.local_busid
        self._changed(entry.attachment)

    async def _ended(self, entry: _Entry) -> UsbipError:
        self.look()
        return await asyncio.shield(entry.ended)

    async def _give_back(self, entry: _Entry) -> None:
        """This machine first: the exporter must see the connection end before it unbinds."""
        attachment = entry.attachment
        if entry.imported is not None:
            self._importer.detach(entry.imported)
            await self._importer.gone(entry.imported, PORT_FREE_SECONDS)
        # Without its session the agent there is giving everything back by itself.
        if entry.session is not None and not entry.session.gone:
            usb = RemoteUsb(entry.session, attachment.remote)
            try:
                await usb.release(attachment.device.busid, rebind=attachment.rebind)
            except UsbipError as error:
                log.warning(
                    "%s of %s: giving back failed: %s",
                    attachment.device.busid, attachment.remote, error,
                )  # fmt: skip
        log.info("detached %s of %s", attachment.device.busid, attachment.remote)
