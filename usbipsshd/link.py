# SPDX-License-Identifier: GPL-3.0-or-later
"""The connection to one remote: opened on demand, shared, closed when idle."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from enum import StrEnum

from usbipsshd.control import Session, SessionFailure
from usbipsshd.errors import Code, UsbipError
from usbipsshd.explain import explain
from usbipsshd.launcher import Launcher
from usbipsshd.messages import Packet, error_from_json, get_busid, get_object
from usbipsshd.remotes import Remote, is_fingerprint
from usbipsshd.seqpacket import SeqPacket
from usbipsshd.way import Way, Ways

log = logging.getLogger(__name__)

OPEN_SECONDS = 22.0
"""For starting the session, connecting and logging in; the session gives up sooner by itself."""
CLOSE_SECONDS = 25.0
IDLE_SECONDS = 60.0


class LinkState(StrEnum):
    """``State`` of ``org.usbipssh1.Remote``."""

    IDLE = "idle"
    CONNECTING = "connecting"
    CONNECTED = "connected"
    UNREACHABLE = "unreachable"


@dataclass(slots=True)
class LinkStatus:
    """What is published of a link."""

    state: LinkState = LinkState.IDLE
    offered_host_key: str = ""
    last_error: tuple[str, str] = ("", "")
    """D-Bus error name and sentence of the last failed attempt; empty after a good one."""


@dataclass(frozen=True, slots=True)
class LinkHooks:
    """Whom a link tells; called from the event loop."""

    changed: Callable[[], None]
    """The status changed."""
    devices_changed: Callable[[], None]
    """Something was plugged in or out there."""
    released: Callable[[str, UsbipError], None]
    """An export ended by itself: its bus id there, and why."""
    returned: Callable[[str, UsbipError], None]
    """A device of this machine left the remote by itself: its bus id here, and why."""
    lost: Callable[[UsbipError], None]
    """The connection ended by itself."""
    opened: Callable[[int], None]
    """It is connected; the descriptor of its control socket."""
    ended: Callable[[], None]
    """The session's control socket is of no use any more."""
    unused: Callable[[], None] = lambda: None
    """Nobody uses it now."""


