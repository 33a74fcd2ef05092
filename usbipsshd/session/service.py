# SPDX-License-Identifier: GPL-3.0-or-later
"""Answers the root process: the operations of :mod:`usbipsshd.messages`, side by side."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from usbipsshd.device import Device
from usbipsshd.errors import Code
from usbipsshd.messages import (
    BadPacket,
    Packet,
    device_to_json,
    error_to_json,
    get_bool,
    get_busid,
    get_int,
    get_str,
)
from usbipsshd.seqpacket import Descriptors, SeqPacket
from usbipsshd.session.agent import Agent
from usbipsshd.session.carrier import TCP_ONLY, SshCarriers
from usbipsshd.session.connection import Connection, open_connection, read_host_key
from usbipsshd.session.exports import Exports, Wanted
from usbipsshd.session.failure import Failure
from usbipsshd.session.hostkeys import MAX_KNOWN_HOSTS
from usbipsshd.session.loans import Loan, Loans
from usbipsshd.session.route import Approach, Route

log = logging.getLogger(__name__)

MAX_REQUESTS = 64
OPEN_LIMIT = 15.0
"""Seconds for all jump hosts together."""
STOP_LIMIT = 20.0
"""Seconds that requests under way have to undo what they did, at the end."""
CHANGED_INTERVAL = 0.5
"""Seconds between two notices of changes."""


@dataclass(frozen=True, slots=True)
class _Remote:
    """What there is once ``open`` has succeeded."""

    connection: Connection
    agent: Agent
    carriers: SshCarriers
    exports: Exports
    loans: Loans
    approach: Approach

    async def close(self) -> None:
        """Give everything back, then close."""
        await asyncio.gather(self.exports.held.close(), self.loans.held.close())
        await self.agent.close()
        await self.connection.close()
        await self.approach.close()


class Session:
    """One session: runs from the first request until ``close``, or until either side is gone.

    ``agent_sysfs`` makes the agent work on another tree than /sys; for tests only.
    """

    def __init__(self, control: SeqPacket, agent_sysfs: str | None = None) -> None:
        self._control = control
        self._agent_sysfs = agent_sysfs
        self._remote: _Remote | None = None
        self._opening = False
        self._stopping = asyncio.Event()
        self._requests: dict[int, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._close_id: int | None = None
        self._gone: Failure | None = None
        self._operations: dict[str, Callable[[int, Packet, Descriptors], Awaitable[Packet | None]]]
        self._operations = {
            "open": self._open,
            "host-key": self._host_key,
            "list": self._list,
            "facts": self._facts,
            "export": self._export,
            "exports": self._list_exports,
            "release": self._release,
            "unbind": self._unbind,
            "reset": self._reset,
            "statistics": self._statistics,
            "port": self._port,
            "lend": self._lend,
            "loans": self._list_loans,
            "loan": self._loan,
            "take-back": self._take_back,
            "loan-statistics": self._loan_statistics,
            "cancel": self._cancel,
        }

    def stop(self) -> None:
        """Give everything back and return from :meth:`run`; for a signal handler."""
        self._stopping.set()

    async def run(self) -> None:
        """Serve until the end; everything is given back when this returns."""
        receiver = asyncio.create_task(self._receive())
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait([receiver, stopping], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (receiver, stopping):
                task.cancel()
            await asyncio.gather(receiver, stopping, return_exceptions=True)
            await self._shut_down()

    async def _shut_down(self) -> None:
        tasks = set(self._requests.values()) | self._tasks
        for task in tasks:
            task.cancel()
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=STOP_LIMIT)
            if late:
                log.warning("%d requests did not end in time", len(late))
        if self._remote is not None:
            await self._remote.close()
        if self._close_id is not None:
            await self._send({"ok": {}, "id": self._close_id})
        self._control.close()

    async def _receive(self) -> None:
        while True:
            try:
                received = await self._control.receive()
            except BadPacket as error:
                log.warning("the control socket brings nonsense (%s): ending", error)
                return
            except OSError as error:
                log.warning("the control socket fails: %s", error)
                return
            if received is None:
                return
            packet, fds = received
            try:
                if await self._take(packet, fds):
                    return
            except BadPacket as error:
                fds.close()
                log.warning("a request without an id (%s): ending", error)
                return

    async def _take(self, packet: Packet, fds: Descriptors) -> bool:
        """Start on a request; whether it was the last."""
        id_ = get_int(packet, "id")
        if packet.get("op") == "close":
            fds.close()
            self._close_id = id_
            return True
        if id_ in self._requests:
            raise BadPacket("an id that is in use")
        if len(self._requests) >= MAX_REQUESTS:
            fds.close()
            failure = Failure(Code.LIMITS_EXCEEDED, "too many requests to one remote")
            await self._fail(id_, failure)
            return False
        task = asyncio.create_task(self._answer(id_, packet, fds))
        self._requests[id_] = task
        task.add_done_callback(lambda _: self._requests.pop(id_, None))
        return False

    async def _answer(self, id_: int, packet: Packet, fds: Descriptors) -> None:
        with fds:
            try:
                operation = self._operations.get(get_str(packet, "op", 32))
                if operation is None:
                    raise BadPacket("op: unknown")
                result = await operation(id_, packet, fds)
            except Failure as failure:
                await self._fail(id_, failure)
            except BadPacket as error:
                await self._fail(id_, Failure(Code.INVALID_ARGS, str(error)))
            except asyncio.CancelledError:
                await self._fail(id_, self._gone or Failure(Code.CANCELLED))
            except Exception:
                log.exception("request %d failed", id_)
                await self._fail(id_, Failure(Code.FAILED))
            else:
                if result is not None:
                    await self._send({"ok": result, "id": id_})

    async def _fail(self, id_: int, failure: Failure) -> None:
        await self._send({"error": error_to_json(failure.code, failure.detail), "id": id_})

    async def _send(self, packet: Packet, fds: tuple[int, ...] = ()) -> bool:
        """Send; False when the root process is gone (which ends the session elsewhere)."""
        try:
            await self._control.send(packet, fds)
        except OSError:
            return False
        return True

    def _ready(self) -> _Remote:
        remote = self._remote
        if remote is None:
            raise Failure(Code.CONNECTION_FAILED, "not connected")
        if remote.connection.lost.done():
            raise remote.connection.failure()
        return remote

    async def _open(self, _id: int, packet: Packet, fds: Descriptors) -> Packet:
        if self._opening:
            raise BadPacket("open: only once")
        route = Route.parse(packet)
        sudo = get_bool(packet, "sudo")
        agents, known_hosts = await _logins(fds)
        self._opening = True
        approach = Approach(route)
        try:
            async with asyncio.timeout(OPEN_LIMIT), _closed_on_failure(agents[0]):
                dial = await approach.run(agents[1:], known_hosts)
            connection = await open_connection(route.target, agents[0], known_hosts, dial=dial)
            try:
                agent = await Agent.start(connection.ssh, sudo=sudo, sysfs=self._agent_sysfs)
            except BaseException:
                await connection.close()
                raise
        except BaseException as error:
            self._opening = False
            await approach.close()
            if isinstance(error, TimeoutError):
                raise Failure(Code.TIMED_OUT, "no answer") from None
            raise
        carriers = SshCarriers(connection.ssh)
        exports = Exports(agent, carriers.listen, self._tell_released)
        loans = Loans(agent, carriers.listen, self._tell_returned)
        self._remote = _Remote(connection, agent, carriers, exports, loans, approach)
        self._spawn(self._watch(self._remote))
        changed = asyncio.Event()
        agent.watch(changed.set)
        self._spawn(self._tell_changed(changed))
        return {}

    def _spawn(self, work: Awaitable[None]) -> None:
        async def run() -> None:
            await work

        task = asyncio.create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _watch(self, remote: _Remote) -> None:
        """Tell when the connection or the agent is gone; the session ends with it."""
        lost, ended = remote.connection.lost, remote.agent.ended
        either: list[asyncio.Future[Any]] = [lost, ended]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        failure = remote.connection.failure() if lost.done() else ended.result()
        log.info("the connection is gone: %s", failure)
        self._gone = failure
        await self._send({"event": "closed", "error": error_to_json(failure.code, failure.detail)})
        self.stop()

    async def _tell_changed(self, changed: asyncio.Event) -> None:
        """Pass on that something was plugged there; never more often than CHANGED_INTERVAL."""
        while self._gone is None:
            await changed.wait()
            changed.clear()
            await self._send({"event": "changed"})
            await asyncio.sleep(CHANGED_INTERVAL)

    async def _tell_released(self, busid: str, failure: Failure | None) -> None:
        error = error_to_json(failure.code, failure.detail) if failure is not None else None
        await self._send({"event": "released", "busid": busid, "error": error})

    async def _tell_returned(self, busid: str) -> None:
        await self._send({"event": "returned", "busid": busid})

    async def _host_key(self, _id: int, packet: Packet, fds: Descriptors) -> Packet:
        route = Route.parse(packet)
        wanted = get_str(packet, "fingerprint")
        agents, known_hosts = await _logins(fds) if len(fds) else ([], b"")
        for agent in agents[:1]:
            # The remote itself is not logged in to.
            agent.close()
        approach = Approach(route)
        try:
            dial = await approach.run(agents[1:], known_hosts)
            key = await read_host_key(route.target.host, route.target.port, wanted, dial=dial)
        finally:
            await approach.close()
        return {"key": key}

    async def _list(self, id_: int, packet: Packet, _fds: Descriptors) -> Packet:
        agent = self._ready().agent
        if packet.get("busid") == "":
            if get_bool(packet, "descriptors"):
                raise BadPacket("descriptors: of one device only")
            for device in await agent.list():
                try:
                    await self._send_row(id_, device)
                except Failure as failure:
                    # One odd device must not hide the others.
                    log.warning("%s is left out: %s", device.busid, failure.detail)
        else:
            busid = get_busid(packet)
            async with agent.device(busid):
                await self._send_row(id_, await agent.describe(busid))
        return {}

    async def _facts(self, _id: int, _packet: Packet, _fds: Descriptors) -> Packet:
        remote = self._ready()
        agent = remote.agent
        facts = await agent.facts()
        # Without root there is no folder, and nothing can be exported either.
        forwards = await remote.carriers.forwards(facts.folder) if facts.folder else ""
        by_path = any(c not in TCP_ONLY for c in agent.hello.connectors)
        return {
            "uid": agent.hello.uid,
            "kernel": agent.hello.kernel,
            "os": agent.hello.os,
            "connectors": len(agent.hello.connectors),
            "by_path": by_path,
            "module": facts.module,
            "names": facts.names,
            "vhci": facts.vhci,
            "free_ports": list(facts.free_ports or ()),
            "like": " ".join(facts.like),
            "forwards": forwards,
        }

    async def _send_row(self, id_: int, device: Device) -> None:
        try:
            await self._send({"row": {"device": device_to_json(device)}, "id": id_})
        except BadPacket:
            raise Failure(Code.REMOTE_UNSUPPORTED, "a device has too much to tell") from None

    async def _export(self, id_: int, packet: Packet, _fds: Descriptors) -> None:
        remote = self._ready()
        wanted = Wanted(
            busid=get_busid(packet),
            vendor_id=get_int(packet, "vendor_id", 0xFFFF),
            product_id=get_int(packet, "product_id", 0xFFFF),
            devid=get_int(packet, "devid"),
            unmount=get_bool(packet, "unmount"),
            rebind=get_bool(packet, "rebind"),
        )
        near = await remote.exports.export(wanted)
        with near:
            try:
                await self._control.send({"ok": {}, "id": id_}, (near.fileno(),))
            except BaseException as error:
                # Nobody will ever release it. Closing the near end would do, only later.
                with contextlib.suppress(Failure):
                    await remote.exports.release(wanted.busid, rebind=True)
                if not isinstance(error, OSError):
                    raise

    async def _list_exports(self, _id: int, _packet: Packet, _fds: Descriptors) -> Packet:
        return {"busids": [*self._ready().exports.held.busids()]}

    async def _release(self, _id: int, packet: Packet, _fds: Descriptors) -> Packet:
        await self._ready().exports.release(get_busid(packet), rebind=get_bool(packet, "rebind"))
        return {}

    async def _unbind(self, _id: int, packet: Packet, _fds: Descriptors) -> Packet:
        await self._ready().exports.unbind(get_busid(packet))
        return {}

    async def _reset(self, _id: int, packet: Packet, _fds: Descriptors) -> Packet:
        await self._ready().exports.reset(
            get_busid(packet),
            get_int(packet, "vendor_id", 0xFFFF),
            get_int(packet, "product_id", 0xFFFF),
            get_int(packet, "devid"),
        )
        return {}

    async def _statistics(self, _id: int, packet: Packet, _fds: Descriptors) -> Packet:
        received, sent = self._ready().exports.held.statistics(get_busid(packet))
        return {"received": received, "sent": sent}

    async def _port(self, _id: int, packet: Packet, _fds: Descriptors) -> Packet:
        remote = self._ready()
        await remote.loans.ready(get_busid(packet), get_int(packet, "speed", 0xFF))
        return {}

    async def _lend(self, _id: int, packet: Packet, fds: Descriptors) -> Packet:
        remote = self._ready()
        loan = Loan(
            busid=get_busid(packet),
            devid=get_int(packet, "devid"),
            speed=get_int(packet, "speed", 0xFF),
        )
        busid, port = await remote.loans.lend(loan, socket.socket(fileno=fds.take(0)))
        return {"busid": busid, "port": port}

    async def _list_loans(self, _id: int, _packet: Packet, _fds: Descriptors) -> Packet:
        return {"busids": [*self._ready().loans.held.busids()]}

    async def _loan(self, id_: int, packet: Packet, _fds: Descriptors) -> Packet:
        await self._send_row(id_, await self._ready().loans.look(get_busid(packet)))
        return {}

    async def _take_back(self, _id: int, packet: Packet, _fds: Descriptors) -> Packet:
        await self._ready().loans.take_back(get_busid(packet))
        return {}

    async def _loan_statistics(self, _id: int, packet: Packet, _fds: Descriptors) -> Packet:
        received, sent = self._ready().loans.held.statistics(get_busid(packet))
        return {"received": received, "sent": sent}

    async def _cancel(self, _id: int, packet: Packet, _fds: Descriptors) -> Packet:
        task = self._requests.get(get_int(packet, "request"))
        if task is not None and task is not asyncio.current_task():
            task.cancel()
        return {}


async def _logins(fds: Descriptors) -> tuple[list[socket.socket], bytes]:
    """The agents' sockets, the remote's own first, and the known hosts of a request."""
    known = fds.take(1)
    known_hosts = await asyncio.to_thread(_read_all, known)
    agents: list[socket.socket] = []
    try:
        for number in (0, *range(2, len(fds))):
            agents.append(socket.socket(fileno=fds.take(number)))
    except BaseException:
        for agent in agents:
            agent.close()
        raise
    return agents, known_hosts


@contextlib.asynccontextmanager
async def _closed_on_failure(sock: socket.socket) -> AsyncIterator[None]:
    try:
        yield
    except BaseException:
        sock.close()
        raise


def _read_all(fd: int) -> bytes:
    with os.fdopen(fd, "rb") as file:
        data = file.read(MAX_KNOWN_HOSTS + 1)
    if len(data) > MAX_KNOWN_HOSTS:
        raise Failure(Code.FAILED, "the file of known hosts is too large")
    return data
