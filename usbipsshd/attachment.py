# SPDX-License-Identifier: GPL-3.0-or-later
"""One attachment's life, as a state machine that no I/O can wedge.

The states and what leads from one to the next are in one table. Each step of
the way is a task that can be cancelled and has a time limit; giving back is
done whatever happened before, and ends whether or not the other side answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from enum import StrEnum

from usbipsshd.backoff import Backoff
from usbipsshd.device import Device
from usbipsshd.errors import Code, UsbipError
from usbipsshd.finish import ended, to_the_end

log = logging.getLogger(__name__)

RECOVER_SECONDS = 120.0
"""How long after sleep an attachment without ``keep`` is tried again."""


class State(StrEnum):
    """``State`` of ``org.usbipssh1.Attachment``; GONE is never published."""

    CONNECTING = "connecting"
    ATTACHED = "attached"
    WAITING = "waiting"
    DETACHING = "detaching"
    GONE = "gone"


class Direction(StrEnum):
    """``Direction`` of ``org.usbipssh1.Attachment``."""

    IMPORT = "import"
    """A remote's device is attached here."""
    EXPORT = "export"
    """A device of this machine is attached on a remote."""


class Event(StrEnum):
    """What happens to an attachment."""

    USABLE = "usable"
    ENDED = "ended"
    """It failed or was lost, and that is its end."""
    PAUSED = "paused"
    """It failed, was lost or must sleep, and will be tried again."""
    RETRY = "retry"
    DETACH = "detach"
    RELEASED = "released"


_NEXT = {
    (State.CONNECTING, Event.USABLE): State.ATTACHED,
    (State.CONNECTING, Event.ENDED): State.DETACHING,
    (State.CONNECTING, Event.PAUSED): State.WAITING,
    (State.CONNECTING, Event.DETACH): State.DETACHING,
    (State.ATTACHED, Event.ENDED): State.DETACHING,
    (State.ATTACHED, Event.PAUSED): State.WAITING,
    (State.ATTACHED, Event.DETACH): State.DETACHING,
    (State.WAITING, Event.RETRY): State.CONNECTING,
    (State.WAITING, Event.ENDED): State.DETACHING,
    (State.WAITING, Event.DETACH): State.DETACHING,
    (State.DETACHING, Event.RELEASED): State.GONE,
}


def next_state(state: State, event: Event) -> State:
    """Where ``event`` leads; an event that means nothing in ``state`` changes nothing."""
    return _NEXT.get((state, event), state)


@dataclass(slots=True)
class Attachment:
    """What is known, and published, of one attachment."""

    number: int
    remote: str
    """The remote's name as callers know it."""
    pattern: str
    device: Device
    owner_uid: int
    rebind: bool = True
    unmount: bool = True
    keep: bool = False
    persist: bool = False
    approved: Device | None = None
    """The device that its owner was authorized for; None while that is ``device`` itself. One that
    comes back by pattern may be another, and never one that can do more."""
    hub: int = 0
    """The number of the hub that made it; 0 for none."""
    private: int = 0
    """The number of the private link that it uses; 0 for the one that all share."""
    bound_to: str = ""
    """The caller's name on the bus if it lives no longer than that; empty if not."""
    input_allowed: bool = False
    """Whether it was approved for what can type or carry the network: nothing else may then take
    the approved device's place. Of an export, whether its device was such a one."""
    direction: Direction = Direction.IMPORT
    state: State = State.CONNECTING
    local_busid: str = ""
    """Of an import, where it is here while it is attached; of an export, the device's own."""
    busid_there: str = ""
    """Of an export, where it is on the remote while it is attached there."""
    port: int = 0
    device_nodes: list[str] = field(default_factory=list)
    attached_at: int = 0
    """Microseconds since the epoch; 0 before it was attached."""
    retry_at: int = 0
    """Microseconds since the epoch; 0 when no retry is planned."""
    last_error: tuple[str, str] = ("", "")

    @property
    def remote_busid(self) -> str:
        """The device's bus id on the remote; empty where it has none at the moment."""
        return self.device.busid if self.direction is Direction.IMPORT else self.busid_there


@dataclass(frozen=True, slots=True)
class Steps:
    """The I/O of an attachment's life; made for each one, replaced in tests."""

    attach: Callable[[], Coroutine[None, None, None]]
    """Does everything until the device is usable here; raises UsbipError."""
    ended: Callable[[], Coroutine[None, None, UsbipError]]
    """Waits until the device or its connection is gone and says why."""
    give_back: Callable[[], Awaitable[None]]
    """Undoes whatever was done; must bound its own time."""
    now: Callable[[], float]
    """Seconds since the epoch."""
    changed: Callable[[], None]
    """Something published has changed."""


async def _any(*events: asyncio.Event) -> None:
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
        await asyncio.wait(waits)


_DETACHED = UsbipError(Code.CANCELLED, "The attachment was detached before it was ready.")


