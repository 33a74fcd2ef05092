# SPDX-License-Identifier: GPL-3.0-or-later
"""Starts agent.sh on the remote and asks it things.

The agent is the only thing that ever runs there. Its text is sent over one ssh channel; the
command that starts it is fixed and holds nothing that came from a caller or a remote. What
it says is read by :mod:`usbipsshd.session.replies`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import shlex
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import asyncssh

from usbipsshd.device import Device
from usbipsshd.errors import Code
from usbipsshd.session.failure import Failure
from usbipsshd.session.replies import (
    MAX_LINE,
    BadReply,
    Hello,
    Reply,
    parse_hello,
    split_tag,
)
from usbipsshd.session.script import travelling
from usbipsshd.text import clean

log = logging.getLogger(__name__)

HELLO_LIMIT = 15.0
READ_LIMIT = 20.0
BIND_LIMIT = 25.0
CONNECT_LIMIT = 15.0
RELEASE_LIMIT = 30.0
RESET_LIMIT = 40.0
END_LIMIT = 15.0
"""Seconds for a start, a listing, a bind, a connect, a release, a reset, the end."""
PORT_LIMIT = 35.0
ATTACH_LIMIT = 40.0
DETACH_LIMIT = 15.0
"""Seconds for loading vhci-hcd, for a device to start there, for its port to come free."""

PING_INTERVAL = 3.0
"""Seconds; agent.sh gives everything back when it hears nothing for four of them and one second."""
MAX_UNANSWERED = 8
"""Pings; after so many the agent is taken for dead. A dead machine is noticed earlier, by ssh."""
MAX_REQUESTS = 128
MAX_CHATTER = 16384
"""Bytes that a login shell may print before the agent starts."""
MAX_STDERR = 4096

# Behind "sudo: " the words are in the remote's own language.
_SUDO_REFUSED = re.compile(r"\bsudo: |sudoers|not allowed|not permitted", re.IGNORECASE)


def command_line(size: int, *, sudo: bool, sysfs: str | None = None) -> str:
    """The command that reads ``size`` bytes of script and becomes the agent, for any login shell.

    Some ``head`` read ahead of what they take: nothing may follow the script before the greeting.

    ``sysfs`` is another root than /sys, for tests over a made-up tree.
    """
    start = f"""exec {"sudo -n " if sudo else ""}sh -c 'eval "$(head -c {size})"' usbipssh-agent"""
    return start if sysfs is None else f"{start} {shlex.quote(sysfs)}"


class _Stream(asyncssh.SSHClientSession[bytes]):
    """Cuts what the agent writes into lines, within bounds."""

    def __init__(self, on_line: Callable[[bytes], None], on_end: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._on_end = on_end
        self._rest = b""
        self._chan: asyncssh.SSHClientChannel[bytes] | None = None
        self.stderr = b""

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        self._chan = chan

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        if datatype == asyncssh.EXTENDED_DATA_STDERR:
            self.stderr = (self.stderr + data)[:MAX_STDERR]
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if len(line) > MAX_LINE:
                self._on_end("a line is too long")
                return
            self._on_line(line)
        if len(self._rest) > MAX_LINE:
            self._on_end("a line is too long")
            self._rest = b""

    def eof_received(self) -> bool:
        self._on_end("")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_end("")


class Agent:
    """The agent of one connection. Requests run side by side, those for one device in turn."""

    def __init__(self, *, sudo: bool) -> None:
        self._sudo = sudo
        self._stream = _Stream(self._take_line, self._end)
        self._chan: asyncssh.SSHClientChannel[bytes] | None = None
        self._hello: asyncio.Future[Hello] = asyncio.get_running_loop().create_future()
        self._chatter = 0
        self._next_tag = 1
        self._waiting: dict[int, tuple[Reply, asyncio.Future[Reply]]] = {}
        self._watching: tuple[int, Callable[[], None]] | None = None
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}
        self._pinging: asyncio.Task[None] | None = None
        self._unanswered = 0
        self.ended: asyncio.Future[Failure] = asyncio.get_running_loop().create_future()
        """Done when the agent has ended, with what later requests fail with."""

    @property
    def hello(self) -> Hello:
        """What the agent said of its machine."""
        return self._hello.result()

    @classmethod
    async def start(
        cls,
        ssh: asyncssh.SSHClientConnection,
        *,
        sudo: bool,
        sysfs: str | None = None,
        limit: float = HELLO_LIMIT,
        script: bytes | None = None,
    ) -> Agent:
        """Start the agent and wait for its greeting.

        Raises :exc:`Failure`: RemoteUnsupported for anything that is no agent, NotPermittedThere
        when sudo refuses, TimedOut.
        """
        agent = cls(sudo=sudo)
        text = travelling() if script is None else script
        try:
            async with asyncio.timeout(limit):
                await agent._open(ssh, command_line(len(text), sudo=sudo, sysfs=sysfs), text)
                await asyncio.shield(agent._hello)
        except TimeoutError:
            agent._abort()
            raise Failure(Code.TIMED_OUT, "its shell did not answer") from None
        except BaseException:
            agent._abort()
            raise
        agent._pinging = asyncio.create_task(agent._ping())
        return agent

    async def _open(self, ssh: asyncssh.SSHClientConnection, command: str, text: bytes) -> None:
        try:
            self._chan, _ = await ssh.create_session(
                lambda: self._stream, command, encoding=None, request_pty=False, send_env=(), env={}
            )
        except asyncssh.ChannelOpenError:
            raise Failure(
                Code.REMOTE_UNSUPPORTED, "its ssh server runs no commands for this user"
            ) from None
        except (asyncssh.Error, OSError) as error:
            raise Failure(Code.CONNECTION_FAILED, str(error)) from None
        # What has ended by now, such as nologin, is told apart by what it said.
        self._write(text)

    async def _ping(self) -> None:
        while not self.ended.done():
            await asyncio.sleep(PING_INTERVAL)
            if self._unanswered >= MAX_UNANSWERED:
                # Stopped, or stuck: once we are gone its watchdog gives everything back.
                self._end("", Failure(Code.TIMED_OUT, "the agent there did not answer"))
                self._abort()
                return
            self._unanswered += 1
            self._write(b"ping\n")

    def _write(self, data: bytes) -> None:
        if self._chan is not None and not self._chan.is_closing():
            with contextlib.suppress(OSError, asyncssh.Error):
                self._chan.write(data)

    def _take_line(self, line: bytes) -> None:
        if self.ended.done():
            return
        if not self._hello.done():
            hello = parse_hello(line)
            if hello is not None:
                self._hello.set_result(hello)
                return
            self._chatter += len(line) + 1
            if self._chatter > MAX_CHATTER:
                self._end("it does not answer as a shell does")
            return
        if line == b"pong" and self._unanswered:
            self._unanswered -= 1
        else:
            self._take_reply(line)

    def _take_reply(self, line: bytes) -> None:
        try:
            tag, text = split_tag(line)
            if not 0 < tag < self._next_tag:
                raise BadReply("a reply to nothing")
            if self._watching is not None and tag == self._watching[0]:
                self._take_notice(text)
                return
            waiting = self._waiting.get(tag)
            if waiting is None:  # its request was cancelled
                return
            reply, future = waiting
            reply.add(text)
        except BadReply as error:
            self._end(str(error))
            return
        if reply.done:
            del self._waiting[tag]
            if not future.done():
                future.set_result(reply)

    def _take_notice(self, text: str) -> None:
        if text == "changed" and self._watching is not None:
            self._watching[1]()
            return
        reply = Reply()
        reply.add(text)
        if not reply.done:
            raise BadReply("a notice of something else")

    def _end(self, why: str, failure: Failure | None = None) -> None:
        """The agent has ended or must: tell everyone who waits for it."""
        if self.ended.done():
            return
        failure = failure or self._explain(why)
        self.ended.set_result(failure)
        if not self._hello.done():
            self._hello.set_exception(failure)
            self._hello.exception()
        for _, future in self._waiting.values():
            if not future.done():
                future.set_exception(failure)
        self._waiting.clear()
        if why:
            log.warning("the agent is stopped: %s", why)
            self._abort()

    def _explain(self, why: str) -> Failure:
        if why:
            return Failure(Code.REMOTE_UNSUPPORTED, why)
        said = clean(self._stream.stderr.decode("utf-8", "replace"), 120)
        if self._hello.done():
            return Failure(Code.CONNECTION_FAILED, "the agent there ended")
        if self._sudo and _SUDO_REFUSED.search(said):
            log.warning("sudo there refuses: %s", said)
            return Failure(Code.NOT_PERMITTED_THERE, "sudo refuses")
        return Failure(Code.REMOTE_UNSUPPORTED, said or "no shell that answers")

    def _abort(self) -> None:
        if self._chan is not None:
            self._chan.abort()

    async def _ask(self, line: str, limit: float) -> Reply:
        """Send a request and wait for its reply; raise :exc:`Failure`.

        Cancelled, the reply is dropped when it comes; what was asked for may still happen.
        """
        if self.ended.done():
            raise self.ended.result()
        if len(self._waiting) >= MAX_REQUESTS:
            raise Failure(Code.LIMITS_EXCEEDED, "too many requests to one remote")
        tag = self._next_tag
        self._next_tag += 1
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiting[tag] = (Reply(), future)
        self._write(f"{tag} {line}\n".encode("ascii"))
        try:
            async with asyncio.timeout(limit):
                reply = await future
        except TimeoutError:
            raise Failure(Code.TIMED_OUT, "the agent there did not answer") from None
        finally:
            self._waiting.pop(tag, None)
        if reply.error is not None:
            raise Failure(*reply.error)
        return reply

    @asynccontextmanager
    async def device(self, busid: str) -> AsyncIterator[None]:
        """Hold the device: whatever else concerns it waits."""
        lock, users = self._locks.get(busid, (asyncio.Lock(), 0))
        self._locks[busid] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks.pop(busid)
            if users > 1:
                self._locks[busid] = (lock, users - 1)

    async def list(self) -> list[Device]:
        """Every device there, in tree order, without descriptors."""
        return (await self._ask("list", READ_LIMIT)).devices()

    async def facts(self) -> Reply:
        """Whether usbip-host is loaded, how many names it has taken, and what its system is like.

        Also the agent's folder, where it has one.
        """
        reply = await self._ask("facts", READ_LIMIT)
        if not reply.module:
            raise Failure(Code.REMOTE_UNSUPPORTED)
        return reply

    def watch(self, changed: Callable[[], None]) -> None:
        """From now on call ``changed`` whenever something is plugged in or out there. Once only."""
        if self._watching is None and not self.ended.done():
            self._watching = (self._next_tag, changed)
            self._next_tag += 1
            self._write(f"{self._watching[0]} watch\n".encode("ascii"))

    async def describe(self, busid: str) -> Device:
        """One device with its descriptors; DeviceNotFound."""
        for device in (await self._ask(f"describe {busid}", READ_LIMIT)).devices():
            if device.busid == busid:
                return device
        raise Failure(Code.DEVICE_NOT_FOUND)

    async def bind(
        self, busid: str, vendor_id: int, product_id: int, devid: int, *, unmount: bool
    ) -> str:
        """Give the device to usbip-host, if it is still that one; the agent's folder there."""
        reply = await self._ask(
            f"bind {busid} {vendor_id:04x} {product_id:04x} "
            f"{devid >> 16} {devid & 0xFFFF} {int(unmount)}",
            BIND_LIMIT,
        )
        if not reply.folder:
            raise Failure(Code.REMOTE_UNSUPPORTED, "it made no folder for the socket")
        return reply.folder

    async def connect(self, busid: str, connector: str, address: str, token: str) -> None:
        """Have the kernel there given a socket that is connected to ``address``."""
        await self._ask(f"connect {busid} {connector} {address} {token}", CONNECT_LIMIT)

    async def release(self, busid: str, *, rebind: bool) -> None:
        """End the device's export and give it back to its own driver (or to none)."""
        await self._ask(f"release {busid} {int(rebind)}", RELEASE_LIMIT)

    async def unbind(self, busid: str) -> None:
        """Take the device from usbip-host, whoever gave it to it."""
        await self._ask(f"unbind {busid}", RELEASE_LIMIT)

    async def reset(self, busid: str, vendor_id: int, product_id: int, devid: int) -> None:
        """Reset the device's port, if it is still that one."""
        await self._ask(
            f"reset {busid} {vendor_id:04x} {product_id:04x} {devid >> 16} {devid & 0xFFFF}",
            RESET_LIMIT,
        )

    async def port(self, busid: str, speed: int) -> str:
        """See that a device of this machine could be attached there; the agent's folder.

        ``speed`` is as vhci numbers it. Raises :exc:`Failure` (ModuleUnavailable, NoFreePort, …).
        """
        reply = await self._ask(f"port {busid} {speed}", PORT_LIMIT)
        if not reply.folder:
            raise Failure(Code.REMOTE_UNSUPPORTED, "it made no folder for the socket")
        return reply.folder

    async def attach(
        self, busid: str, devid: int, speed: int, *, connector: str, address: str, token: str
    ) -> tuple[str, int]:
        """Have vhci there given a socket that is connected to ``address``; bus id and port there.

        ``busid`` is the device's on this machine, which exports it already.
        """
        reply = await self._ask(
            f"attach {busid} {devid} {speed} {connector} {address} {token}", ATTACH_LIMIT
        )
        if reply.at is None:
            raise Failure(Code.REMOTE_UNSUPPORTED)
        return reply.at

    async def look(self, busid: str) -> Device:
        """What is on the port of a device of this machine; NotAttached."""
        devices = (await self._ask(f"look {busid}", READ_LIMIT)).devices()
        if len(devices) != 1:
            raise Failure(Code.NOT_ATTACHED)
        return devices[0]

    async def detach(self, busid: str) -> None:
        """Free the port of a device of this machine; NotAttached."""
        await self._ask(f"detach {busid}", DETACH_LIMIT)

    async def close(self, limit: float = END_LIMIT) -> None:
        """End its input and wait until it has given everything back and ended."""
        if self._pinging is not None:
            self._pinging.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._pinging
        chan = self._chan
        if chan is None:
            return
        if self.ended.done():
            limit = 0  # nobody is left there who could answer
        try:
            with contextlib.suppress(TimeoutError, OSError, asyncssh.Error):
                async with asyncio.timeout(limit):
                    if not chan.is_closing():
                        chan.write_eof()
                    await chan.wait_closed()
        finally:
            chan.abort()
