# SPDX-License-Identifier: GPL-3.0-or-later
"""Has this machine's usbip-host take its own devices, and gives them back.

The same agent.sh does it that does it on a remote, in a process of its own (the root process may
neither unmount nor load a module): what it has learned of kernels counts here, too. It is started
for the first device and ends with the last one. Its socket outlives this process as a session's
does; when nobody holds it any more, the agent gives everything back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import count
from random import randrange

from usbipsshd.device import Device
from usbipsshd.errors import Code, UsbipError
from usbipsshd.explain import explain
from usbipsshd.launcher import AgentLauncher
from usbipsshd.links import SessionKeeper

log = logging.getLogger(__name__)

DESCRIPTOR_NAME = "here"
"""Under which name the agent's socket is kept for the process after this one."""
HELLO_SECONDS = 15.0
BIND_SECONDS = 45.0
"""Also for file systems that take their time."""
RELEASE_SECONDS = 30.0
END_SECONDS = 25.0
PING_SECONDS = 60.0
MAX_LINE = 8192
MACHINE = "this machine"

_REPLY = re.compile(r"([0-9]{1,9}) (?:(ok)|fail ([A-Za-z]{1,40}) ?(.*))", re.ASCII)


class Here:
    """The agent of this machine. Requests run side by side, those for one device in turn."""

    def __init__(
        self, *, group: asyncio.TaskGroup, launcher: AgentLauncher, keeper: SessionKeeper
    ) -> None:
        self._group = group
        self._launcher = launcher
        self._keeper = keeper
        self._bound: set[str] = set()
        self._orphans: set[str] = set()
        """Those of them whose agent is gone before it gave them back."""
        self._lost: list[Callable[[str, UsbipError], None]] = []
        self._locks: dict[str, asyncio.Lock] = {}
        self._waiting: dict[int, asyncio.Future[UsbipError | None]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._ready: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._over = asyncio.Event()
        self._abandoned = False
        # Not from 1: an answer that an earlier process waited for must fit no request of ours.
        self._tags = count(randrange(1, 1 << 29))  # noqa: S311 - no secret

    def listen(self, lost: Callable[[str, UsbipError], None]) -> None:
        """Call ``lost`` for each device that is no longer looked after, and why."""
        self._lost.append(lost)

    def holds(self, busid: str) -> bool:
        """Whether it was asked to take the device, and not yet to give it back."""
        return busid in self._bound

    async def bind(self, device: Device, *, unmount: bool) -> None:
        """Give a device to usbip-host, if it is still that one.

        Cancelled, it is still done; :meth:`release` waits for that. Raises :exc:`UsbipError`
        (DeviceBusy, DeviceChanged, DeviceNotFound, ModuleUnavailable, …), and then has undone it.
        """
        line = (
            f"bind {device.busid} {device.vendor_id:04x} {device.product_id:04x} "
            f"{device.busnum} {device.devnum} {int(unmount)}"
        )
        self._bound.add(device.busid)
        task = self._group.create_task(self._bind(device.busid, line), name=f"bind {device.busid}")
        error = await asyncio.shield(task)
        if error is not None:
            raise error

    async def _bind(self, busid: str, line: str) -> UsbipError | None:
        async with self._device(busid):
            try:
                await self._ask(line, BIND_SECONDS)
            except UsbipError as error:
                if error.code is not Code.TIMED_OUT:
                    self._forget(busid)
                return error
        return None

    async def release(self, busid: str, *, rebind: bool) -> None:
        """End its connection and give it back to its driver, or to none; nothing to do is no error.

        Raises :exc:`UsbipError`.
        """
        async with self._device(busid):
            if busid not in self._bound:
                return
            try:
                # The next agent finds what one before it left, and does not count it as its own.
                orphan = busid in self._orphans
                line = f"unbind {busid}" if orphan else f"release {busid} {int(rebind)}"
                await self._ask(line, RELEASE_SECONDS)
            finally:
                self._forget(busid)

    def _forget(self, busid: str) -> None:
        self._bound.discard(busid)
        self._orphans.discard(busid)
        if not self._bound:
            self._over.set()

    @asynccontextmanager
    async def _device(self, busid: str) -> AsyncIterator[None]:
        async with self._locks.setdefault(busid, asyncio.Lock()):
            yield

    async def _ask(self, line: str, seconds: float) -> None:
        tag = next(self._tags)
        future: asyncio.Future[UsbipError | None] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(seconds):
                await self._connected()
                self._waiting[tag] = future
                self._write(f"{tag} {line}\n")
                error = await future
        except TimeoutError:
            raise _explained(Code.TIMED_OUT) from None
        finally:
            self._waiting.pop(tag, None)
        if error is not None:
            raise error

    def _write(self, line: str) -> None:
        if self._writer is not None:
            self._writer.write(line.encode("ascii"))

    async def _connected(self) -> None:
        while True:
            if self._task is None:
                self._start(self._launcher.agent(), running=False)
            elif self._over.is_set():
                # It is ending; the next one starts when it has.
                await asyncio.wait([self._task])
                continue
            assert self._ready is not None
            await asyncio.shield(self._ready)
            return

    def take_over(self, fd: int, busids: Iterable[str]) -> None:
        """Go on with the agent of an earlier process, which has taken these devices."""
        try:
            sock = socket.socket(fileno=fd)
        except OSError:
            return
        self._bound |= set(busids)
        self._start(_closing(sock), running=True)
        if not self._bound:
            self._over.set()

    def _start(
        self, launched: AbstractAsyncContextManager[socket.socket], *, running: bool
    ) -> None:
        self._over = asyncio.Event()
        self._ready = asyncio.get_running_loop().create_future()
        self._task = self._group.create_task(
            self._run(launched, self._ready, running=running), name="agent here"
        )

    async def _run(
        self,
        launched: AbstractAsyncContextManager[socket.socket],
        ready: asyncio.Future[None],
        *,
        running: bool,
    ) -> None:
        error = _explained(Code.FAILED)
        try:
            async with launched as sock:
                sock.setblocking(False)
                self._keeper.store(DESCRIPTOR_NAME, sock.fileno())
                reader, writer = await asyncio.open_connection(sock=sock, limit=MAX_LINE)
                try:
                    if not running:
                        await _greeting(reader)
                    self._writer = writer
                    ready.set_result(None)
                    await self._converse(reader)
                    await self._end(reader, writer)
                finally:
                    self._writer = None
                    writer.close()
        except UsbipError as failure:
            error = failure
        except (OSError, TimeoutError) as failure:
            log.warning("the agent of this machine: %s", failure)
        finally:
            self._task = None
            if not self._abandoned:
                self._keeper.unstore(DESCRIPTOR_NAME)
                self._orphan()
            if not ready.done():
                ready.set_exception(error)
                ready.exception()
            for future in self._waiting.values():
                if not future.done():
                    future.set_result(error)

    def _orphan(self) -> None:
        """It has ended; what is left of it, or the next one, gives back what it had."""
        lost = self._bound - self._orphans
        self._orphans |= lost
        error = UsbipError(
            Code.DEVICE_FAILED, "What looks after the device on this machine has ended; try again."
        )
        for busid in sorted(lost):
            for tell in self._lost:
                tell(busid, error)

    async def _converse(self, reader: asyncio.StreamReader) -> None:
        """Read answers until it ends, or until nobody needs it any more."""
        reading = asyncio.create_task(self._read(reader))
        over = asyncio.create_task(self._until_over())
        try:
            await asyncio.wait([reading, over], return_when=asyncio.FIRST_COMPLETED)
        finally:
            reading.cancel()
            over.cancel()
            await asyncio.gather(reading, over, return_exceptions=True)

    async def _until_over(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PING_SECONDS):
                    await self._over.wait()
                    return
            self._write("ping\n")

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            # An earlier process may have read the beginning of the first one.
            match = _REPLY.fullmatch(line.decode("utf-8", "replace").rstrip("\n"))
            future = self._waiting.get(int(match[1])) if match else None
            if match is None or future is None or future.done():
                continue
            future.set_result(None if match[2] else _failure(match[3], match[4]))

    async def _end(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """End its input, and wait until it has given everything back."""
        self._writer = None
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(END_SECONDS):
                # Not only closed: whoever keeps the socket for us has it, too.
                writer.write_eof()
                while await reader.read(MAX_LINE):
                    pass

    async def close(self) -> None:
        """End the agent; it gives back whatever it still has."""
        self._over.set()
        if self._task is not None:
            await asyncio.wait([self._task])

    def abandon_soon(self) -> None:
        """Say nothing more to it, however this ends: another process takes it over."""
        self._abandoned = True

    async def abandon(self) -> None:
        """End without a word to it: another process takes it over."""
        self.abandon_soon()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])


async def _greeting(reader: asyncio.StreamReader) -> None:
    """Wait until it has started: nothing may be sent before."""
    async with asyncio.timeout(HELLO_SECONDS):
        line = await reader.readline()
    if not line.startswith(b"hello 1 "):
        raise _explained(Code.FAILED)


def _failure(code: str, detail: str) -> UsbipError:
    try:
        return _explained(Code(code), detail)
    except ValueError:
        return _explained(Code.FAILED)


def _explained(code: Code, detail: str = "") -> UsbipError:
    error = explain(MACHINE, code, detail)
    return UsbipError(error.code, error.message[0].upper() + error.message[1:])


@asynccontextmanager
async def _closing(sock: socket.socket) -> AsyncIterator[socket.socket]:
    try:
        yield sock
    finally:
        sock.close()
