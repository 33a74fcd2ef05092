# SPDX-License-Identifier: GPL-3.0-or-later
"""Tells systemd how the daemon is, and leaves descriptors with it (sd_notify(3))."""

from __future__ import annotations

import array
import asyncio
import os
import re
import socket
import time
from collections.abc import Mapping, Sequence


class Notifier:
    """Sends to the socket that NOTIFY_SOCKET named; without one, nowhere.

    ``watchdog_seconds`` is how often systemd wants to hear from us; 0 for never.
    """

    def __init__(self, address: str, watchdog_seconds: float = 0.0) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._watchdog_seconds = watchdog_seconds

    async def watchdog(self) -> None:
        """Tell that the event loop turns, until cancelled; return at once if nobody asks."""
        while self._address and self._watchdog_seconds > 0:
            self.send("WATCHDOG=1")
            await asyncio.sleep(self._watchdog_seconds / 3)

    def reloading(self) -> None:
        """Tell that the configuration is being read again; READY=1 follows."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self.send("RELOADING=1", f"MONOTONIC_USEC={now}")

    def send(self, *states: str, fds: Sequence[int] = ()) -> None:
        """Send assignments such as ``READY=1``, and descriptors with ``FDSTORE=1``."""
        if not self._address:
            return
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.connect(self._address)
                sock.sendmsg(["\n".join(states).encode()], rights)
        except OSError:
            # systemd's own time limits tell of it.
            return

    def store(self, name: str, fd: int) -> None:
        """Leave a descriptor with systemd, which keeps it until the service is stopped for good."""
        self.send("FDSTORE=1", f"FDNAME={name}", fds=[fd])

    def unstore(self, name: str) -> None:
        """Take back what was left under a name."""
        self.send("FDSTOREREMOVE=1", f"FDNAME={name}")


def stored_descriptors(environment: Mapping[str, str], pid: int) -> dict[str, list[int]]:
    """Descriptors that systemd has kept for us, by name (sd_listen_fds_with_names(3)).

    They are made to be closed on exec. Nothing is trusted but their number.
    """
    if environment.get("LISTEN_PID") != str(pid):
        return {}
    count = environment.get("LISTEN_FDS", "")
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    found: dict[str, list[int]] = {}
    if re.fullmatch(r"[0-9]{1,4}", count):
        for number in range(int(count)):
            fd = 3 + number
            os.set_inheritable(fd, False)
            name = names[number] if number < len(names) else ""
            found.setdefault(name, []).append(fd)
    return found
