# SPDX-License-Identifier: GPL-3.0-or-later
"""The ssh-agent of whoever runs a program, for remotes that do not know the daemon's own key."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

CONNECT_SECONDS = 5.0


class Use(StrEnum):
    """When an agent is passed along."""

    NEVER = "never"
    WHEN_REFUSED = "when-refused"
    """Once the remote has refused the daemon's own key."""
    ALWAYS = "always"


@dataclass(frozen=True, slots=True)
class SshAgent:
    """Where an agent is, and when to use it."""

    path: str = ""
    """Its socket; empty for none."""
    use: Use = Use.NEVER

    @classmethod
    def of(cls, environment: Mapping[str, str], use: Use) -> SshAgent:
        """The one that SSH_AUTH_SOCK names (ssh-agent(1))."""
        return cls(environment.get("SSH_AUTH_SOCK", ""), use)

    def tries(self, *, refused: bool) -> tuple[bool, ...]:
        """Whether it goes along with each of the tries; a next one only after SshAuthFailed.

        ``refused``: the remote is known not to accept the daemon's key.
        """
        match self.use:
            case Use.NEVER:
                return (False,)
            case Use.ALWAYS:
                return (True,)
            case Use.WHEN_REFUSED:
                return (True, False) if refused and self.path else (False, True)

    async def connect(self) -> socket.socket:
        """A connected socket, the caller's to close; raise :exc:`OSError`."""
        if not self.path:
            raise FileNotFoundError(2, os.strerror(2))
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.setblocking(False)
            async with asyncio.timeout(CONNECT_SECONDS):
                await asyncio.get_running_loop().sock_connect(sock, self.path)
            # One whose queue is full says that it would block, which asyncio takes for a promise.
            sock.getpeername()
        except BaseException:
            sock.close()
            raise
        return sock
