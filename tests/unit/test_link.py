# SPDX-License-Identifier: GPL-3.0-or-later
"""The connection to a remote: one attempt for all, closed when idle, begun anew when lost."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from openfiles import open_before, open_files
from unit.made import refused, run, settle

import usbipsshd.link
from usbipsshd.address import Address
from usbipsshd.control import Session
from usbipsshd.errors import Code, UsbipError
from usbipsshd.hostkey import fetch_host_key
from usbipsshd.link import Link, LinkHooks, LinkState
from usbipsshd.messages import Packet
from usbipsshd.ownkey import Key
from usbipsshd.remotes import Remote
from usbipsshd.seqpacket import SeqPacket
from usbipsshd.sshconfig import SshConfig
from usbipsshd.way import OwnKeys, Ways

REMOTE = Remote("pi", Address("usb", "pi.lan", 2200), sudo=True)
PRINT = "SHA256:" + "A" * 43


class Sessions:
    """Launches sessions that answer as they are told."""

    def __init__(self) -> None:
        self.started = 0
        self.ended = 0
        self.may_open = asyncio.Event()
        self.may_open.set()
        self.open_error: Packet | None = None
        self.cannot: BaseException | None = None
        self.key: Any = "ssh-ed25519 AAAA"
        self.asked: list[str] = []
        self.opened: Packet = {}
        self.known_hosts = b""
        self.now: SeqPacket | None = None

    @asynccontextmanager
    async def session(self) -> AsyncIterator[SeqPacket]:
        if self.cannot is not None:
            raise self.cannot
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.started += 1
        self.now = SeqPacket(theirs)
        channel = SeqPacket(ours)
        serving = asyncio.create_task(self._serve(self.now))
        try:
            yield channel
        finally:
            channel.close()
            await serving
            self.ended += 1

    async def _serve(self, channel: SeqPacket) -> None:
        while (received := await channel.receive()) is not None:
            packet, fds = received
            self.asked.append(str(packet["op"]))
            answer: Packet = {"ok": {}}
            with fds:
                if packet["op"] == "open":
                    self.opened = packet
                    self._look(fds.take(0), fds.take(1))
                    waiting = asyncio.create_task(channel.receive())
                    opening = asyncio.create_task(self.may_open.wait())
                    await asyncio.wait([waiting, opening], return_when=asyncio.FIRST_COMPLETED)
                    opening.cancel()
                    if waiting.done():
                        break
                    waiting.cancel()
                    await asyncio.wait([waiting])
                    if self.open_error is not None:
                        answer = {"error": self.open_error}
                elif packet["op"] == "host-key":
                    answer = (
                        {"ok": {"key": self.key}}
                        if self.open_error is None
                        else {"error": self.open_error}
                    )
            try:
                await channel.send({"id": packet["id"], **answer})
            except OSError:
                break
        channel.close()

    def _look(self, agent: int, known: int) -> None:
        with os.fdopen(known, "rb") as file:
            self.known_hosts = file.read()
        os.close(agent)


class Heard:
    """What a link told."""

    def __init__(self) -> None:
        self.states: list[LinkState] = []
        self.lost: list[UsbipError] = []
        self.devices = 0
        self.released: list[tuple[str, UsbipError]] = []
        self.returned: list[tuple[str, UsbipError]] = []
        self.kept: list[bool] = []
        """True for each control socket that is to be kept, False when it is of no use any more."""


def ways(key: Key) -> Ways:
    """Nothing is configured, and one host key is known."""
    config = SshConfig(Path("/nonexistent/ssh_config"))
    return Ways(config, OwnKeys(key), lambda remote, _: f"{remote.name} key\n".encode())


class World:
    """A link, and everything around it."""

    def __init__(self, group: asyncio.TaskGroup, key: Key, idle_seconds: float) -> None:
        self.sessions = Sessions()
        self.heard = Heard()
        self.link = Link(
            REMOTE,
            group=group,
            launcher=self.sessions,
            ways=ways(key),
            hooks=LinkHooks(
                changed=lambda: self.heard.states.append(self.link.status.state),
                devices_changed=self._plugged,
                released=lambda b, e: self.heard.released.append((b, e)),
                returned=lambda b, e: self.heard.returned.append((b, e)),
                lost=self.heard.lost.append,
                opened=self._opened,
                ended=lambda: self.heard.kept.append(False),
            ),
            idle_seconds=idle_seconds,
        )

    def _opened(self, fd: int) -> None:
        assert stat.S_ISSOCK(os.fstat(fd).st_mode)
        self.heard.kept.append(True)

    def _plugged(self) -> None:
        self.heard.devices += 1

    def using(self) -> tuple[asyncio.Task[Session], asyncio.Event]:
        """Use the link in a task until the event is set."""
        leave = asyncio.Event()

        async def use() -> Session:
            async with self.link.use() as session:
                await leave.wait()
                return session

        return asyncio.create_task(use()), leave

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)

    async def say(self, **packet: Any) -> None:
        assert self.sessions.now is not None
        await self.sessions.now.send(packet)


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Key:
    key = Key(tmp_path_factory.mktemp("key"))
    key.load()
    return key


def with_link(key: Key, test: Callable[[World], Awaitable[None]], idle_seconds: float = 60) -> None:
    """Run a test with a link that is closed afterwards; every session must have ended then."""

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            world = World(group, key, idle_seconds)
            await test(world)
            await world.link.close()
        assert world.sessions.started == world.sessions.ended
        assert not world.link.in_use

    run(main())


def test_nothing_is_connected_before_somebody_asks(key: Key) -> None:
    async def test(world: World) -> None:
        await settle()
        assert world.sessions.started == 0
        assert world.link.status.state is LinkState.IDLE

    with_link(key, test)


def test_everyone_shares_one_attempt_and_one_connection(key: Key) -> None:
    async def test(world: World) -> None:
        world.sessions.may_open.clear()
        users = [world.using() for _ in range(3)]
        await world.until(lambda: bool(world.sessions.opened))
        assert world.link.status.state is LinkState.CONNECTING
        world.sessions.may_open.set()
        for _, leave in users:
            leave.set()
        sessions = {id(await task) for task, _ in users}
        async with world.link.use() as session:
            assert {id(session)} == sessions
        assert world.sessions.started == 1
        assert world.heard.states == [LinkState.CONNECTING, LinkState.CONNECTED]
        opened = world.sessions.opened
        assert (opened["host"], opened["port"], opened["user"], opened["sudo"]) == (
            "pi.lan", 2200, "usb", True,
        )  # fmt: skip
        assert world.sessions.known_hosts == b"pi key\n"

    with_link(key, test)


def test_an_attempt_goes_on_while_anybody_waits_and_ends_with_the_last(key: Key) -> None:
    async def test(world: World) -> None:
        world.sessions.may_open.clear()
        (first, _), (second, _) = world.using(), world.using()
        await world.until(lambda: bool(world.sessions.opened))
        first.cancel()
        await settle()
        assert world.sessions.ended == 0
        second.cancel()
        await world.until(lambda: world.sessions.ended == 1)
        assert first.cancelled()
        assert world.link.status.state is LinkState.IDLE
        assert world.heard.lost == []

    with_link(key, test)


def test_whoever_comes_while_an_attempt_is_abandoned_gets_a_new_one(key: Key) -> None:
    async def test(world: World) -> None:
        world.sessions.may_open.clear()
        first, _ = world.using()
        await world.until(lambda: bool(world.sessions.opened))
        first.cancel()
        await asyncio.wait([first])
        world.sessions.may_open.set()
        async with world.link.use() as session:
            assert not session.gone
        assert world.sessions.started == 2

    with_link(key, test)


def test_an_idle_connection_is_closed_and_opened_anew(key: Key) -> None:
    async def test(world: World) -> None:
        async with world.link.use():
            await asyncio.sleep(0.06)
            assert world.sessions.ended == 0
        await world.until(lambda: world.link.status.state is LinkState.IDLE)
        assert world.sessions.asked == ["open", "close"]
        assert world.heard.lost == []
        async with world.link.use():
            assert world.sessions.started == 2

    with_link(key, test, idle_seconds=0.03)


def test_what_is_kept_is_not_idle(key: Key) -> None:
    async def test(world: World) -> None:
        with world.link.kept():
            async with world.link.use():
                pass
            await asyncio.sleep(0.05)
            assert world.link.status.state is LinkState.CONNECTED
        await world.until(lambda: world.link.status.state is LinkState.IDLE)

    with_link(key, test, idle_seconds=0.01)


def test_a_lost_connection_is_told_once_and_the_next_user_connects_again(key: Key) -> None:
    async def test(world: World) -> None:
        async with world.link.use() as session:
            await world.say(event="closed", error={"code": "TimedOut", "detail": ""})
            assert world.sessions.now is not None
            world.sessions.now.close()
            await world.until(lambda: bool(world.heard.lost))
            assert session.gone
        assert [e.code for e in world.heard.lost] == [Code.TIMED_OUT]
        assert world.link.status.state is LinkState.UNREACHABLE
        assert world.link.status.last_error[0] == "org.usbipssh1.Error.TimedOut"
        async with world.link.use() as session:
            assert not session.gone
        assert world.sessions.started == 2
        assert world.link.status.last_error == ("", "")
        assert len(world.heard.lost) == 1

    with_link(key, test)


@pytest.mark.parametrize(
    ("code", "detail", "offered"),
    [
        (Code.HOST_KEY_UNKNOWN, PRINT, PRINT),
        (Code.HOST_KEY_MISMATCH, PRINT, PRINT),
        (Code.HOST_KEY_UNKNOWN, f"{PRINT} is right, click here", ""),
        (Code.SSH_AUTH_FAILED, "", ""),
        (Code.CONNECTION_FAILED, "no such host", ""),
    ],
)
def test_an_attempt_that_fails_fails_for_everyone(
    key: Key, code: Code, detail: str, offered: str
) -> None:
    async def test(world: World) -> None:
        world.sessions.open_error = {"code": code.value, "detail": detail}
        users = [world.using()[0] for _ in range(2)]
        for task in users:
            with refused(code, "pi"):
                await task
        await world.until(lambda: world.link.status.state is LinkState.UNREACHABLE)
        assert world.link.status.offered_host_key == offered
        assert world.sessions.started == 1
        assert world.heard.lost == []
        world.link.forget_trouble()
        assert world.link.status.offered_host_key == ""
        assert world.link.status.state is LinkState.IDLE

    with_link(key, test)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsbipError(Code.FAILED, "No session."), Code.FAILED),
        (OSError(24, "Too many files"), Code.FAILED),
    ],
)
def test_a_session_that_cannot_be_started(key: Key, error: BaseException, code: Code) -> None:
    async def test(world: World) -> None:
        world.sessions.cannot = error
        with refused(code):
            await world.using()[0]
        assert world.link.status.state is LinkState.UNREACHABLE
        world.sessions.cannot = None
        async with world.link.use():
            pass

    with_link(key, test)


def test_a_session_that_never_answers(key: Key, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usbipsshd.link, "OPEN_SECONDS", 0.05)

    async def test(world: World) -> None:
        world.sessions.may_open.clear()
        with refused(Code.TIMED_OUT, "pi"):
            await world.using()[0]

    with_link(key, test)


def test_what_the_session_reports(key: Key) -> None:
    async def test(world: World) -> None:
        async with world.link.use():
            await world.say(event="changed")
            error = {"code": "DeviceNotFound", "detail": ""}
            await world.say(event="released", busid="1-1", error=error)
            await world.until(lambda: bool(world.heard.released))
        assert world.heard.devices == 1
        [(busid, why)] = world.heard.released
        assert (busid, why.code) == ("1-1", Code.DEVICE_NOT_FOUND)

    with_link(key, test)


def test_a_device_of_this_machine_that_left_the_remote(key: Key) -> None:
    async def test(world: World) -> None:
        async with world.link.use():
            await world.say(event="returned", busid="1-2")
            await world.until(lambda: bool(world.heard.returned))
        [(busid, why)] = world.heard.returned
        assert (busid, why.code) == ("1-2", Code.DEVICE_FAILED)
        assert "pi" in why.message

    with_link(key, test)


def test_a_report_that_is_malformed_costs_the_connection_alone(key: Key) -> None:
    async def test(world: World) -> None:
        async with world.link.use() as session:
            await world.say(event="released", busid="../x", error={})
            await world.until(lambda: session.gone)
        assert world.heard.released == []
        async with world.link.use() as session:
            assert not session.gone

    with_link(key, test)


def test_closing_while_somebody_waits(key: Key) -> None:
    async def test(world: World) -> None:
        world.sessions.may_open.clear()
        task, _ = world.using()
        await world.until(lambda: bool(world.sessions.opened))
        await world.link.close()
        with refused(Code.CANCELLED):
            await task

    with_link(key, test)


def test_no_descriptor_is_left(key: Key) -> None:
    async def test(world: World) -> None:
        before = len(open_before())
        for _ in range(3):
            async with world.link.use():
                pass
            await world.link.close()
        await settle()
        assert len(open_files()) <= before

    with_link(key, test)


def test_fetching_a_host_key(key: Key) -> None:
    async def main() -> None:
        sessions = Sessions()
        assert await fetch_host_key(sessions, ways(key), REMOTE, "") == "ssh-ed25519 AAAA"
        sessions.key = 5
        with refused(Code.FAILED):
            await fetch_host_key(sessions, ways(key), REMOTE, "")
        sessions.open_error = {"code": "ConnectionFailed", "detail": "connection refused"}
        with refused(Code.CONNECTION_FAILED, "refused"):
            await fetch_host_key(sessions, ways(key), REMOTE, PRINT)
        assert sessions.started == sessions.ended == 3

    run(main())
