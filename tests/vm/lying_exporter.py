# SPDX-License-Identifier: GPL-3.0-or-later
"""A remote that lies: stands between sshd and usbip-host on pi, in the place of perl's connector.

Until the file named by its argument is there, everything passes unchanged. From then on the
device's answers to GET_DESCRIPTOR are a keyboard's; where "once" is written in it, only the next
one that the kernel compares with what it knows. The headers are those of
Documentation/usb/usbip_protocol.rst; there are no isochronous transfers here.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
import threading
from pathlib import Path

SUBMIT, UNLINK = 1, 2
HEADER = 48
GET_DESCRIPTOR = 6
IN = 1

REPORT = bytes.fromhex(
    "05010906a101050719e029e71500250175019508810295017508810195057501050819012905910295017503"
    "910195067508150025650507190029658100c0"
)
DESCRIPTORS = {
    1: bytes.fromhex("120100030000000927060200000001000001"),
    2: bytes.fromhex("09022800010100a032 090400000103010100")
    + bytes([9, 0x21, 0x11, 1, 0, 1, 0x22, len(REPORT), 0])
    + bytes.fromhex("07058103080004 063000000800"),
    0x22: REPORT,
}  # fmt: skip


class Liar:
    """Passes messages on in both directions, each in one piece."""

    def __init__(self, kernel: socket.socket, remote: socket.socket, lie: Path) -> None:
        self._kernel, self._remote, self._lie = kernel, remote, lie
        self._writing = threading.Lock()
        self._answers: dict[int, int] = {}
        """The direction of every transfer that was passed on, by its number."""

    def run(self) -> None:
        """Until either side has gone."""
        for work in (self._requests, self._replies):
            threading.Thread(target=self._whole, args=(work,)).start()

    def _whole(self, work: object) -> None:
        with contextlib.suppress(OSError, EOFError):
            work()  # type: ignore[operator]
        for side in (self._kernel, self._remote):
            with contextlib.suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)

    def _requests(self) -> None:
        while True:
            header = _read(self._remote, HEADER)
            command, number, _, direction, endpoint = struct.unpack(">5I", header[:20])
            data = b""
            if command == SUBMIT:
                (length,) = struct.unpack(">I", header[24:28])
                if direction != IN:
                    data = _read(self._remote, length)
                self._answers[number] = direction
                if endpoint == 0 and self._lie.exists() and self._lied(number, header, length):
                    continue
            self._kernel.sendall(header + data)

    def _lied(self, number: int, header: bytes, length: int) -> bool:
        """Answer in the device's place, if that is a question to lie about."""
        kind, request, _, which = header[40:44]
        if not kind & 0x80 or request != GET_DESCRIPTOR or which not in DESCRIPTORS:
            return False
        if self._lie.read_text() == "once":
            # All of the device's descriptor: of its first 8 bytes only one is looked at.
            if which != 1 or length < len(DESCRIPTORS[1]):
                return False
            self._lie.unlink()
        answer = DESCRIPTORS[which][:length]
        reply = struct.pack(">5I", 3, number, 0, 0, 0) + struct.pack(
            ">iIIII8x", 0, len(answer), 0, 0xFFFFFFFF, 0
        )
        with self._writing:
            self._remote.sendall(reply + answer)
        return True

    def _replies(self) -> None:
        while True:
            header = _read(self._kernel, HEADER)
            command, number = struct.unpack(">2I", header[:8])
            data = b""
            if command == 3 and self._answers.pop(number, 0) == IN:
                (length,) = struct.unpack(">I", header[24:28])
                data = _read(self._kernel, length)
            with self._writing:
                self._remote.sendall(header + data)


def _read(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = sock.recv(size - len(data))
        if not part:
            raise EOFError
        data += part
    return data


def main() -> None:
    """Connect as agent.sh asks its connectors to, then stay in between."""
    address = os.environ["ADDRESS"]
    remote = socket.socket(socket.AF_UNIX)
    remote.connect(address)
    remote.sendall(os.environb[b"TOKEN"] + b"\n")
    ours, kernels = socket.socketpair()
    fd = os.open(os.environ["TARGET"], os.O_WRONLY)
    os.write(fd, b"%d" % kernels.fileno())
    if os.fork():
        os._exit(0)
    os.setsid()
    null = os.open("/dev/null", os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    os.close(fd)
    kernels.close()
    Liar(ours, remote, Path(sys.argv[1])).run()


if __name__ == "__main__":
    main()
