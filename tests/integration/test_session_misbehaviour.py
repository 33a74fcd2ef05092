# SPDX-License-Identifier: GPL-3.0-or-later
"""Remotes that print garbage, hang or close: a named error in time, and nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from integration.sessions import Answer, session
from integration.sshd import Sshd, sshd

from usbipsshd.errors import Code
from usbipsshd.session.agent import Agent
from usbipsshd.session.connection import Connection, Target, open_connection, read_host_key
from usbipsshd.session.failure import Failure

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def patience(code: Code) -> float:
    """Seconds that something may take, which ends by itself or is to take too long."""
    return 2 if code is Code.TIMED_OUT else 60


@contextlib.asynccontextmanager
async def tcp_server(serve: Serve) -> AsyncIterator[int]:
    """Something that is no ssh server; its port."""
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            with contextlib.suppress(ConnectionError):
                await serve(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    await asyncio.Event().wait()


async def closes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(4)


async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(4)
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    await writer.drain()


async def old(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-1.5-old\r\n")
    await reader.read()


async def half_a_handshake(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-half\r\n")
    await reader.read(100)
    writer.write(b"\x00\x00\x00\x08garbage!" * 4)
    await reader.read()


async def huge_packet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-huge\r\n" + b"\xff" * 16)
    while True:
        writer.write(bytes(65536))
        await writer.drain()


@pytest.mark.parametrize(
    ("serve", "code"),
    [
        (silent, Code.TIMED_OUT),
        (closes, Code.CONNECTION_FAILED),
        (http, Code.REMOTE_UNSUPPORTED),
        (old, Code.REMOTE_UNSUPPORTED),
        (half_a_handshake, Code.REMOTE_UNSUPPORTED),
        (huge_packet, Code.REMOTE_UNSUPPORTED),
    ],
)
def test_what_is_no_ssh_server(serve: Serve, code: Code) -> None:
    async def main() -> None:
        with sshd() as real:  # for its agent
            async with tcp_server(serve) as port:
                limit = patience(code)
                with pytest.raises(Failure) as caught:
                    await open_connection(
                        Target("127.0.0.1", port), real.agent_socket(), b"", limit=limit
                    )
                assert caught.value.code is code
                with pytest.raises(Failure) as caught:
                    await read_host_key("127.0.0.1", port, limit=limit)
                assert caught.value.code is code

    asyncio.run(main())


async def opened(server: Sshd) -> Connection:
    return await open_connection(
        Target(server.host, server.port), server.agent_socket(), server.known_hosts
    )


def python(source: str, path: Path) -> str:
    """A command that runs ``source`` as the remote's shell."""
    path.write_text("import os, sys, time\ndef say(text): os.write(1, text.encode())\n" + source)
    return f"{sys.executable} {path}"


HELLO = 'say("hello 1 0 6.1.0 debian perl\\n")\n'


@pytest.mark.parametrize(
    ("source", "code", "detail"),
    [
        ("time.sleep(60)", Code.TIMED_OUT, "did not answer"),
        ("sys.exit('no shell for you')", Code.REMOTE_UNSUPPORTED, "no shell for you"),
        ("while True: say('welcome!\\n' * 100)", Code.REMOTE_UNSUPPORTED, ""),
        ("while True: say('x' * 9999)", Code.REMOTE_UNSUPPORTED, "too long"),
        ("say('hello 2 0 x y z\\n'); sys.exit(3)", Code.REMOTE_UNSUPPORTED, ""),
        ("os.write(2, b'\\x1b[31m' * 99999); sys.exit(1)", Code.REMOTE_UNSUPPORTED, ""),
    ],
)
def test_what_is_no_agent(source: str, code: Code, detail: str, tmp_path: Path) -> None:
    async def main() -> None:
        with sshd(command=python(source, tmp_path / "shell")) as server:
            connection = await opened(server)
            with pytest.raises(Failure) as caught:
                await Agent.start(connection.ssh, sudo=False, limit=patience(code), script=b":\n")
            assert caught.value.code is code
            assert detail in caught.value.detail
            assert "\x1b" not in caught.value.detail
            await connection.close()

    asyncio.run(main())


