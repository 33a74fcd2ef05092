# SPDX-License-Identifier: GPL-3.0-or-later
"""A virtual hub: every device of a remote that matches, now and whenever one appears."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field

from usbipsshd.attachment import Attachment, State
from usbipsshd.attachments import Attachments
from usbipsshd.backoff import GOOD_RUN, Backoff
from usbipsshd.chooser import Chooser, attachable
from usbipsshd.control import Session
from usbipsshd.device import Device
from usbipsshd.errors import Code, UsbipError
from usbipsshd.finish import ended, to_the_end
from usbipsshd.link import Link
from usbipsshd.pattern import Pattern
from usbipsshd.remoteusb import RemoteUsb

log = logging.getLogger(__name__)

MAX_TRIES = 6
"""After so many failures in a row a device is left alone until it is plugged in anew."""

Plug = tuple[str, int]
"""Bus id and device number: another device number means that it was plugged in anew."""


@dataclass(slots=True)
class Hub:
    """What is known, and published, of one hub."""

    number: int
    remote: str
    pattern: str
    owner_uid: int
    persist: bool = False
    unmount: bool = True
    rebind: bool = True
    private: int = 0
    """The number of the private link that it uses; 0 for the one that all share."""
    bound_to: str = ""
    """The caller's name on the bus if it lives no longer than that; empty if not."""
    state: State = State.CONNECTING
    """ATTACHED while it watches the remote."""
    attachments: list[int] = field(default_factory=list)
    retry_at: int = 0
    """Microseconds since the epoch; 0 when no retry is planned."""
    last_error: tuple[str, str] = ("", "")
    aside: list[Plug] = field(default_factory=list)
    """Left alone until plugged in anew."""


@dataclass(slots=True)
class _Trouble:
    backoff: Backoff
    tries: int = 0
    retry_at: float = 0.0
    aside: bool = False


