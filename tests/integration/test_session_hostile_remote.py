# SPDX-License-Identifier: GPL-3.0-or-later
"""Remotes that mean no good: floods, drips, storms. They cost themselves, in bounded time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from integration.sessions import Answer, SessionUnderTest, session
from integration.sshd import sshd
from integration.test_session_misbehaviour import HELLO, READ, opened, python, tcp_server

from usbipsshd.errors import Code
from usbipsshd.messages import MAX_DEVICES
from usbipsshd.session import agent as agents
from usbipsshd.session.agent import Agent
from usbipsshd.session.connection import Target, open_connection, read_host_key
from usbipsshd.session.failure import Failure

ATTRIBUTES = (
    "idVendor 0781", "idProduct 5581", "bcdDevice 0100", "bDeviceClass 00", "bDeviceSubClass 00",
    "bDeviceProtocol 00", "speed 480", "busnum {bus}", "devnum {dev}", "product \x1b[31mRed",
)  # fmt: skip

DEVICES = f"""
def devices(tag, count):
    for n in range(count):
        bus, dev = n // 100 + 1, n % 100 + 1
        lines = ["d %d-%d" % (bus, dev)]
        lines += ["a " + a.format(bus=bus, dev=dev) for a in {ATTRIBUTES!r}]
        say("".join(tag + " " + line + "\\n" for line in lines))
"""
"""Says that there are so many devices, each well-formed but for what its name holds."""

TAG = "tag = line.split(b'\\n')[-2].split()[0].decode()\n"
"""Of the request that was read last."""


def most_memory(running: SessionUnderTest) -> int:
    """KiB that the session has had at most."""
    lines = Path(f"/proc/{running.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


async def connect(running: SessionUnderTest, server: Any) -> None:
    await running.open(server.host, server.port, server.agent_socket(), server.known_hosts)


def test_a_thousand_devices_are_listed(tmp_path: Path) -> None:
    source = (
        HELLO + DEVICES + READ + TAG + "devices(tag, 1000)\nsay(f'{tag} ok\\n')\nsys.stdin.read()"
    )

    async def main() -> None:
        with sshd(command=python(source, tmp_path / "shell")) as server:
            async with session() as running:
                await connect(running, server)
                rows = await running.rows("list", busid="", descriptors=False)
                assert len(rows) == 1000
                assert {row["device"]["product"] for row in rows} == {"[31mRed"}
                assert most_memory(running) < 150_000

    asyncio.run(main())


@pytest.mark.parametrize(
    "flood",
    [
        f"devices(tag, 10 * {MAX_DEVICES})",
        "while True: say(f'{tag} d 1-1\\n' * 100)",
        "say(f'{tag} d 1-1\\n')\nwhile True: say(f'{tag} n input/event1\\n' * 100)",
        "say(f'{tag} d 1-1\\n')\nwhile True: say(f'{tag} a product ' + 'x' * 4000 + '\\n')",
        "say(f'{tag} d 1-1\\n')\nwhile True: say(f'{tag} x ' + 'ff' * 2000 + '\\n')",
        "while True: say('pong\\n' * 100)",
        "while True: say('event\\n' * 100)",
    ],
    ids=["devices", "device", "nodes", "attributes", "descriptors", "pongs", "words"],
)
def test_endless_output_that_keeps_to_the_protocol(flood: str, tmp_path: Path) -> None:
    source = HELLO + DEVICES + READ + TAG + flood

    async def main() -> None:
        with sshd(command=python(source, tmp_path / "shell")) as server:
            async with session() as running:
                await connect(running, server)
                with pytest.raises(Answer) as caught:
                    await running.rows("list", busid="", descriptors=False)
                assert caught.value.code == "RemoteUnsupported"
                assert most_memory(running) < 150_000
            # The session itself ends in bounded time; that of the context is its limit.

    asyncio.run(main())


DRIP = """
for byte in itertools.cycle({text!r}):
    os.write(1, bytes([byte]))
    time.sleep(0.05)