class Life:
    """Runs one attachment from its first state to gone.

    It may begin in CONNECTING, in ATTACHED (taken over from an earlier process) or in WAITING
    (remembered from an earlier start).
    """

    def __init__(self, attachment: Attachment, steps: Steps, backoff: Backoff) -> None:
        self.attachment = attachment
        self._steps = steps
        self._backoff = backoff
        self._step: asyncio.Task[UsbipError] | None = None
        self._poked = asyncio.Event()
        self._detaching = False
        self._asleep = False
        self._abandoned = False
        self._slept = False
        self._recover_until = 0.0
        self._usable_since = 0.0
        self._idle = asyncio.Event()
        self._up = asyncio.Event()
        self._usable: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._gone = asyncio.Event()
        if attachment.state is not State.CONNECTING:
            self._usable.set_result(None)

    def _happened(self, event: Event) -> None:
        before = self.attachment.state
        self.attachment.state = next_state(before, event)
        if self.attachment.state is State.ATTACHED:
            self._up.set()
        else:
            self._up.clear()
        # The last state is told by the object's removal alone.
        if self.attachment.state not in (before, State.GONE):
            self._steps.changed()

    def _ending(self) -> bool:
        return self._detaching

    async def run(self) -> None:
        """Live; returns when everything was given back. Cancelling it detaches."""
        error = _DETACHED
        try:
            error = await self._run()
        finally:
            # Also when cancelled, and then nothing was given back yet.
            self._detaching = True
            self._happened(Event.ENDED)
            if not self._usable.done():
                self._usable.set_exception(error)
                self._usable.exception()
            try:
                await to_the_end(self._give_back())
            finally:
                self._happened(Event.RELEASED)
                self._gone.set()

    async def _run(self) -> UsbipError:
        if self.attachment.state is State.WAITING:
            await self._wait()
        while not self._ending():
            error = await self._interruptible(self._attached())
            if self._ending():
                return error
            if self._usable_since:
                # Trying for long is no good run.
                self._backoff.ran(self._steps.now() - self._usable_since)
                self._usable_since = 0.0
            if not self._goes_on(error):
                return error
            self._idle.clear()
            self._happened(Event.PAUSED)
            await to_the_end(self._give_back())
            await self._wait()
        return _DETACHED

    def _goes_on(self, error: UsbipError) -> bool:
        """Whether there will be another try."""
        if self._asleep or error is _DETACHED:
            # Nothing but sleep interrupts what is not being detached, however short it was.
            return True
        if not self._usable.done():
            return False
        recovering = self._slept and self._steps.now() < self._recover_until
        return self.attachment.keep or recovering

    async def _attached(self) -> UsbipError:
        """Be attached, from the first step to the last; return why that ended."""
        try:
            if self.attachment.state is not State.ATTACHED:
                await self._steps.attach()
                self.attachment.last_error = ("", "")
                self._happened(Event.USABLE)
                self._slept = False
                if not self._usable.done():
                    self._usable.set_result(None)
            self._usable_since = self._steps.now()
            error = await self._steps.ended()
        except UsbipError as failure:
            error = failure
        except Exception:
            log.exception("attachment %d failed", self.attachment.number)
            error = UsbipError(Code.FAILED, "The device could not be attached; see the log.")
        self.attachment.last_error = (error.dbus_name, error.message)
        return error

    async def _interruptible(self, step: Coroutine[None, None, UsbipError]) -> UsbipError:
        """Run a step until it is done or somebody wants something else."""
        task = self._step = asyncio.create_task(step)
        if self._detaching or self._asleep:
            task.cancel()
        try:
            await ended(task)
        finally:
            self._step = None
        if task.cancelled():
            return _DETACHED
        return task.result()

    async def _wait(self) -> None:
        """Wait for the time of the next try, or for a reason to try now."""
        attachment = self.attachment
        while not self._detaching:
            self._poked.clear()
            self._idle.set()
            delay = None if self._asleep else self._backoff.next()
            attachment.retry_at = 0
            if delay is not None:
                attachment.retry_at = int((self._steps.now() + delay) * 1_000_000)
            self._steps.changed()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._poked.wait()
            if not self._asleep:
                break
        attachment.retry_at = 0
        self._idle.clear()
        if not self._detaching:
            self._happened(Event.RETRY)

    async def _give_back(self) -> None:
        if self._abandoned:
            return
        try:
            await self._steps.give_back()
        except Exception:
            log.exception("attachment %d: giving back failed", self.attachment.number)

    def _interrupt(self) -> None:
        self._poked.set()
        if self._step is not None:
            self._step.cancel()

    def detach(self) -> None:
        """Begin to detach; does nothing if that has begun."""
        if not self._detaching:
            self._detaching = True
            self._happened(Event.DETACH)
            self._interrupt()

    def abandon(self) -> None:
        """End without giving anything back: another process takes over."""
        self._abandoned = True
        self.detach()

    @property
    def abandoned(self) -> bool:
        """Whether another process takes over."""
        return self._abandoned

    def sleep(self) -> None:
        """Begin to give the device back until :meth:`wake`; see :meth:`idle`."""
        if not self._asleep and not self._detaching:
            self._asleep = self._slept = True
            self._interrupt()

    def wake(self) -> None:
        """The machine is awake again: try now."""
        if self._asleep:
            self._asleep = False
            self._idle.clear()
            self._recover_until = self._steps.now() + RECOVER_SECONDS
            self.poke()

    def poke(self) -> None:
        """There is good news: if it waits, it tries now, and starts waiting at the bottom again."""
        self._backoff.reset()
        self._poked.set()

    def nudge(self) -> None:
        """If it waits, it tries now; if that fails, it waits for longer than before."""
        self._poked.set()

    async def idle(self) -> None:
        """Wait until it waits, with everything given back, or is gone."""
        await _any(self._idle, self._gone)

    async def settled(self) -> None:
        """Wait until it is attached, waits for another try, or is gone."""
        await _any(self._up, self._idle, self._gone)

    async def usable(self) -> None:
        """Wait until the device is usable here; raise :exc:`UsbipError` if that will not be."""
        await asyncio.shield(self._usable)

    async def gone(self) -> None:
        """Wait until everything was given back."""
        await self._gone.wait()
