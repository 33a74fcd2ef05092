# SPDX-License-Identifier: GPL-3.0-or-later
"""Starts sessions and the agent of this machine: through systemd where it runs, else by itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import socket
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import Protocol

from usbipsshd.errors import Code, UsbipError
from usbipsshd.seqpacket import SeqPacket

CONNECT_SECONDS = 5.0
END_SECONDS = 20.0
"""How long a session may take to give everything back once its control socket is closed."""


class Launcher(Protocol):
    """Starts sessions."""

    def session(self) -> AbstractAsyncContextManager[SeqPacket]:
        """A new session's control socket; leaving the context closes it."""
        ...


class AgentLauncher(Protocol):
    """Starts the agent of this machine, as root."""

    def agent(self) -> AbstractAsyncContextManager[socket.socket]:
        """A new agent's standard input and output; leaving the context closes them."""
        ...


class SystemdLauncher:
    """Connects to ``usbipssh-session.socket``: systemd starts the process in its cage."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @asynccontextmanager
    async def session(self) -> AsyncIterator[SeqPacket]:
        """See :class:`Launcher`. Raises :exc:`UsbipError` (Failed)."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.setblocking(False)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await asyncio.get_running_loop().sock_connect(sock, str(self._path))
        except (OSError, TimeoutError):
            sock.close()
            raise UsbipError(
                Code.FAILED,
                "This machine cannot start a session; see: "
                "systemctl status usbipssh-session.socket",
            ) from None
        channel = SeqPacket(sock)
        try:
            yield channel
        finally:
            channel.close()


class SystemdAgent:
    """Connects to ``usbipssh-here.socket``: systemd starts the agent outside the daemon's cage."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[socket.socket]:
        """See :class:`AgentLauncher`. Raises :exc:`UsbipError` (Failed)."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.setblocking(False)
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    await asyncio.get_running_loop().sock_connect(sock, str(self._path))
            except (OSError, TimeoutError):
                raise UsbipError(
                    Code.FAILED,
                    "This machine cannot hand over its own devices; see: "
                    "systemctl status usbipssh-here.socket",
                ) from None
            yield sock


class SpawnAgent:
    """Starts the agent itself; ``arguments`` are agent.sh's."""

    def __init__(self, *arguments: str) -> None:
        script = str(resources.files("usbipsshd.session").joinpath("agent.sh"))
        self._command = ("sh", script, *arguments)

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[socket.socket]:
        """See :class:`AgentLauncher`; waits for its end. Raises :exc:`UsbipError` (Failed)."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with ours, theirs:
            try:
                child = await asyncio.create_subprocess_exec(
                    *self._command,
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    cwd="/",
                    env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
                    process_group=0,
                )
            except OSError as error:
                raise UsbipError(
                    Code.FAILED, f"This machine cannot start a shell: {error.strerror}."
                ) from None
            theirs.close()
            try:
                yield ours
            finally:
                ours.close()
                await _ended(child)


class SpawnLauncher:
    """Starts the process itself, as ``user`` and with no privileges (setpriv(1))."""

    def __init__(
        self,
        user: str,
        *,
        command: Sequence[str] = (sys.executable, "-m", "usbipsshd.session"),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._user = user
        drop = (
            "setpriv",
            f"--reuid={user}",
            f"--regid={user}",
            "--clear-groups",
            "--no-new-privs",
            "--bounding-set=-all",
            "--inh-caps=-all",
            "--",
        )
        self._command = (*drop, *command)
        self._environment = dict(environment or {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"})

    @asynccontextmanager
    async def session(self) -> AsyncIterator[SeqPacket]:
        """See :class:`Launcher`; waits for the process's end. Raises :exc:`UsbipError` (Failed)."""
        self._check_user()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                child = await asyncio.create_subprocess_exec(
                    *self._command,
                    stdin=theirs.fileno(),
                    stdout=asyncio.subprocess.DEVNULL,
                    cwd="/",
                    env=self._environment,
                    process_group=0,
                )
            except OSError as error:
                ours.close()
                raise UsbipError(
                    Code.FAILED, f"This machine cannot start a session: {error.strerror}."
                ) from None
        channel = SeqPacket(ours)
        try:
            yield channel
        finally:
            channel.close()
            await _ended(child)

    def _check_user(self) -> None:
        if self._user.isdecimal():
            return
        try:
            pwd.getpwnam(self._user)
        except KeyError:
            raise UsbipError(
                Code.FAILED,
                f"This machine has no user {self._user} for sessions; systemd-sysusers creates it.",
            ) from None


async def _ended(child: asyncio.subprocess.Process) -> None:
    try:
        async with asyncio.timeout(END_SECONDS):
            await child.wait()
    except TimeoutError:
        pass
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, 9)
            await child.wait()
