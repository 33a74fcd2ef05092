# SPDX-License-Identifier: GPL-3.0-or-later
"""Bytes between an ssh channel and one end of a socketpair.

Both directions push back: while the socket takes no more, the channel is paused and its
window (2 MiB) bounds what the far side may send; while the channel or the
network takes no more, the socket is not read. At most one packet per direction waits here.
The socket is read and written directly, without a transport in between: that saves a
turn of the loop and a copy for each message.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable

import asyncssh

from usbipsshd.session.mended import MendedConnection

READ_SIZE = 32768
"""The largest packet that OpenSSH takes, so that a read is a packet."""
READS_AT_ONCE = 8
HALF_CLOSED_LIMIT = 2.0
"""Seconds that one direction may outlive the other."""


class Relay:
    """Carries bytes until either side ends, then closes both and calls ``on_end`` once.

    ``on_end`` is called from the loop, with what went wrong or an empty text.
    """

    def __init__(
        self,
        chan: asyncssh.SSHUNIXChannel[bytes] | asyncssh.SSHTCPChannel[bytes],
        ssh: MendedConnection,
        sock: socket.socket,
        on_end: Callable[[str], None],
    ) -> None:
        self.received = 0
        """Bytes that came from the remote."""
        self.sent = 0
        """Bytes that went to it."""
        self.ended = False
        self._loop = asyncio.get_running_loop()
        self._chan = chan
        self._write_chan = chan.write
        self._sock = sock
        self._on_end = on_end
        sock.setblocking(False)
        self._fd = sock.fileno()
        self._backlog: memoryview | None = None
        self._chan_full = False
        self._net_full = ssh.congested
        self._reading = False
        self._local_eof = False
        self._remote_eof = False
        self._grace: asyncio.TimerHandle | None = None
        self._unwatch = ssh.watch_congestion(self._congestion)
        self._update_reading()

    @property
    def holding(self) -> bool:
        """Whether the socket takes no more now, so that the channel must stay paused."""
        return self._backlog is not None

    def data_received(self, data: bytes) -> None:
        """Bytes from the channel."""
        if self.ended:
            return
        self.received += len(data)
        if self._backlog is not None:
            # Only what was decoded before the pause took hold.
            self._backlog = memoryview(bytes(self._backlog) + data)
            return
        try:
            sent = self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self.end()
            return
        if sent < len(data):
            self._backlog = memoryview(data)[sent:]
            self._chan.pause_reading()
            self._loop.add_writer(self._fd, self._flush)

    def _flush(self) -> None:
        backlog = self._backlog
        assert backlog is not None
        try:
            sent = self._sock.send(backlog)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.end()
            return
        if sent < len(backlog):
            self._backlog = backlog[sent:]
            return
        self._backlog = None
        self._loop.remove_writer(self._fd)
        if self._remote_eof:
            self._shut_socket()
        else:
            self._chan.resume_reading()

    def eof_received(self) -> None:
        """The channel carries no more; what came before it is still delivered."""
        if self.ended or self._remote_eof:
            return
        self._remote_eof = True
        if self._backlog is None:
            self._shut_socket()

    def _shut_socket(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)
        self._half_closed()

    def _readable(self) -> None:
        for _ in range(READS_AT_ONCE):
            try:
                data = self._sock.recv(READ_SIZE)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self.end()
                return
            if not data:
                self._local_eof = True
                self._update_reading()
                with contextlib.suppress(OSError):
                    self._chan.write_eof()
                self._half_closed()
                return
            self.sent += len(data)
            try:
                self._write_chan(data)
            except OSError:
                self.end()
                return
            if len(data) < READ_SIZE or not self._reading:
                return

    def _half_closed(self) -> None:
        if self._local_eof and self._remote_eof and self._backlog is None:
            self.end()
        elif self._grace is None:
            self._grace = self._loop.call_later(HALF_CLOSED_LIMIT, self.end)

    def pause_writing(self) -> None:
        """The channel's window is used up and its buffer is full."""
        self._chan_full = True
        self._update_reading()

    def resume_writing(self) -> None:
        """The channel takes more."""
        self._chan_full = False
        self._update_reading()

    def _congestion(self, congested: bool) -> None:
        self._net_full = congested
        self._update_reading()

    def _update_reading(self) -> None:
        want = not (self._chan_full or self._net_full or self._local_eof or self.ended)
        if want and not self._reading:
            self._reading = True
            self._loop.add_reader(self._fd, self._readable)
        elif not want and self._reading:
            self._reading = False
            self._loop.remove_reader(self._fd)

    def end(self, why: str = "") -> None:
        """Close both sides."""
        if self.ended:
            return
        self.ended = True
        self._unwatch()
        self._update_reading()
        if self._backlog is not None:
            self._backlog = None
            self._loop.remove_writer(self._fd)
        if self._grace is not None:
            self._grace.cancel()
        self._sock.close()
        self._chan.close()
        self._on_end(why)
