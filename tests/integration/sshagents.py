# SPDX-License-Identifier: GPL-3.0-or-later
"""ssh-agents of people: OpenSSH's own, and some that mean no good. And calls that bring one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from integration.busfixtures import client_call
from integration.calls import Answer, plain
from integration.sshd import listens
from integration.world import MANAGER, NAME, ROOT, World, wait_until

from usbipsshd.bus.wire import library

WITH = "ssh-agent"
BODIES = {"ListRemote": "ssa{sv}", "Attach": "ssa{sv}", "AttachAll": "ssa{sv}",
          "Export": "ssa{sv}", "Unbind": "ssa{sv}", "Reset": "ssa{sv}",
          "Preflight": "sa{sv}"}  # fmt: skip
"""What can bring an agent, and its arguments."""


@dataclass
class PersonsAgent:
    """A real ssh-agent that runs as somebody."""

    path: Path
    process: subprocess.Popen[bytes]
    uid: int

    def connect(self) -> socket.socket:
        """A connected socket, as SSH_AUTH_SOCK leads to."""
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(self.path))
        return sock

    def add(self, key: Path) -> None:
        """Put a private key into it."""
        self._ssh_add("-q", str(key))

    def add_for(self, key: Path, host: str, known_hosts: Path) -> None:
        """Put a private key into it that is for one host only, by the key that the host has."""
        self._ssh_add("-q", "-H", str(known_hosts), "-h", host, str(key))

    def clear(self) -> None:
        """Take all keys out of it."""
        self._ssh_add("-q", "-D")

    def _ssh_add(self, *words: str) -> None:
        environment = {**os.environ, "SSH_AUTH_SOCK": str(self.path)}
        subprocess.run(["/usr/bin/ssh-add", *words], env=environment, check=True)

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait()


@contextlib.contextmanager
def persons_agent(uid: int, *keys: Path) -> Iterator[PersonsAgent]:
    """Run an agent as ``uid`` with these keys."""
    folder = Path(tempfile.mkdtemp(prefix="agent-"))
    os.chown(folder, uid, uid)
    path = folder / "socket"
    process = subprocess.Popen(
        ["/usr/bin/ssh-agent", "-D", "-a", path],
        stdout=subprocess.DEVNULL, user=uid, group=uid, extra_groups=[],
    )  # fmt: skip
    agent = PersonsAgent(path, process, uid)
    try:
        wait_until(lambda: listens(str(path)), "no ssh-agent")
        for key in keys:
            agent.add(key)
        yield agent
    finally:
        agent.stop()
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def made_up_agent(uid: int, behave: Callable[[socket.socket], None]) -> Iterator[socket.socket]:
    """A socket that leads to a program of ``uid``'s, which does what ``behave`` does."""
    folder = Path(tempfile.mkdtemp(prefix="agent-"))
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as ours:
        listener.bind(str(folder / "socket"))
        # The other end sees the credentials of this moment (unix(7), SO_PEERCRED).
        os.seteuid(uid)
        try:
            listener.listen()
        finally:
            os.seteuid(0)
        ours.connect(str(folder / "socket"))
        theirs, _ = listener.accept()

        def serve() -> None:
            with theirs, contextlib.suppress(OSError):
                behave(theirs)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield ours
        finally:
            ours.shutdown(socket.SHUT_RDWR)
            thread.join()
            shutil.rmtree(folder)


@contextlib.contextmanager
def mute_agent(uid: int, *, full: bool) -> Iterator[str]:
    """The path of an agent of ``uid``'s that never says anything; its queue may be full besides."""
    with tempfile.TemporaryDirectory(prefix="agent-") as folder, contextlib.ExitStack() as stack:
        path = Path(folder, "socket")
        path.parent.chmod(0o755)
        sock = stack.enter_context(socket.socket(socket.AF_UNIX))
        sock.bind(str(path))
        path.chmod(0o666)
        # The other end sees the credentials of this moment (unix(7), SO_PEERCRED).
        os.seteuid(uid)
        try:
            sock.listen(0 if full else 64)
        finally:
            os.seteuid(0)
        if full:
            stack.enter_context(socket.socket(socket.AF_UNIX)).connect(str(path))
        yield str(path)


def framed(body: bytes) -> bytes:
    """A message of the agent's protocol."""
    return struct.pack(">I", len(body)) + body


def ask_with(  # noqa: PLR0917
    w: World,
    uid: int,
    member: str,
    words: Sequence[str],
    agent: int | socket.socket | None,
    options: Mapping[str, bool] | None = None,
    *,
    stray: Sequence[int] = (),
) -> Answer:
    """Call as ``uid`` with an agent's socket, or the index of a descriptor, and other options.

    ``stray`` are descriptors that go along for nothing.
    """
    return asyncio.run(_ask(w, uid, member, words, agent, options or {}, stray))


async def _ask(  # noqa: PLR0917
    w: World,
    uid: int,
    member: str,
    words: Sequence[str],
    agent: int | socket.socket | None,
    options: Mapping[str, bool],
    stray: Sequence[int],
) -> Answer:
    variant = library("signature").Variant
    given = {key: variant("b", value) for key, value in options.items()}
    fds = list(stray)
    if isinstance(agent, int):
        given[WITH] = variant("h", agent)
    elif agent is not None:
        given[WITH] = variant("h", len(fds))
        fds.append(agent.fileno())
    client = w.bus.connect(uid)
    await client.connect()
    try:
        answer = await client_call(
            client, NAME, ROOT, MANAGER, member, BODIES[member], *words, given, fds=tuple(fds)
        )
    finally:
        client.disconnect()
        await client.wait_for_disconnect()
    if answer.error_name:
        return Answer(None, answer.error_name, answer.body[0])
    return Answer(_plain(answer.body[0]))


def _plain(value: object) -> object:
    if hasattr(value, "signature") and hasattr(value, "value"):
        return _plain(value.value)
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return plain(value)
