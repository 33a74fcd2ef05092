# SPDX-License-Identifier: GPL-3.0-or-later
"""A session process under test, and the root end of its control socket."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import usbipsshd
from usbipsshd.messages import Packet
from usbipsshd.seqpacket import SeqPacket

SESSION_UID = 61990
"""A uid without a passwd entry and without any right."""


def memory_file(data: bytes) -> int:
    """A descriptor that reads as ``data``."""
    fd = os.memfd_create("known_hosts")
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def readable_tree() -> Path:
    """Where the session can import the package from: here, or a copy when others can't read it."""
    root = Path(usbipsshd.__file__).parent.parent
    if all(parent.stat().st_mode & 0o005 == 0o005 for parent in (root, *root.parents)):
        return root
    copy = Path(tempfile.mkdtemp(prefix="usbipsshd-tree-"))
    copy.chmod(0o755)
    for package in ("usbipsshd", "usbipssh_tray"):
        shutil.copytree(root / package, copy / package)
    return copy


class Answer(Exception):
    """An error answer: its code and detail."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(f"{error['code']}: {error['detail']}")
        self.code = error["code"]
        self.detail = error["detail"]


class SessionUnderTest:
    """Asks one session. ``events`` are the packets that came unasked."""

    def __init__(self, control: SeqPacket, process: subprocess.Popen[bytes]) -> None:
        self.control = control
        self.process = process
        self.events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Queue[tuple[dict[str, Any], list[int]]]] = {}
        self._reader = asyncio.create_task(self._read())
        self.ended = asyncio.Event()

    async def _read(self) -> None:
        while (received := await self.control.receive()) is not None:
            packet, fds = received
            with fds:
                if "event" in packet:
                    self.events.put_nowait(packet)
                    continue
                taken = [fds.take(i) for i in range(len(fds))]
                self._answers[int(str(packet["id"]))].put_nowait((packet, taken))
        self.ended.set()

    async def start(self, op: str, fds: tuple[int, ...] = (), **fields: Any) -> int:
        """Send a request; its id."""
        if op == "export":
            fields.setdefault("rebind", True)
        id_ = next(self._ids)
        self._answers[id_] = asyncio.Queue()
        packet: Packet = {"op": op, "id": id_, **fields}
        await self.control.send(packet, fds)
        return id_

    async def finish(
        self, id_: int, limit: float = 60
    ) -> tuple[dict[str, Any], list[Any], list[int]]:
        """The ``ok``, rows and descriptors of a request; raise :exc:`Answer` for its error."""
        rows: list[Any] = []
        async with asyncio.timeout(limit):
            while True:
                packet, fds = await self._answers[id_].get()
                if "row" in packet:
                    rows.append(packet["row"])
                elif "error" in packet:
                    raise Answer(packet["error"])
                else:
                    return packet["ok"], rows, fds

    async def ask(self, op: str, limit: float = 60, **fields: Any) -> dict[str, Any]:
        """A request without rows and descriptors."""
        return (await self.finish(await self.start(op, **fields), limit))[0]

    async def rows(self, op: str, **fields: Any) -> list[Any]:
        """A request with rows."""
        return (await self.finish(await self.start(op, **fields)))[1]

    async def export(self, limit: float = 60, **fields: Any) -> socket.socket:
        """Export a device: the near end."""
        _, _, fds = await self.finish(await self.start("export", **fields), limit)
        assert len(fds) == 1
        return socket.socket(fileno=fds[0])

    async def open(
        self, host: str, port: int, agent: socket.socket, known_hosts: bytes,
        *, user: str = "root", sudo: bool = False, limit: float = 60,
    ) -> dict[str, Any]:  # fmt: skip
        """The ``open`` request; closes ``agent``."""
        known = memory_file(known_hosts)
        try:
            id_ = await self.start(
                "open", (agent.fileno(), known), host=host, port=port, user=user, sudo=sudo
            )
        finally:
            agent.close()
            os.close(known)
        return (await self.finish(id_, limit))[0]

    async def event(self, limit: float = 60, *, changed: bool = False) -> dict[str, Any]:
        """The next event; notices of changes only where they are wanted."""
        async with asyncio.timeout(limit):
            while True:
                packet = await self.events.get()
                if changed or packet["event"] != "changed":
                    return packet

    async def wait_ended(self, limit: float = 60) -> int:
        """Wait for the process's end; its exit status."""
        async with asyncio.timeout(limit):
            await self.ended.wait()
        return await asyncio.to_thread(self.process.wait, limit)

    async def stop(self) -> None:
        """Close the control socket and wait for the process."""
        self.control.close()
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        try:
            await asyncio.to_thread(self.process.wait, 60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


@contextlib.asynccontextmanager
async def session(
    *, agent_sysfs: str | None = None, uid: int | None = SESSION_UID
) -> AsyncIterator[SessionUnderTest]:
    """Start a session process as an unprivileged user; its end is awaited."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    tree = readable_tree()
    arguments = [] if agent_sysfs is None else ["--agent-sysfs", agent_sysfs]
    process = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-m", "usbipsshd.session", *arguments],
        stdin=theirs.fileno(),
        cwd="/",
        env={"PYTHONPATH": str(tree), "PATH": "/usr/bin:/bin"},
        user=uid,
        group=uid,
        extra_groups=None if uid is None else [],
    )
    theirs.close()
    control = SeqPacket(ours)
    running = SessionUnderTest(control, process)
    try:
        yield running
    finally:
        await running.stop()
