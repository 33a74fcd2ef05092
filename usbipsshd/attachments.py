# SPDX-License-Identifier: GPL-3.0-or-later
"""All the attachments: begun, watched and ended here."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import count
from typing import Protocol

from usbipsshd.attachment import Attachment, Life, State, Steps
from usbipsshd.backoff import Backoff
from usbipsshd.chooser import Chooser, changed, no_more_than, same_device, summary_of
from usbipsshd.control import Session
from usbipsshd.device import Device
from usbipsshd.errors import Code, UsbipError
from usbipsshd.importer import Imported, Importer
from usbipsshd.journal import Happening, tell
from usbipsshd.link import Link, LinkState
from usbipsshd.pattern import Pattern
from usbipsshd.remoteusb import RemoteUsb
from usbipsshd.udev import Events

log = logging.getLogger(__name__)

MAX_ATTACHMENTS = 240
"""As many as vhci has ports in Debian's kernels."""
MAX_PER_UID = 120
"""Of one user, unless it is root."""
PORT_FREE_SECONDS = 5.0
RETURN_SECONDS = 45.0


class AttachmentListener(Protocol):
    """Who is told of attachments."""

    def attachment_added(self, attachment: Attachment) -> None:
        """One began."""

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
    first: bool = True
    """Whether the device is still the one that was just chosen, and need not be found again."""
    attached_before: bool = False
    imported: Imported | None = None
    session: Session | None = None
    """The session that exports it; None before it was asked to."""
    detached_by: int | None = None
    """The uid of who detached it; None if that was nobody."""
    failed: tuple[str, int] | None = None
    """Bus id and device number of what failed although it was there: trying changes it there,
    so that what changes there is no good news before it is plugged in anew."""


@dataclass(frozen=True, slots=True)
class Running:
    """What another process needs to take an attachment over."""

    attachment: Attachment
    imported: Imported


