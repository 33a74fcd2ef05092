# SPDX-License-Identifier: GPL-3.0-or-later
"""What a session costs: time from its start to its first listing, memory when idle."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path

from integration.sessions import session
from integration.sshd import Sshd, sshd

from bench.table import Row

STUB = Path(__file__).parents[1] / "integration" / "stubremote.py"
ROUNDS = 5


def memory(pid: int) -> tuple[float, float]:
    """Resident and proportional set size in MB (proc(5), smaps_rollup)."""
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in {"Rss", "Pss"}:
            found[name] = int(value.split()[0]) / 1024
    return found["Rss"], found["Pss"]


def _ssh_true(server: Sshd) -> float:
    start = time.perf_counter()
    subprocess.run([*server.ssh(), "true"], check=True)
    return (time.perf_counter() - start) * 1e3


async def _measure() -> list[Row]:
    starts, opens, lists, fresh = [], [], [], []
    rss = pss = 0.0
    with sshd(command=f"{sys.executable} {STUB} /dev/null") as server, sshd() as plain:
        for _ in range(ROUNDS):
            fresh.append(_ssh_true(plain))
            start = time.perf_counter()
            async with session() as running:
                await running.ask("cancel", request=0)
                starts.append((time.perf_counter() - start) * 1e3)
                start = time.perf_counter()
                await running.open(
                    server.host, server.port, server.agent_socket(), server.known_hosts
                )
                opens.append((time.perf_counter() - start) * 1e3)
                start = time.perf_counter()
                await running.rows("list", busid="", descriptors=False)
                lists.append((time.perf_counter() - start) * 1e3)
                rss, pss = memory(running.process.pid)
    base = min(fresh)
    return [
        Row("session process, until it answers", min(starts), "ms"),
        Row("open; a fresh ssh true", min(opens), "ms", base, min(opens) / base),
        Row("list, session only", min(lists), "ms", base, min(lists) / base, "<= 0.1"),
        Row("session idle, resident", rss, "MB", aim="< 50"),
        Row("session idle, proportional", pss, "MB"),
    ]


def start_and_memory() -> list[Row]:
    """A session's start and memory."""
    return asyncio.run(_measure())
