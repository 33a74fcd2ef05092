# SPDX-License-Identifier: GPL-3.0-or-later
"""Tells systemd how the daemon is (sd_notify(3))."""

from __future__ import annotations

import socket


class Notifier:
    """Sends to the socket that NOTIFY_SOCKET named; without one, nowhere."""

    def __init__(self, address: str) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address

    def send(self, *states: str) -> None:
        """Send assignments such as ``READY=1``."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.connect(self._address)
                sock.send("\n".join(states).encode())
        except OSError:
            # systemd's own time limits tell of it.
            return
