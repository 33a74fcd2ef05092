# SPDX-License-Identifier: GPL-3.0-or-later
"""What the daemon costs: its start, ListRemote next to a fresh ssh, and its memory when idle."""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from integration.busfixtures import client_call
from integration.world import MANAGER, NAME, ROOT, World, world
from unit.made import captured

from bench.session_cost import memory
from bench.table import Row

WARM_ROUNDS = 30
FRESH_ROUNDS = 5


class CapturedPi:
    """A real machine's sysfs tree, as files: what is read is what is measured, not FUSE."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self.root = Path()

    def __enter__(self) -> CapturedPi:
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="captured-"))
        Path(folder).chmod(0o755)
        self.root = captured("pi-before", Path(folder))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def state(self) -> dict[str, Any]:
        """Nothing ever happens on it."""
        lists: dict[str, Any] = {
            n: [] for n in ("bound", "connected", "matched", "parked", "ports")
        }
        return {**lists, "devices": {}}

    def wait(self, condition: Callable[[dict[str, Any]], bool], seconds: float = 0) -> None:
        """Nothing to wait for."""
        assert condition(self.state()), seconds

    def check_clean(self) -> None:
        """It always is."""


def _list_remote(made: World, rounds: int) -> list[float]:
    async def calls() -> list[float]:
        client = made.bus.connect()
        await client.connect()
        try:
            times = []
            for _ in range(rounds):
                start = time.perf_counter()
                answer = await client_call(
                    client, NAME, ROOT, MANAGER, "ListRemote", "ssa{sv}", "pi", "", {}
                )
                times.append((time.perf_counter() - start) * 1e3)
                assert not answer.error_name, answer.body
                assert len(answer.body[0]) >= 4
            return times
        finally:
            client.disconnect()
            await client.wait_for_disconnect()

    return asyncio.run(calls())


def _fresh_ssh(made: World) -> float:
    start = time.perf_counter()
    subprocess.run([*made.ssh.ssh(), "true"], check=True)
    return (time.perf_counter() - start) * 1e3


def list_remote_and_memory() -> list[Row]:
    """The daemon's start, ListRemote cold and warm, memory."""
    pi: Any = CapturedPi()
    with world(pi=pi) as made:
        assert made.daemon is not None
        made.add_remote()
        made.stop_daemon()
        start = time.perf_counter()
        made.start_daemon()
        started = (time.perf_counter() - start) * 1e3
        idle, idle_pss = memory(made.daemon.pid)
        fresh = [_fresh_ssh(made) for _ in range(FRESH_ROUNDS)]
        cold = _list_remote(made, 1)[0]
        warm = _list_remote(made, WARM_ROUNDS)
        after, after_pss = memory(made.daemon.pid)
        (session,) = made.sessions()
        session_rss, session_pss = memory(session)
        base = min(fresh)
        return [
            Row("daemon, until its name is on the bus", started, "ms"),
            Row("ListRemote cold; a fresh ssh true", cold, "ms", base, cold / base),
            Row(
                "ListRemote warm; a fresh ssh true",
                min(warm),
                "ms",
                base,
                min(warm) / base,
                "<= 0.1",
            ),
            Row("root process idle, resident", idle, "MB", aim="< 30"),
            Row("root process idle, proportional", idle_pss, "MB"),
            Row("root process after a login, resident", after, "MB"),
            Row("root process after a login, proportional", after_pss, "MB"),
            Row("session idle, resident", session_rss, "MB", aim="< 50"),
            Row("session idle, proportional", session_pss, "MB"),
        ]
