# SPDX-License-Identifier: GPL-3.0-or-later
"""What systemd does for the daemon: starts sessions on a socket, and keeps descriptors for it."""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from usbipsshd.session import script

SCM_ROOM = socket.CMSG_SPACE(64 * 4)


class FakeSystemd:
    """Sockets as ``usbipssh-session.socket`` and ``usbipssh-here.socket``, and one for notices with
    a store.
    """

    def __init__(self, folder: Path, sysfs: Path, agent_sysfs: Path, tree: Path, uid: int) -> None:
        self.session_socket = folder / "session.sock"
        self.agent_socket = folder / "here.sock"
        self.notify_socket = folder / "notify.sock"
        self.stored: dict[str, int] = {}
        self.states: list[str] = []
        self.sessions: list[subprocess.Popen[bytes]] = []
        self._command = [
            sys.executable, "-m", "usbipsshd.session", "--agent-sysfs", str(agent_sysfs),
        ]  # fmt: skip
        agent = folder / "agent.sh"
        agent.write_text(script.joined())
        self._agent_command = ["sh", str(agent), str(sysfs)]
        self._environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(tree)}
        self._uid = uid
        self._lock = threading.Condition()

    @contextlib.contextmanager
    def running(self) -> Iterator[FakeSystemd]:
        """Serve both sockets while the context lasts; sessions that still run are ended."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(str(self.session_socket))
        listener.listen()
        agents = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        agents.bind(str(self.agent_socket))
        agents.listen()
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notify.bind(str(self.notify_socket))
        ours, theirs = socket.socketpair()
        thread = threading.Thread(target=self._serve, args=(listener, agents, notify, theirs))
        thread.start()
        try:
            yield self
        finally:
            ours.close()
            thread.join()
            self.drop_store()
            for session in self.sessions:
                try:
                    session.wait(60)
                except subprocess.TimeoutExpired:
                    session.kill()
                    session.wait()
            for sock in (listener, agents, notify, theirs):
                sock.close()

    def _serve(
        self,
        listener: socket.socket,
        agents: socket.socket,
        notify: socket.socket,
        stop: socket.socket,
    ) -> None:
        while True:
            ready, _, _ = select.select([listener, agents, notify, stop], [], [])
            if stop in ready:
                return
            if agents in ready:
                connection, _ = agents.accept()
                with connection:
                    self.sessions.append(
                        subprocess.Popen(
                            self._agent_command,
                            stdin=connection.fileno(),
                            stdout=connection.fileno(),
                            cwd="/",
                        )
                    )
            if listener in ready:
                connection, _ = listener.accept()
                with connection:
                    self.sessions.append(
                        subprocess.Popen(
                            self._command,
                            stdin=connection.fileno(),
                            cwd="/",
                            env=self._environment,
                            user=self._uid,
                            group=self._uid,
                            extra_groups=[],
                        )
                    )
            if notify in ready:
                self._notified(notify)

    def _notified(self, notify: socket.socket) -> None:
        data, ancillary, _, _ = notify.recvmsg(4096, SCM_ROOM)
        fds = array.array("i")
        for _, _, content in ancillary:
            fds.frombytes(content)
        words = dict(line.split("=", 1) for line in data.decode().splitlines())
        name = words.get("FDNAME", "")
        with self._lock:
            self.states.append(data.decode())
            if "FDSTORE" in words and len(fds) == 1:
                if name in self.stored:
                    os.close(self.stored[name])
                self.stored[name] = fds[0]
            elif "FDSTOREREMOVE" in words and name in self.stored:
                os.close(self.stored.pop(name))
            self._lock.notify_all()

    def wait_stored(self, count: int, seconds: float = 30) -> None:
        """Wait until so many descriptors are kept."""
        with self._lock:
            assert self._lock.wait_for(lambda: len(self.stored) == count, seconds)

    def drop_store(self) -> None:
        """Forget everything, as systemd does when the service is stopped for good."""
        with self._lock:
            for fd in self.stored.values():
                os.close(fd)
            self.stored.clear()

    def arguments(self) -> list[str]:
        """How the daemon under test is told of all this."""
        stored = ",".join(f"{name}:{fd}" for name, fd in self.stored.items())
        return [
            "--session-socket", str(self.session_socket),
            "--agent-socket", str(self.agent_socket),
            "--notify-socket", str(self.notify_socket),
            "--stored", stored,
        ]  # fmt: skip
