# SPDX-License-Identifier: GPL-3.0-or-later
"""What may be at the far end of a connection: an echo, a sink, a source, or nobody who reads."""

from __future__ import annotations

import os
import socket
import threading

MIB = 1 << 20


def serve(kind: str, sock: socket.socket) -> None:
    """Serve one connection until it ends; a sink answers a byte per MiB."""
    block = os.urandom(MIB)
    try:
        if kind == "echo":
            while data := sock.recv(65536):
                sock.sendall(data)
        elif kind == "sink":
            count = 0
            buffer = bytearray(256 * 1024)
            while size := sock.recv_into(buffer):
                count += size
                while count >= MIB:
                    count -= MIB
                    sock.send(b".")
        elif kind == "source":
            while True:
                sock.sendall(block)
        elif kind == "stall":
            threading.Event().wait(60)
    except OSError:
        pass
    finally:
        sock.close()