class HubLife:
    """Runs one hub. Devices are attachments of their own; each failing one has its own waits."""

    def __init__(
        self,
        hub: Hub,
        link: Link,
        *,
        attachments: Attachments,
        chooser: Chooser,
        now: Callable[[], float],
        changed: Callable[[], None],
        backoff: Callable[[], Backoff] = Backoff,
        restored: bool = False,
    ) -> None:
        self.hub = hub
        self.link = link
        self._attachments = attachments
        self._chooser = chooser
        self._pattern = Pattern.parse(hub.pattern)
        self._now = now
        self._changed = changed
        self._new_backoff = backoff
        self._backoff = backoff()
        self._trouble = {p: _Trouble(backoff(), aside=True) for p in hub.aside}
        self._cut_off: set[int] = set()
        self._poked = asyncio.Event()
        self._lost: UsbipError | None = None
        self._looked_at = 0.0
        """When it last looked at what is there, in seconds since the epoch."""
        self._asleep = False
        self._detaching = False
        self._abandoned = False
        self._detached_by: int | None = None
        self._step: asyncio.Task[UsbipError | None] | None = None
        self._watching: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if restored:
            self._watching.set_result(None)
        self._gone = asyncio.Event()

    def _set(self, state: State, retry_at: float = 0.0) -> None:
        self.hub.state = state
        self.hub.retry_at = int(retry_at * 1_000_000)
        self._changed()

    async def run(self) -> None:
        """Watch the remote until :meth:`detach`; then give everything back."""
        error: UsbipError | None = None
        try:
            while not self._detaching:
                if not self._asleep:
                    self._set(State.CONNECTING)
                    error = await self._interruptible(self._watch())
                    if error is not None:
                        self.hub.last_error = (error.dbus_name, error.message)
                        if not self._watching.done():
                            break
                await self._wait()
        finally:
            self._detaching = True
            if not self._watching.done():
                self._watching.set_exception(
                    error or UsbipError(Code.CANCELLED, "The hub was detached before it was ready.")
                )
                self._watching.exception()
            self._set(State.DETACHING)
            try:
                if not self._abandoned:
                    await to_the_end(self._give_back())
            finally:
                self._gone.set()

    async def _interruptible(
        self, step: Coroutine[None, None, UsbipError | None]
    ) -> UsbipError | None:
        task = self._step = asyncio.create_task(step)
        try:
            await ended(task)
        finally:
            self._step = None
        return None if task.cancelled() else task.result()

    async def _watch(self) -> UsbipError | None:
        """Watch over one connection; return why it ended."""
        try:
            async with self.link.use() as session:
                started = self._now()
                self._lost = None
                while self._lost is None and not session.gone:
                    self._poked.clear()
                    await self._reconcile(session)
                    if self.hub.state is not State.ATTACHED:
                        self.hub.last_error = ("", "")
                        self._set(State.ATTACHED)
                    if not self._watching.done():
                        self._watching.set_result(None)
                    await self._until(self._next_try())
                self._backoff.ran(self._now() - started)
                return self._lost
        except UsbipError as failure:
            return failure
        except Exception:
            log.exception("hub %d failed", self.hub.number)
            return UsbipError(Code.FAILED, "The hub could not go on; see the log.")

    async def _until(self, when: float | None) -> None:
        delay = None if when is None else max(0.0, when - self._now())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay):
                await self._poked.wait()

    def _next_try(self) -> float | None:
        # What was due at the last look was tried then, or is attached otherwise: no time for it.
        times = [t.retry_at for t in self._trouble.values() if t.retry_at > self._looked_at]
        return min(times, default=None)

    async def _reconcile(self, session: Session) -> None:
        """Attach what is there and should be."""
        self._looked_at = self._now()
        usb = RemoteUsb(session, self.hub.remote)
        devices = [d for d in await usb.devices() if attachable(d)]
        there = {_plug(d) for d in devices}
        self._trouble = {p: t for p, t in self._trouble.items() if p in there}
        self._note_aside()
        for device in await self._chooser.select(self._pattern, devices):
            if self._attachments.at(self.hub.remote, device.busid) is None and self._due(device):
                await self._begin(usb, device)

    def _due(self, device: Device) -> bool:
        trouble = self._trouble.get(_plug(device))
        return trouble is None or (not trouble.aside and trouble.retry_at <= self._looked_at)

    async def _begin(self, usb: RemoteUsb, device: Device) -> None:
        hub = self.hub
        try:
            described = await usb.describe(device.busid)
            attachment = Attachment(
                self._attachments.number(),
                hub.remote,
                device.busid,
                described,
                hub.owner_uid,
                unmount=hub.unmount,
                rebind=hub.rebind,
                hub=hub.number,
                private=hub.private,
                input_allowed=True,
            )
            self._attachments.begin(self.link, attachment)
        except UsbipError as error:
            self._failed(_plug(device), error.message)

    def _failed(self, plug: Plug, why: str) -> None:
        trouble = self._trouble.setdefault(plug, _Trouble(self._new_backoff()))
        trouble.tries += 1
        trouble.retry_at = self._now() + trouble.backoff.next()
        if trouble.tries >= MAX_TRIES and not trouble.aside:
            trouble.aside, trouble.retry_at = True, 0.0
            self._note_aside()
            log.warning(
                "%s of %s is left alone until it is plugged in anew: %s",
                plug[0], self.hub.remote, why,
            )  # fmt: skip

    def _note_aside(self) -> None:
        aside = sorted(p for p, t in self._trouble.items() if t.aside)
        if aside != self.hub.aside:
            self.hub.aside = aside
            self._changed()

    async def _wait(self) -> None:
        while not self._detaching:
            self._poked.clear()
            retry_at = None if self._asleep else self._now() + self._backoff.next()
            self._set(State.WAITING, retry_at or 0.0)
            await self._until(retry_at)
            if not self._asleep:
                return

    async def _give_back(self) -> None:
        async with asyncio.TaskGroup() as group:
            for attachment in self._attachments:
                if attachment.hub == self.hub.number:
                    group.create_task(self._attachments.detach(attachment, self._detached_by))

    # What others tell it

    def added(self, attachment: Attachment) -> None:
        """One of its attachments began."""
        self.hub.attachments.append(attachment.number)
        self._changed()

    def removed(self, attachment: Attachment) -> None:
        """One of its attachments is gone: see whether it is to be tried again."""
        if attachment.number in self.hub.attachments:
            self.hub.attachments.remove(attachment.number)
        self._changed()
        plug = _plug(attachment.device)
        trouble = self._trouble.get(plug)
        cut_off = attachment.number in self._cut_off
        self._cut_off.discard(attachment.number)
        if trouble is None or not trouble.aside:
            lasted = self._now() - attachment.attached_at / 1_000_000
            if attachment.attached_at and lasted >= GOOD_RUN:
                # It worked; what ended it was no failure to attach.
                self._trouble.pop(plug, None)
            if not cut_off:
                self._failed(plug, attachment.last_error[1])
        self._poked.set()

    def leave_alone(self, attachment: Attachment) -> None:
        """Somebody detached this one: not again until it is plugged in anew."""
        trouble = self._trouble.setdefault(_plug(attachment.device), _Trouble(self._new_backoff()))
        trouble.aside, trouble.retry_at = True, 0.0
        self._note_aside()

    def lost(self, error: UsbipError) -> None:
        """The connection is gone; its devices' failing now says nothing of them."""
        self._lost = error
        self._cut_off.update(self.hub.attachments)
        self._poked.set()

    def poke(self) -> None:
        """There is good news: look now."""
        self._backoff.reset()
        self._poked.set()

    def nudge(self) -> None:
        """Look now; if that fails, it waits for longer than before."""
        self._poked.set()

    def sleep(self) -> None:
        """Stop watching until :meth:`wake`."""
        self._asleep = True
        self._interrupt()

    def wake(self) -> None:
        """Watch again."""
        self._asleep = False
        self.poke()

    def _interrupt(self) -> None:
        self._poked.set()
        if self._step is not None:
            self._step.cancel()

    def detach(self, by: int | None = None) -> None:
        """Begin to give everything back, for the uid ``by``; does nothing if that has begun."""
        if not self._detaching:
            self._detaching = True
            self._detached_by = by
            self._interrupt()

    def abandon(self) -> None:
        """End without giving anything back: another process takes over."""
        self._abandoned = True
        self.detach()

    async def watching(self) -> None:
        """Wait until it watches the remote; raise :exc:`UsbipError` if that will not be."""
        await asyncio.shield(self._watching)

    async def gone(self) -> None:
        """Wait until everything was given back."""
        await self._gone.wait()


def _plug(device: Device) -> Plug:
    return (device.busid, device.devnum)