"""


async def dripping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    for byte in b"SSH-2.0-" + b"slow" * 1000:
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0.05)


def test_a_banner_that_drips() -> None:
    async def main() -> None:
        with sshd() as real:  # for its agent
            async with tcp_server(dripping) as port:
                began = time.monotonic()
                with pytest.raises(Failure) as caught:
                    await open_connection(
                        Target("127.0.0.1", port), real.agent_socket(), b"", limit=2
                    )
                assert caught.value.code is Code.TIMED_OUT
                with pytest.raises(Failure) as caught:
                    await read_host_key("127.0.0.1", port, limit=2)
                assert caught.value.code is Code.TIMED_OUT
                # The whole banner would take more than three minutes.
                assert time.monotonic() - began < 60

    asyncio.run(main())


def test_an_agent_that_drips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a greeting nor an answer may take for ever, however often a byte of it comes."""
    greeting = "import itertools\n" + DRIP.format(text=b"Welcome to pi\n")
    answer = "import itertools\n" + HELLO + READ + DRIP.format(text=b"1 b 1 serial\n")
    monkeypatch.setattr(agents, "READ_LIMIT", 3.0)

    async def main() -> None:
        with sshd(command=python(greeting, tmp_path / "greets")) as server:
            connection = await opened(server)
            with pytest.raises(Failure) as caught:
                await Agent.start(connection.ssh, sudo=False, limit=3, script=b":\n")
            assert caught.value.code is Code.TIMED_OUT
            await connection.close()
        with sshd(command=python(answer, tmp_path / "answers")) as server:
            connection = await opened(server)
            agent = await Agent.start(connection.ssh, sudo=False, script=b":\n")
            with pytest.raises(Failure) as caught:
                await agent.list()
            assert caught.value.code is Code.TIMED_OUT
            await agent.close(1)
            await connection.close()

    asyncio.run(main())


class Stormy(asyncssh.SSHServer):
    """A server that lets everybody in."""

    def __init__(self) -> None:
        self.connection: asyncssh.SSHServerConnection | None = None

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self.connection = conn

    def begin_auth(self, username: str) -> bool:
        return False


@contextlib.asynccontextmanager
async def stormy_server(key: Path) -> AsyncIterator[tuple[int, list[Stormy]]]:
    """An ssh server in this process whose only command is an agent without devices."""
    servers: list[Stormy] = []

    def make() -> Stormy:
        servers.append(Stormy())
        return servers[-1]

    async def serve(process: asyncssh.SSHServerProcess[bytes]) -> None:
        process.stdout.write(b"hello 1 0 6.1.0 debian perl\n")
        buffer = b""
        while data := await process.stdin.read(65536):
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                tag, _, verb = line.partition(b" ")
                if verb == b"list":
                    process.stdout.write(tag + b" ok\n")
                elif line == b"ping":
                    process.stdout.write(b"pong\n")
        process.exit(0)

    server = await asyncssh.create_server(
        make, "127.0.0.1", 0, server_host_keys=[str(key)], process_factory=serve, encoding=None
    )
    try:
        yield server.sockets[0].getsockname()[1], servers
    finally:
        server.close()
        for each in servers:
            if each.connection is not None:
                each.connection.abort()
        await server.wait_closed()


def test_a_storm_of_channels_and_requests() -> None:
    """What a server opens towards us is refused, each time, and nothing is kept of it."""

    async def storm(conn: Any, number: int) -> str:
        factory = asyncssh.SSHTCPSession
        try:
            match number % 4:
                case 0:
                    await conn.create_connection(factory, "127.0.0.1", 22, "10.0.0.1", 1)
                case 1:
                    await conn.create_unix_connection(asyncssh.SSHUNIXSession, "/run/x")
                case 2:
                    await conn.open_agent_connection()
                case _:
                    await conn.create_x11_connection(factory, "10.0.0.1", 6000)
        except (asyncssh.ChannelOpenError, OSError):
            return "refused"
        return "opened"

    async def main() -> None:
        with sshd() as real:  # for its agent and its key
            async with stormy_server(real.folder / "host_ed25519") as (port, servers):
                known = f"[127.0.0.1]:{port} {real.host_keys[0]}\n".encode()
                async with session() as running:
                    await running.open("127.0.0.1", port, real.agent_socket(), known)
                    assert await running.rows("list", busid="", descriptors=False) == []
                    before = most_memory(running)
                    conn = servers[-1].connection
                    for start in range(0, 2000, 200):
                        told = await asyncio.gather(*(storm(conn, start + n) for n in range(200)))
                        assert set(told) == {"refused"}
                    # It serves as before.
                    assert await running.rows("list", busid="", descriptors=False) == []
                    assert most_memory(running) < before + 8_000
                    await running.ask("close", 40)

    asyncio.run(main())