class Attachments:
    """The table of attachments; each life is a task in ``group``."""

    def __init__(
        self,
        *,
        group: asyncio.TaskGroup,
        importer: Importer,
        chooser: Chooser,
        events: Events,
        now: Callable[[], float],
        backoff: Callable[[], Backoff] = Backoff,
    ) -> None:
        self._group = group
        self._importer = importer
        self._chooser = chooser
        self._now = now
        self._backoff = backoff
        self._numbers = count(1)
        self._entries: dict[int, _Entry] = {}
        self._listeners: list[AttachmentListener] = []
        self._asleep = False
        self._awake = asyncio.Event()
        self._awake.set()
        self._stopping = False
        self._looking: set[Link] = set()
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

    def number(self) -> int:
        """A number for a new attachment."""
        return next(self._numbers)

    def skip_numbers(self, used: int) -> None:
        """Never give out ``used`` and what comes before it."""
        self._numbers = count(max(used + 1, next(self._numbers)))

    def begin(self, link: Link, attachment: Attachment) -> None:
        """Begin an attachment in CONNECTING, or in WAITING; its device is known with descriptors.

        Raises :exc:`UsbipError` (AlreadyAttached, LimitsExceeded).
        """
        other = self.at(attachment.remote, attachment.device.busid)
        if other is not None:
            self.poke(attachment.remote)
            raise UsbipError(
                Code.ALREADY_ATTACHED,
                f"{other.device.busid} of {other.remote} is {_doing(other)} here already.",
            )
        if self._stopping:
            raise stopping()
        if len(self._entries) >= MAX_ATTACHMENTS:
            raise UsbipError(
                Code.LIMITS_EXCEEDED, f"At most {MAX_ATTACHMENTS} devices can be attached."
            )
        uid = attachment.owner_uid
        if uid != 0 and sum(a.owner_uid == uid for a in self) >= MAX_PER_UID:
            raise UsbipError(
                Code.LIMITS_EXCEEDED,
                f"One user can attach {MAX_PER_UID} devices at most; detach some first.",
            )
        entry = self._enter(link, attachment)
        entry.first = attachment.state is State.CONNECTING
        entry.attached_before = not entry.first
        self._start(entry)

    def take_over(self, link: Link, running: Running, session: Session) -> None:
        """Go on with an attachment of an earlier process, over the session that still runs."""
        entry = self._enter(link, running.attachment)
        entry.imported = running.imported
        entry.session = session
        entry.first = False
        entry.attached_before = True
        self._start(entry)

    def _enter(self, link: Link, attachment: Attachment) -> _Entry:
        steps = Steps(
            attach=lambda: self._attach(entry),
            ended=lambda: self._ended(entry),
            give_back=lambda: self._give_back(entry),
            now=self._now,
            changed=lambda: self._changed(attachment),
        )
        life = Life(attachment, steps, self._backoff())
        entry = _Entry(attachment, link, life, asyncio.get_running_loop().create_future())
        self._entries[attachment.number] = entry
        return entry

    def _start(self, entry: _Entry) -> None:
        for listener in self._listeners:
            listener.attachment_added(entry.attachment)
        if self._asleep:
            entry.life.sleep()
        self._group.create_task(self._live(entry), name=f"attachment {entry.attachment.number}")

    async def _live(self, entry: _Entry) -> None:
        attachment = entry.attachment
        try:
            # The link stays open for as long as anything may have to be given back.
            with entry.link.kept():
                await entry.life.run()
        finally:
            del self._entries[attachment.number]
            if entry.attached_before and not entry.life.abandoned:
                self._tell(
                    attachment,
                    Happening.DETACHED,
                    f"detached {attachment.device.busid} of {attachment.remote}",
                    by=entry.detached_by,
                )
            for listener in self._listeners:
                listener.attachment_removed(attachment)

    async def usable(self, attachment: Attachment) -> None:
        """Wait until it is usable here; cancelled before, it is detached.

        Raises :exc:`UsbipError`.
        """
        entry = self._entries.get(attachment.number)
        if entry is None:
            raise UsbipError(Code.CANCELLED, "The attachment was detached before it was ready.")
        try:
            await entry.life.usable()
        except asyncio.CancelledError:
            # Who leaves when it has just become usable, and knows that, has it.
            if attachment.state is not State.ATTACHED or attachment.bound_to:
                entry.life.detach()
            raise

    async def detach(self, attachment: Attachment, by: int | None = None) -> None:
        """Detach and wait until everything was given back; ``by`` is the uid that asks for it."""
        entry = self._entries.get(attachment.number)
        if entry is not None:
            if entry.detached_by is None:
                entry.detached_by = by
            entry.life.detach()
            await entry.life.gone()

    def set_options(self, attachment: Attachment, *, keep: bool, persist: bool) -> None:
        """Change what becomes of it later; without ``keep`` one that waits is detached.

        Raises :exc:`UsbipError` (NotAttached).
        """
        entry = self._entries.get(attachment.number)
        if entry is None or attachment.state is State.DETACHING:
            raise UsbipError(Code.NOT_ATTACHED, "The attachment is being detached.")
        attachment.keep, attachment.persist = keep, persist
        self._changed(attachment)
        if not keep and attachment.state is State.WAITING:
            entry.life.detach()

    def detach_soon(self, attachment: Attachment) -> None:
        """Begin to detach."""
        entry = self._entries.get(attachment.number)
        if entry is not None:
            entry.life.detach()

    async def close(self) -> None:
        """Detach everything; nothing begins any more."""
        self._stopping = True
        async with asyncio.TaskGroup() as group:
            for attachment in self:
                group.create_task(self.detach(attachment))

    def abandon_soon(self) -> None:
        """Begin to end without giving anything back; nothing begins any more."""
        self._stopping = True
        for entry in self._entries.values():
            entry.life.abandon()

    async def abandon(self) -> None:
        """End without giving anything back: another process takes over."""
        self.abandon_soon()
        for life in [e.life for e in self._entries.values()]:
            await life.gone()

    def running(self) -> list[Running]:
        """What could be taken over by another process."""
        return [
            Running(e.attachment, e.imported)
            for e in self._entries.values()
            if e.imported is not None and e.attachment.state is State.ATTACHED
        ]

    async def sleep(self) -> None:
        """Give everything back until :meth:`wake`; one failing doesn't stop the others.

        What begins meanwhile waits for :meth:`wake`, too.
        """
        self._asleep = True
        self._awake.clear()
        async with asyncio.TaskGroup() as group:
            for entry in self._entries.values():
                entry.life.sleep()
                group.create_task(entry.life.idle())

    def wake(self) -> None:
        """The machine is awake again: everything comes back."""
        self._asleep = False
        self._awake.set()
        for entry in self._entries.values():
            entry.life.wake()

    @asynccontextmanager
    async def paused(self, attachment: Attachment) -> AsyncIterator[None]:
        """Give it back for as long as the context lasts; it comes back, whether kept or not.

        The end waits until it is attached again, or that has failed, ``RETURN_SECONDS`` at most.
        """
        entry = self._entries.get(attachment.number)
        if entry is None:
            yield
            return
        failure: UsbipError | None = None
        entry.life.sleep()
        try:
            await entry.life.idle()
            try:
                yield
            except UsbipError as error:
                failure = error
        finally:
            # A machine that went to sleep meanwhile wakes it itself.
            if not self._asleep:
                entry.life.wake()
        with suppress(TimeoutError):
            async with asyncio.timeout(RETURN_SECONDS):
                await entry.life.settled()
        if failure is not None:
            raise failure

    async def awake(self) -> None:
        """Wait while the machine is about to sleep: no connection is made for it any more."""
        await self._awake.wait()

    def poke(self, remote: str = "") -> None:
        """There is good news from a remote, or from the network: who waits tries now."""
        for entry in self._entries.values():
            if not remote or entry.attachment.remote == remote:
                entry.life.poke()

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
            if (changed := self._importer.changed(entry.imported)) is not None:
                self._end(entry, changed)
                continue
            self._importer.keep_awake(attachment.local_busid)
            nodes = self._importer.nodes(attachment.local_busid)
            if nodes != attachment.device_nodes:
                attachment.device_nodes = nodes
                self._changed(attachment)

    async def statistics(self, attachment: Attachment) -> tuple[int, int]:
        """Bytes received from and sent to the device; raise :exc:`UsbipError`."""
        entry = self._entries.get(attachment.number)
        if entry is None or entry.session is None or attachment.state is not State.ATTACHED:
            raise UsbipError(Code.NOT_ATTACHED, "The device is not attached at the moment.")
        usb = RemoteUsb(entry.session, attachment.remote)
        return await usb.statistics(attachment.device.busid)

    def lost(self, attachment: Attachment, error: UsbipError) -> None:
        """The device of one attachment is gone."""
        entry = self._entries.get(attachment.number)
        if entry is not None:
            self._end(entry, error)

    def link_changed(self, link: Link) -> None:
        """See :class:`usbipsshd.links.LinkListener`: it can be reached again."""
        if link.status.state is LinkState.CONNECTED:
            for entry in self._entries.values():
                if entry.link is link:
                    entry.life.nudge()

    def link_devices_changed(self, link: Link) -> None:
        """See :class:`usbipsshd.links.LinkListener`: what is missing may be back."""
        failed = False
        for entry in self._entries.values():
            if entry.link is not link or entry.attachment.state is not State.WAITING:
                continue
            if entry.failed is None:
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
        for entry in self._entries.values():
            if entry.link is link and entry.failed is not None and entry.failed not in there:
                entry.failed = None
                entry.life.poke()

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
        if entry.session is not None and not entry.ended.done():
            entry.ended.set_result(error)

    def _changed(self, attachment: Attachment) -> None:
        for listener in self._listeners:
            listener.attachment_changed(attachment)

    async def _attach(self, entry: _Entry) -> None:
        attachment = entry.attachment
        async with entry.link.use() as session:
            usb = RemoteUsb(session, attachment.remote)
            if not entry.first:
                found = await self._find_again(entry, usb)
                # What was approved stays the limit, whatever took its place meanwhile.
                attachment.approved = attachment.approved or attachment.device
                attachment.device = found
            entry.first = False
            device = attachment.device
            await self._importer.prepare(device.speed)
            entry.session = session
            entry.failed = (device.busid, device.devnum)
            fd = await self._export(usb, attachment)
        try:
            imported = await self._importer.attach(fd, device, lambda i: self._taken(entry, i))
        except UsbipError as error:
            # What the other end says of it tells more than "it went away".
            if error.code is Code.DEVICE_FAILED and entry.ended.done():
                raise entry.ended.result() from None
            raise
        finally:
            os.close(fd)
        entry.failed = None
        self._importer.keep_awake(imported.local_busid)
        attachment.device_nodes = self._importer.nodes(imported.local_busid)
        attachment.attached_at = int(self._now() * 1_000_000)
        restored = entry.attached_before
        entry.attached_before = True
        self._tell(
            attachment,
            Happening.RESTORED if restored else Happening.ATTACHED,
            f"{'restored' if restored else 'attached'} {device.busid} of {attachment.remote} as "
            f"{imported.local_busid} for uid {attachment.owner_uid}",
        )

    @staticmethod
    async def _export(usb: RemoteUsb, attachment: Attachment) -> int:
        device = attachment.device
        try:
            return await usb.export(device, unmount=attachment.unmount, rebind=attachment.rebind)
        except UsbipError as error:
            if error.code is not Code.ALREADY_ATTACHED:
                raise
        # Left by a process before this one, that could not finish; nobody here uses it.
        await usb.release(device.busid, rebind=True)
        return await usb.export(device, unmount=attachment.unmount, rebind=attachment.rebind)

    async def _find_again(self, entry: _Entry, usb: RemoteUsb) -> Device:
        """The device that is meant now; raise :exc:`UsbipError` if it is not the approved one."""
        attachment = entry.attachment
        pattern = Pattern.parse(attachment.pattern)

        def free(device: Device) -> bool:
            other = self.at(attachment.remote, device.busid)
            return other is None or other is attachment

        device = await self._chooser.one(usb, attachment.remote, pattern, free)
        summary_of(attachment.remote, device)
        approved = attachment.approved or attachment.device
        if pattern.busid and not pattern.negated:
            fits = same_device(approved, device)
        else:
            fits = no_more_than(approved, device, attachment.remote)
        if not fits:
            raise changed(attachment.remote, device)
        if not free(device):
            raise UsbipError(
                Code.ALREADY_ATTACHED,
                f"{device.busid} of {attachment.remote} is attached here already.",
            )
        return device

    def _taken(self, entry: _Entry, imported: Imported) -> None:
        entry.imported = imported
        entry.attachment.port = imported.port
        entry.attachment.local_busid = imported.local_busid
        self._changed(entry.attachment)

    async def _ended(self, entry: _Entry) -> UsbipError:
        self.look()
        error = await asyncio.shield(entry.ended)
        attachment = entry.attachment
        self._tell(
            attachment,
            Happening.LOST,
            f"lost {attachment.device.busid} of {attachment.remote}: {error.message}",
        )
        return error

    @staticmethod
    def _tell(
        attachment: Attachment, happening: Happening, text: str, by: int | None = None
    ) -> None:
        tell(
            log,
            happening,
            text,
            remote=attachment.remote,
            busid=attachment.device.busid,
            uid=attachment.owner_uid if by is None else by,
        )

    async def _give_back(self, entry: _Entry) -> None:
        """This machine first: the exporter must see the connection end before it unbinds."""
        attachment = entry.attachment
        imported, entry.imported = entry.imported, None
        session, entry.session = entry.session, None
        entry.ended = asyncio.get_running_loop().create_future()
        if imported is not None:
            self._importer.detach(imported)
            await self._importer.gone(imported, PORT_FREE_SECONDS)
        attachment.local_busid, attachment.port, attachment.device_nodes = "", 0, []
        self._changed(attachment)
        # Without its session the agent there is giving everything back by itself.
        if session is not None and not session.gone:
            usb = RemoteUsb(session, attachment.remote)
            try:
                await usb.release(attachment.device.busid, rebind=attachment.rebind)
            except UsbipError as error:
                # Lost in the middle of it: then, too, the agent does it by itself.
                if not session.gone:
                    log.warning(
                        "%s of %s: giving back failed: %s",
                        attachment.device.busid, attachment.remote, error,
                    )  # fmt: skip


def stopping() -> UsbipError:
    """The error for what is asked for too late."""
    return UsbipError(Code.CANCELLED, "usbipsshd is stopping; try again in a moment.")


def _doing(attachment: Attachment) -> str:
    match attachment.state:
        case State.DETACHING:
            return "being detached"
        case State.WAITING:
            return "waited for"
        case _:
            return "attached"
