# SPDX-License-Identifier: GPL-3.0-or-later
"""All the attachments: begun, watched and ended here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from itertools import count
from typing import Protocol

from usbipsshd.attachment import Attachment, Direction, Life, State, Steps
from usbipsshd.attachmentnews import AttachmentNews
from usbipsshd.backoff import Backoff
from usbipsshd.control import Session
from usbipsshd.doing import Craft, Doing, Where
from usbipsshd.entry import Entry
from usbipsshd.errors import Code, UsbipError
from usbipsshd.link import Link
from usbipsshd.udev import Events

MAX_ATTACHMENTS = 240
"""As many as vhci has ports in Debian's kernels."""
MAX_PER_UID = 120
"""Of one user, unless it is root."""
RETURN_SECONDS = 45.0
GIVEN_BACK_SECONDS = 5.0
"""For what failed to be given back before its caller hears of it: who tries again at once should
find nothing of it in the way. A remote that does not answer may take longer."""


class AttachmentListener(Protocol):
    """Who is told of attachments."""

    def attachment_added(self, attachment: Attachment) -> None:
        """One began."""

    def attachment_changed(self, attachment: Attachment) -> None:
        """Something published of it changed."""

    def attachment_removed(self, attachment: Attachment) -> None:
        """One is gone; everything was given back."""


@dataclass(frozen=True, slots=True)
class Running:
    """What another process needs to take an attachment over."""

    attachment: Attachment
    where: Where


class Attachments:
    """The table of attachments; each life is a task in ``group``.

    ``crafts`` do the work, one for each direction.
    """

    def __init__(
        self,
        *,
        group: asyncio.TaskGroup,
        crafts: Mapping[Direction, Craft],
        events: Events,
        now: Callable[[], float],
        backoff: Callable[[], Backoff] = Backoff,
    ) -> None:
        self._group = group
        self._crafts = crafts
        self._now = now
        self._backoff = backoff
        self._numbers = count(1)
        self._entries: dict[int, Entry] = {}
        self._listeners: list[AttachmentListener] = []
        self._asleep = False
        self._awake = asyncio.Event()
        self._awake.set()
        self._stopping = False
        self.news = AttachmentNews(group, self._entries.values)
        """What the attachments are to be told of."""
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
            where = (attachment.remote, attachment.device.busid)
            if attachment.direction is Direction.IMPORT and where == (remote, busid):
                return attachment
        return None

    def lent(self, busid: str) -> Attachment | None:
        """The attachment of a device of this machine on a remote, in whatever state."""
        for attachment in self:
            if attachment.direction is Direction.EXPORT and attachment.device.busid == busid:
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
        self._check_free(attachment)
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
        entry = self._enter(link, self._crafts[attachment.direction](attachment, self))
        entry.first = attachment.state is State.CONNECTING
        entry.attached_before = not entry.first
        self._start(entry)

    def _check_free(self, attachment: Attachment) -> None:
        busid, remote = attachment.device.busid, attachment.remote
        if attachment.direction is Direction.IMPORT:
            other = self.at(remote, busid)
        else:
            other = self.lent(busid)
        if other is None:
            return
        self.poke(remote)
        if other.direction is Direction.IMPORT:
            text = f"{busid} of {remote} is {_doing(other)} here already."
        else:
            text = f"{busid} of this machine is {_doing(other)} on {other.remote} already."
        raise UsbipError(Code.ALREADY_ATTACHED, text)

    def take_over(self, link: Link, running: Running, session: Session) -> bool:
        """Go on with an attachment of an earlier process, over the session that still runs.

        False, and nothing is done, where its device is no longer attached.
        """
        attachment = running.attachment
        doing = self._crafts[attachment.direction](attachment, self)
        if not doing.take_over(running.where):
            return False
        attachment.state = State.ATTACHED
        doing.session = session
        entry = self._enter(link, doing)
        entry.first = False
        entry.attached_before = True
        self._start(entry)
        return True

    def _enter(self, link: Link, doing: Doing) -> Entry:
        attachment = doing.attachment
        steps = Steps(
            attach=lambda: self._attach(entry),
            ended=lambda: self._ended(entry),
            give_back=doing.give_back,
            now=self._now,
            changed=lambda: self.changed(attachment),
        )
        entry = Entry(attachment, link, doing, Life(attachment, steps, self._backoff()))
        self._entries[attachment.number] = entry
        return entry

    def _start(self, entry: Entry) -> None:
        for listener in self._listeners:
            listener.attachment_added(entry.attachment)
        if self._asleep:
            entry.life.sleep()
        self._group.create_task(self._live(entry), name=f"attachment {entry.attachment.number}")

    async def _live(self, entry: Entry) -> None:
        attachment = entry.attachment
        try:
            # The link stays open for as long as anything may have to be given back.
            with entry.link.kept():
                await entry.life.run()
        finally:
            del self._entries[attachment.number]
            entry.tell_detached()
            for listener in self._listeners:
                listener.attachment_removed(attachment)

    async def usable(self, attachment: Attachment) -> None:
        """Wait until it is usable here; cancelled before, it is detached.

        Raises :exc:`UsbipError`, once everything was given back, or ``GIVEN_BACK_SECONDS`` have
        passed.
        """
        entry = self._entries.get(attachment.number)
        if entry is None:
            raise UsbipError(Code.CANCELLED, "The attachment was detached before it was ready.")
        try:
            await entry.life.usable()
        except UsbipError:
            with suppress(TimeoutError):
                async with asyncio.timeout(GIVEN_BACK_SECONDS):
                    await entry.life.gone()
            raise
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
        self.changed(attachment)
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
            Running(e.attachment, e.doing.where)
            for e in self._entries.values()
            if e.doing.where is not None and e.attachment.state is State.ATTACHED
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
            match entry.attachment.state:
                case State.ATTACHED:
                    entry.doing.look()
                case State.WAITING if entry.doing.appeared_here():
                    entry.life.poke()

    async def statistics(self, attachment: Attachment) -> tuple[int, int]:
        """Bytes received from and sent to the device; raise :exc:`UsbipError`."""
        entry = self._entries.get(attachment.number)
        if entry is None or attachment.state is not State.ATTACHED:
            raise UsbipError(Code.NOT_ATTACHED, "The device is not attached at the moment.")
        return await entry.doing.statistics()

    def lost(self, attachment: Attachment, error: UsbipError) -> None:
        """The device of one attachment is gone."""
        entry = self._entries.get(attachment.number)
        if entry is not None:
            entry.doing.end(error)

    def changed(self, attachment: Attachment) -> None:
        """Something published of an attachment has changed."""
        for listener in self._listeners:
            listener.attachment_changed(attachment)

    async def _attach(self, entry: Entry) -> None:
        attachment = entry.attachment
        again, entry.first = not entry.first, False
        where = await entry.doing.attach(entry.link, again=again)
        attachment.attached_at = int(self._now() * 1_000_000)
        entry.tell_attached(where)

    async def _ended(self, entry: Entry) -> UsbipError:
        self.look()
        error = await asyncio.shield(entry.doing.ended)
        entry.tell_lost(error)
        return error


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