class Link:
    """The way to one remote. Its connection is a task in ``group``."""

    def __init__(
        self,
        remote: Remote,
        *,
        group: asyncio.TaskGroup,
        launcher: Launcher,
        ways: Ways,
        hooks: LinkHooks,
        idle_seconds: float = IDLE_SECONDS,
        private: int = 0,
        check_room: Callable[[], None] = lambda: None,
    ) -> None:
        """``check_room`` raises :exc:`UsbipError` when no further connection may be made."""
        self.remote = remote
        self.private = private
        """The number of a connection that is one caller's own; 0 for the one that all share.
        Nothing is published of a private one."""
        self.status = LinkStatus()
        self._group = group
        self._launcher = launcher
        self._ways = ways
        self._hooks = hooks
        self._idle_seconds = idle_seconds
        self._check_room = check_room
        self._users = 0
        self._task: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[Session] | None = None
        self._idle = asyncio.Event()
        self._abandoned = False
        self._idle_timer: asyncio.TimerHandle | None = None

    @property
    def connected(self) -> bool:
        """Whether there is a connection, or one is being made."""
        return self._task is not None

    @property
    def in_use(self) -> bool:
        """Whether there is a connection, or somebody waits for one."""
        return self._users > 0 or self._task is not None

    @asynccontextmanager
    async def use(self) -> AsyncIterator[Session]:
        """A connected session, kept open while the context lasts; raise :exc:`UsbipError`.

        Everyone who waits shares one attempt; it is abandoned when the last of them leaves.
        """
        with self.kept():
            yield await self._session()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep a connection that is there from being closed for idleness."""
        self._users += 1
        self._stop_idle_timer()
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._nobody_left()
                if not self._abandoned:
                    self._hooks.unused()

    async def _session(self) -> Session:
        while True:
            if self._task is None:
                self._check_room()
                self._start(self._launcher.session())
            elif self._idle.is_set():
                # It is being closed for idleness; the next one starts when it has ended.
                await asyncio.wait([self._task])
                continue
            assert self._ready is not None
            session = await asyncio.shield(self._ready)
            if not session.gone:
                return session
            if self._task is not None:
                await asyncio.wait([self._task])

    def _start(
        self, channel: AbstractAsyncContextManager[SeqPacket], session: Session | None = None
    ) -> None:
        self._idle.clear()
        self._ready = asyncio.get_running_loop().create_future()
        self._task = self._group.create_task(
            self._connection(channel, self._ready, session), name=f"link {self.remote.name}"
        )

    def take_over(self, channel: SeqPacket) -> Session:
        """Go on with a session of an earlier process, which is connected."""
        session = Session(channel, self.remote.name, self._on_event)
        self._start(closing(channel), session)
        return session

    def _nobody_left(self) -> None:
        if self._task is None:
            return
        if self._ready is not None and not self._ready.done():
            # Whoever comes now waits for its end and starts anew.
            self._idle.set()
            self._task.cancel()
            return
        loop = asyncio.get_running_loop()
        self._idle_timer = loop.call_later(self._idle_seconds, self._idle.set)

    def _stop_idle_timer(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None

    def change(self, remote: Remote) -> None:
        """Its settings have changed: they are used from the next connection on.

        One that is there stays for as long as somebody uses it.
        """
        self.remote = remote
        if self._task is not None and not self._users:
            self._idle.set()
        self.forget_trouble()

    def forget_trouble(self) -> None:
        """A host key was pinned: what stood in the way of a connection may be gone."""
        if self._task is None:
            self.status = LinkStatus()
            self._hooks.changed()

    def abandon_soon(self) -> None:
        """Say nothing more to the session, however this ends: another process takes it over."""
        self._abandoned = True
        self._stop_idle_timer()

    async def abandon(self) -> None:
        """End without a word to the session: another process takes it over."""
        self.abandon_soon()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def close(self) -> None:
        """End the connection, ``CLOSE_SECONDS`` at most; its exports are given back."""
        self._stop_idle_timer()
        self._idle.set()
        task = self._task
        if task is None:
            return
        if self._ready is not None and not self._ready.done():
            task.cancel()
        _, pending = await asyncio.wait([task], timeout=CLOSE_SECONDS)
        if pending:
            task.cancel()
            await asyncio.wait([task])

    async def _connection(
        self,
        launched: AbstractAsyncContextManager[SeqPacket],
        ready: asyncio.Future[Session],
        running: Session | None,
    ) -> None:
        error = UsbipError(Code.CANCELLED, "Cancelled.")
        state = LinkState.IDLE
        self._set(LinkState.CONNECTING)
        try:
            way = None if running is not None else await self._ways.to(self.remote)
            async with launched as channel:
                session = running or Session(channel, self.remote.name, self._on_event)
                error = await self._converse(session, channel, ready, way)
            if error.code is not Code.CANCELLED:
                state = LinkState.UNREACHABLE
        except UsbipError as failure:
            error, state = failure, LinkState.UNREACHABLE
        except OSError as failure:
            error = UsbipError(Code.FAILED, f"This machine cannot connect: {failure.strerror}.")
            state = LinkState.UNREACHABLE
        finally:
            self._task = None
            self._stop_idle_timer()
            if not ready.done():
                ready.set_exception(error)
                ready.exception()
            elif state is LinkState.UNREACHABLE:
                self._hooks.lost(error)
            if not self._abandoned:
                self._hooks.ended()
            self._set(state, error if state is LinkState.UNREACHABLE else None)

    async def _converse(
        self,
        session: Session,
        channel: SeqPacket,
        ready: asyncio.Future[Session],
        way: Way | None,
    ) -> UsbipError:
        """Open the connection by ``way``, unless it is there, and stay until it ends; return why
        it did, Cancelled for idleness.
        """
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(session.run())
            try:
                if way is not None:
                    await self._open(session, way)
                self._hooks.opened(channel.fileno())
                ready.set_result(session)
                self._set(LinkState.CONNECTED)
                idle = group.create_task(self._idle.wait())
                await asyncio.wait([reading, idle], return_when=asyncio.FIRST_COMPLETED)
                idle.cancel()
                if reading.done():
                    return self._explain(session.ended)
                await session.request("close", seconds=CLOSE_SECONDS)
            except SessionFailure as failure:
                return self._explain(failure)
            finally:
                session.close()
        return UsbipError(Code.CANCELLED, "Cancelled.")

    async def _open(self, session: Session, way: Way) -> None:
        async with way.offered() as fds:
            await session.request(
                "open", seconds=OPEN_SECONDS, fds=fds, **way.fields, sudo=self.remote.sudo
            )

    def _explain(self, failure: SessionFailure) -> UsbipError:
        unresolved = (failure.code, failure.detail) == (Code.CONNECTION_FAILED, "no such host")
        if unresolved and self.remote.bare:
            return UsbipError(
                Code.UNKNOWN_REMOTE,
                f"No remote is called {self.remote.address.host} here, "
                "and no host of that name is known.",
            )
        if failure.code is Code.SSH_AUTH_FAILED:
            return self._ways.refused(self.remote.name)
        error = explain(self.remote.name, failure.code, failure.detail)
        if failure.code in (Code.HOST_KEY_UNKNOWN, Code.HOST_KEY_MISMATCH):
            # What is published is a fingerprint, whatever a session says.
            offered = failure.detail if is_fingerprint(failure.detail) else ""
            self.status.offered_host_key = offered
        return error

    def _on_event(self, packet: Packet) -> None:
        match packet["event"]:
            case "changed":
                self._hooks.devices_changed()
            case "released":
                self._hooks.released(get_busid(packet), self._why_released(packet))
            case "returned":
                self._hooks.returned(get_busid(packet), self._why_returned())

    def _why_returned(self) -> UsbipError:
        return UsbipError(
            Code.DEVICE_FAILED,
            f"The device left {self.remote.name}: it was unplugged here, or detached there.",
        )

    def _why_released(self, packet: Packet) -> UsbipError:
        if packet.get("error") is None:
            return UsbipError(
                Code.DEVICE_FAILED,
                f"{self.remote.name} ended the device's connection: it was unplugged there, or "
                "taken by another program.",
            )
        code, detail = error_from_json(get_object(packet, "error"))
        return explain(self.remote.name, code, detail)

    def _set(self, state: LinkState, error: UsbipError | None = None) -> None:
        self.status.state = state
        if state is LinkState.CONNECTED:
            self.status.offered_host_key = ""
            self.status.last_error = ("", "")
        elif error is not None:
            self.status.last_error = (error.dbus_name, error.message)
        self._hooks.changed()


@asynccontextmanager
async def closing(channel: SeqPacket) -> AsyncIterator[SeqPacket]:
    """The channel, closed in the end."""
    try:
        yield channel
    finally:
        channel.close()
