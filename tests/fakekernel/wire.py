# SPDX-License-Identifier: GPL-3.0-or-later
"""A socket taken from the process that wrote its number, and what is said through it.

In place of USB/IP the two made-up kernels speak a few lines. The importing one
asks, the exporting one answers:

    describe            one line of JSON: the device's description
    echo N, N bytes     the same N bytes
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import threading
from collections.abc import Callable

_PIDFD_OPEN = 434
_PIDFD_GETFD = 438
_libc = ctypes.CDLL(None, use_errno=True)


def _syscall(number: int, *arguments: int) -> int:
    result = int(_libc.syscall(number, *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def take_socket(pid: int, number: int) -> socket.socket:
    """A duplicate of another process's socket; OSError if there is none."""
    process = _syscall(_PIDFD_OPEN, pid, 0)
    try:
        taken = _syscall(_PIDFD_GETFD, process, number, 0)
    finally:
        os.close(process)
    try:
        sock = socket.socket(fileno=taken)
    except OSError:
        os.close(taken)
        raise
    sock.setblocking(True)
    return sock


class Wire:
    """One end of a connection, read by a thread of its own."""

    def __init__(
        self, sock: socket.socket, received: Callable[[Wire], None], ended: Callable[[], None]
    ) -> None:
        """``received`` is called in the thread when there is more to take, ``ended`` once."""
        self._socket = sock
        self._received = received
        self._ended = ended
        self._buffer = bytearray()
        self._more = threading.Condition()
        self.closed = False
        self.bytes_received = 0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def _run(self) -> None:
        try:
            while data := self._socket.recv(65536):
                with self._more:
                    self._buffer += data
                    self.bytes_received += len(data)
                    self._more.notify_all()
                self._received(self)
        except OSError:
            pass
        with self._more:
            self.closed = True
            self._more.notify_all()
        self._socket.close()
        self._ended()

    def send(self, data: bytes) -> None:
        """Send all of it; OSError."""
        self._socket.sendall(data)

    def end(self) -> None:
        """Shut the connection down; the thread ends soon after."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def take_line(self) -> bytes | None:
        """A whole line that has arrived, without its newline."""
        with self._more:
            end = self._buffer.find(b"\n")
            if end < 0:
                return None
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            return line

    def take_bytes(self, most: int) -> bytes:
        """Up to ``most`` bytes that have arrived."""
        with self._more:
            data = bytes(self._buffer[:most])
            del self._buffer[:most]
            return data

    def wait_bytes(self, count: int, seconds: float) -> bytes:
        """Exactly ``count`` bytes; TimeoutError, ConnectionError."""
        with self._more:
            done = self._more.wait_for(lambda: len(self._buffer) >= count or self.closed, seconds)
            if not done:
                raise TimeoutError(f"{len(self._buffer)} of {count} bytes came")
            if len(self._buffer) < count:
                raise ConnectionError("the connection ended")
            data = bytes(self._buffer[:count])
            del self._buffer[:count]
            return data
