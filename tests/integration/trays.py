# SPDX-License-Identifier: GPL-3.0-or-later
"""The tray as a program of one user's session, and the panel that shows it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from integration.notifier import NotificationServer, notifications
from integration.panel import Panel, panel
from integration.sessionbus import SessionBus
from integration.world import World

LIMIT = 60.0


def spawn(
    session: SessionBus, w: World, uid: int, *, within: Sequence[str] = (), **options: Any
) -> subprocess.Popen[bytes]:
    """Start the tray as ``uid``, without a display; by ``within``, a program that runs another."""
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(w.tree),
        "DBUS_SESSION_BUS_ADDRESS": session.address,
        "DBUS_SYSTEM_BUS_ADDRESS": w.bus.address,
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        **options.pop("environment", {}),
    }
    line = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", sys.executable]
    return subprocess.Popen(
        [*within, *line, "-m", "usbipssh_tray"],
        env=environment,
        cwd="/",
        stdin=subprocess.DEVNULL,
        **options,
    )


@asynccontextmanager
async def tray(
    session: SessionBus, w: World, uid: int, ssh_agent: str = "", within: Sequence[str] = ()
) -> AsyncIterator[tuple[Panel, NotificationServer]]:
    """``uid``'s tray in a session with a panel and a notification server.

    ``ssh_agent`` is SSH_AUTH_SOCK there; ``within`` as for :func:`spawn`.
    """
    async with panel(session.address) as shown, notifications(session.address) as server:
        agent = {"SSH_AUTH_SOCK": ssh_agent}
        process = spawn(session, w, uid, within=within, environment=agent)
        try:
            yield shown, server
            process.terminate()
            assert await asyncio.to_thread(process.wait, LIMIT) == 0
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