def test_a_login_shell_may_greet_first(tmp_path: Path) -> None:
    source = "say('Welcome to pi\\n' * 3)\n" + HELLO + "sys.stdin.read()"

    async def main() -> None:
        with sshd(command=python(source, tmp_path / "shell")) as server:
            connection = await opened(server)
            agent = await Agent.start(connection.ssh, sudo=False, script=b":\n")
            assert agent.hello.kernel == "6.1.0"
            await agent.close()
            await connection.close()

    asyncio.run(main())


READ = "line = b''\nwhile not line.endswith(b'list\\n'): line += os.read(0, 1)\n"


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("sys.exit()", "ConnectionFailed"),
        ("say('garbage\\n'); time.sleep(60)", "RemoteUnsupported"),
        ("say('1 d ../../etc\\n'); time.sleep(60)", "RemoteUnsupported"),
        ("say('99 ok\\n'); time.sleep(60)", "RemoteUnsupported"),
        ("while True: say('1 b 1 x\\n' * 100)", "RemoteUnsupported"),
        ("say('1 fail Nonsense x\\n'); time.sleep(60)", "RemoteUnsupported"),
        ("os.write(1, b'\\xff\\xfe\\x00\\n'); time.sleep(60)", "RemoteUnsupported"),
    ],
)
def test_an_agent_that_goes_wrong(answer: str, code: str, tmp_path: Path) -> None:
    """The request fails, the session says that it is over and ends."""
    source = HELLO + READ + answer

    async def main() -> None:
        with sshd(command=python(source, tmp_path / "shell")) as server:
            async with session() as running:
                await running.open(
                    server.host, server.port, server.agent_socket(), server.known_hosts
                )
                with pytest.raises(Answer) as caught:
                    await running.rows("list", busid="", descriptors=False)
                assert caught.value.code == code
                event = await running.event()
                assert (event["event"], event["error"]["code"]) == ("closed", code)
                assert await running.wait_ended() == 0

    asyncio.run(main())


@pytest.mark.parametrize("verb", ["bind", "connect"])
def test_an_agent_that_ends_in_an_export(verb: str, tmp_path: Path) -> None:
    source = (
        HELLO
        + f"""
for line in sys.stdin:
    tag, verb = line.split()[:2] if " " in line else ("", "")
    if verb == "{verb}":
        sys.exit()
    if verb == "bind":
        say(f"{{tag}} dir /tmp\\n{{tag}} ok\\n")
"""
    )

    async def main() -> None:
        with sshd(command=python(source, tmp_path / "shell")) as server:
            async with session() as running:
                await running.open(
                    server.host, server.port, server.agent_socket(), server.known_hosts
                )
                with pytest.raises(Answer, match="ConnectionFailed"):
                    await running.export(
                        busid="1-1", vendor_id=1, product_id=1, devid=1, unmount=False
                    )
                assert (await running.event())["event"] == "closed"

    asyncio.run(main())


def test_nonsense_on_the_control_socket() -> None:
    async def main() -> None:
        async with session() as running:
            requests: list[tuple[str, dict[str, Any]]] = [
                ("nonsense", {}),
                ("list", {"busid": "$(reboot)", "descriptors": False}),
                ("host-key", {"host": 5, "port": 22, "fingerprint": ""}),
                ("open", {"host": "x", "port": 22, "user": "root", "sudo": False}),
            ]
            for op, fields in requests:
                with pytest.raises(Answer):
                    await running.ask(op, **fields)
            with pytest.raises(Answer, match="ConnectionFailed"):
                await running.ask("release", busid="1-1", rebind=True)
            assert await running.ask("cancel", request=12345) == {}

    asyncio.run(main())
