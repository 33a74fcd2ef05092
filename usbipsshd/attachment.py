# SPDX-License-Identifier: GPL-3.0-or-later
"""One attachment's life, as a state machine that no I/O can wedge.

The states and what leads from one to the next are in one table. Each step of
the way is a task that can be cancelled and has a time limit; giving back is
done whatever happened before, once, and ends whether or not the other side answers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import StrEnum

from usbipsshd.device import Device
from usbipsshd.errors import Code, UsbipError

log = logging.getLogger(__name__)


class State(StrEnum):
    """``State`` of ``org.usbipssh1.Attachment``; GONE is never published."""

    CONNECTING = "connecting"
    ATTACHED = "attached"
    WAITING = "waiting"
    DETACHING = "detaching"
    GONE = "gone"


class Event(StrEnum):
    """What happens to an attachment."""

    USABLE = "usable"
    FAILED = "failed"
    LOST = "lost"
    DETACH = "detach"
    RELEASED = "released"


_NEXT = {
    (State.CONNECTING, Event.USABLE): State.ATTACHED,
    (State.CONNECTING, Event.FAILED): State.DETACHING,
    (State.CONNECTING, Event.LOST): State.DETACHING,
    (State.CONNECTING, Event.DETACH): State.DETACHING,
    (State.ATTACHED, Event.LOST): State.DETACHING,
    (State.ATTACHED, Event.DETACH): State.DETACHING,
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
    state: State = State.CONNECTING
    local_busid: str = ""
    port: int = 0
    device_nodes: list[str] = field(default_factory=list)
    attached_at: int = 0
    """Microseconds since the epoch; 0 before it was attached."""
    last_error: tuple[str, str] = ("", "")


class Steps:
    """The I/O of an attachment's life; made for each one, replaced in tests."""

    def __init__(
        self,
        attach: Callable[[], Awaitable[None]],
        ended: Callable[[], Awaitable[UsbipError]],
        give_back: Callable[[], Awaitable[None]],
    ) -> None:
        self.attach = attach
        """Does everything until the device is usable here; raises UsbipError."""
        self.ended = ended
        """Waits until the device or its connection is gone and says why."""
        self.give_back = give_back
        """Undoes whatever was done; must bound its own time."""


class Life:
    """Runs one attachment from connecting to gone."""

    def __init__(
        self, attachment: Attachment, steps: Steps, changed: Callable[[Attachment], None]
    ) -> None:
        self.attachment = attachment
        self._steps = steps
        self._changed = changed
        self._running: asyncio.Task[None] | None = None
        self._usable: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._gone = asyncio.Event()

    def _happened(self, event: Event) -> None:
        before = self.attachment.state
        self.attachment.state = next_state(before, event)
        # The last state is told by the object's removal alone.
        if self.attachment.state not in (before, State.GONE):
            self._changed(self.attachment)

    async def run(self) -> None:
        """Live; returns when everything was given back. Cancelling it detaches."""
        self._running = asyncio.create_task(self._live())
        if self.attachment.state is not State.CONNECTING:
            self._running.cancel()
        try:
            await asyncio.wait([self._running])
        except asyncio.CancelledError:
            self._stop()
            raise
        finally:
            failure = await self._settle(self._running)
            if not self._usable.done():
                self._usable.set_exception(failure)
                self._usable.exception()
            await self._give_back()
            self._happened(Event.RELEASED)
            self._gone.set()

    async def _live(self) -> None:
        await self._steps.attach()
        self._happened(Event.USABLE)
        self._usable.set_result(None)
        raise await self._steps.ended()

    async def _settle(self, task: asyncio.Task[None]) -> UsbipError:
        """Why the task ended, told to whoever watches."""
        await asyncio.wait([task])
        if task.cancelled():
            return UsbipError(Code.CANCELLED, "The attachment was detached before it was ready.")
        error = task.exception()
        if not isinstance(error, UsbipError):
            log.error("attachment %d failed", self.attachment.number, exc_info=error)
            error = UsbipError(Code.FAILED, "The device could not be attached; see the log.")
        self.attachment.last_error = (error.dbus_name, error.message)
        self._happened(Event.LOST if self._usable.done() else Event.FAILED)
        return error

    async def _give_back(self) -> None:
        try:
            await self._steps.give_back()
        except Exception:
            log.exception("attachment %d: giving back failed", self.attachment.number)

    def _stop(self) -> None:
        self._happened(Event.DETACH)
        if self._running is not None:
            self._running.cancel()

    def detach(self) -> None:
        """Begin to detach; does nothing if that has begun."""
        if self.attachment.state not in (State.DETACHING, State.GONE):
            self._stop()

    async def usable(self) -> None:
        """Wait until the device is usable here; raise :exc:`UsbipError` if that will not be."""
        await asyncio.shield(self._usable)

    async def gone(self) -> None:
        """Wait until everything was given back."""
        await self._gone.wait()
