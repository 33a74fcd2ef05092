# SPDX-License-Identifier: GPL-3.0-or-later
"""Somebody takes a remote's place while a device of it is attached and kept."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

from fakekernel import STICK
from integration.otherremotes import listed, other_sshd
from integration.world import ALICE, ATTACHMENT, ERROR, REMOTE, ROOT, wait_until, world


class Switch:
    """A port that leads to another one, which can be changed."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    @contextlib.contextmanager
    def running(self) -> Iterator[Switch]:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            self.port = listener.getsockname()[1]
            accepting = threading.Thread(target=self._accept, args=(listener,))
            accepting.start()
            try:
                yield self
            finally:
                listener.shutdown(socket.SHUT_RDWR)
                accepting.join()
                self.cut()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", self.target))
                self._sockets += [near, far]
                for one, other in ((near, far), (far, near)):
                    thread = threading.Thread(target=self._copy, args=(one, other))
                    thread.start()
                    self._threads.append(thread)

    @staticmethod
    def _copy(one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
        for end in (one, other):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """End every connection."""
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()
        self._threads.clear()


def test_a_host_key_that_changes_while_a_device_is_kept() -> None:
    with (
        world() as w,
        other_sshd(w, own_key=True, known=False) as ports,
        Switch(w.ssh.port).running() as way,
    ):
        w.pi.plug("2-1", STICK)
        w.authorize()
        with (w.folder / "known_hosts").open("a") as file:
            file.write(f"[127.0.0.1]:{way.port} {w.ssh.host_keys[0]}\n")
        with listed(w, "moved", way.port):
            path = w.attach("2-1", ALICE, "moved", "keep", "b", "true")
            bound = w.pi.state()["log"].count("bind 2-1")
            way.target = ports[0]
            way.cut()

            def refused() -> bool:
                error, _ = w.get(path, ATTACHMENT, "LastError")
                return bool(error == ERROR + "HostKeyMismatch")

            wait_until(refused, "the other machine is not refused", 60)
            remote = f"{ROOT}/remote/moved"

            # Between two tries; each is over soon.
            def waits() -> bool:
                told = w.get_all(remote, REMOTE)
                offered = str(told["OfferedHostKey"])
                return told["State"] == "unreachable" and offered.startswith("SHA256:")

            wait_until(waits, "nobody is told whose key it is")
            wait_until(lambda: w.get(path, ATTACHMENT, "State") == "waiting", "it does not wait")
            w.desk.wait(lambda s: not s["ports"])
            w.refused(
                "HostKeyMismatch", ALICE, "ListRemote", "ssa{sv}", "moved", "", "0", says="moved"
            )
            # It was never asked for its devices: nothing was bound there again.
            assert w.pi.state()["log"].count("bind 2-1") == bound
            # The right one is back: so is the device.
            way.target = w.ssh.port
            wait_until(
                lambda: w.get(path, ATTACHMENT, "State") == "attached", "it does not come back", 60
            )
            assert len(w.list(remote="moved")) == 1
            w.detach_all()
