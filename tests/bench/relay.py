# SPDX-License-Identifier: GPL-3.0-or-later
"""The relay against ``ssh -L``: the same peers, the same sshd, the same load."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from integration.sessions import SessionUnderTest, session
from integration.sshd import Sshd, sshd

from bench.table import Row

MIB = 1 << 20
BULK_MIB = 256
ROUND_TRIPS = 4000
ROUNDS = 3
STUB = Path(__file__).parents[1] / "integration" / "stubremote.py"
BUSIDS = {"echo": "1-1", "sink": "1-2", "source": "1-3"}
CIPHER = "aes128-gcm@openssh.com"

LABELS = {"same cipher": "aes128-gcm", "default": "its default"}

Measure = Callable[[socket.socket], float]


def _send_bulk(sock: socket.socket) -> float:
    """MB/s towards the remote; the sink says when it has them."""
    block = os.urandom(MIB)
    start = time.perf_counter()
    for _ in range(BULK_MIB):
        sock.sendall(block)
    acknowledged = 0
    while acknowledged < BULK_MIB:
        acknowledged += len(sock.recv(BULK_MIB))
    return BULK_MIB * MIB / 1e6 / (time.perf_counter() - start)


def _receive_bulk(sock: socket.socket) -> float:
    """MB/s from the remote."""
    buffer = bytearray(MIB)
    sock.recv_into(buffer)
    start = time.perf_counter()
    count = 0
    while count < BULK_MIB * MIB:
        count += sock.recv_into(buffer)
    return count / 1e6 / (time.perf_counter() - start)


def _ping_pong(sock: socket.socket) -> float:
    """Median round trip of 48 bytes (a USB/IP header) in µs."""
    message = os.urandom(48)
    taken = []
    for _ in range(ROUND_TRIPS):
        start = time.perf_counter()
        sock.sendall(message)
        count = 0
        while count < len(message):
            count += len(sock.recv(48))
        taken.append(time.perf_counter() - start)
    return statistics.median(taken) * 1e6


@contextlib.asynccontextmanager
async def _ours(server: Sshd) -> AsyncIterator[SessionUnderTest]:
    async with session() as running:
        await running.open(server.host, server.port, server.agent_socket(), server.known_hosts)
        yield running


async def _through_session(running: SessionUnderTest, kind: str, measure: Measure) -> float:
    busid = BUSIDS[kind]
    number = int(busid[2:])
    near = await running.export(
        busid=busid, vendor_id=0x1D6B, product_id=0x104, devid=0x10000 + number, unmount=False
    )
    try:
        return await asyncio.to_thread(measure, near)
    finally:
        near.close()
        await running.event()


@contextlib.contextmanager
def _peer(kind: str, path: Path) -> Any:
    process = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("peer.py"), kind, path], stdout=subprocess.PIPE
    )
    try:
        if process.stdout is not None:
            process.stdout.readline()
            process.stdout.close()
        yield
    finally:
        process.kill()
        process.wait()
        path.unlink(missing_ok=True)


async def _through_ssh(server: Sshd, kind: str, cipher: str, measure: Measure) -> float:
    far, near = server.folder / f"{kind}.far", server.folder / f"{kind}.near"
    with _peer(kind, far):
        options = ["-c", cipher] if cipher else []
        process = subprocess.Popen(  # noqa: ASYNC220
            server.ssh(*options, "-N", "-L", f"{near}:{far}")
        )
        try:
            while not near.exists():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(near))
                return await asyncio.to_thread(measure, sock)
        finally:
            process.terminate()
            process.wait()
            near.unlink(missing_ok=True)


async def _compare(
    kind: str, measure: Measure, best: Callable[[list[float]], float]
) -> dict[str, float]:
    command = f"{sys.executable} {STUB} /dev/null"
    found: dict[str, list[float]] = {"ours": [], "same cipher": [], "default": []}
    with sshd(command=command) as with_agent, sshd() as plain:
        async with _ours(with_agent) as running:
            for _ in range(ROUNDS):
                ways: dict[str, Callable[[], Awaitable[float]]] = {
                    "ours": lambda: _through_session(running, kind, measure),
                    "same cipher": lambda: _through_ssh(plain, kind, CIPHER, measure),
                    "default": lambda: _through_ssh(plain, kind, "", measure),
                }
                for name, way in ways.items():
                    found[name].append(await way())
    return {name: best(values) for name, values in found.items()}


def bulk() -> list[Row]:
    """Random data, both directions, MB/s."""
    rows = []
    for kind, measure, what in (
        ("sink", _send_bulk, "bulk to the remote"),
        ("source", _receive_bulk, "bulk from the remote"),
    ):
        found = asyncio.run(_compare(kind, measure, max))
        for other, label in LABELS.items():
            rows.append(
                Row(
                    f"{what}, ssh -L {label}", found["ours"], "MB/s", found[other],
                    found["ours"] / found[other], ">= 1",
                )
            )  # fmt: skip
    return rows


def round_trip() -> list[Row]:
    """48 bytes there and back, µs."""
    found = asyncio.run(_compare("echo", _ping_pong, min))
    return [
        Row(
            f"48-byte round trip, ssh -L {label}", found["ours"], "µs", found[other],
            found["ours"] / found[other], "<= 1.5",
        )
        for other, label in LABELS.items()
    ]  # fmt: skip
