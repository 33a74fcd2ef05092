# SPDX-License-Identifier: GPL-3.0-or-later
"""The root end of the control socket against a session that behaves, and one that does not."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from unit.made import run, settle

from usbipsshd.control import Session, SessionFailure
from usbipsshd.errors import Code
from usbipsshd.messages import MAX_DEVICES, MAX_FDS, Packet, decode
from usbipsshd.seqpacket import SeqPacket

Test = Callable[["Peer"], Awaitable[None]]


class Peer:
    """The other end: what the session process would be."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.raw = theirs
        self.channel = SeqPacket(theirs)
        self.events: list[Packet] = []
        self.session = Session(SeqPacket(ours), "pi", self.events.append, lambda: 1)

    async def hear(self) -> dict[str, Any]:
        received = await self.channel.receive()
        assert received is not None
        return received[0]

    async def say(self, fds: list[int] | None = None, **packet: Any) -> None:
        await self.channel.send(packet, fds or [])

    def ask(self, op: str = "list", seconds: float = 25, **fields: Any) -> asyncio.Task[Any]:
        return asyncio.create_task(self.session.request(op, seconds=seconds, **fields))


def against(test: Test) -> None:
    """Run a test against a peer; its session must end when the peer has."""

    async def main() -> None:
        peer = Peer()
        reading = asyncio.create_task(peer.session.run())
        try:
            await test(peer)
        finally:
            peer.channel.close()
            await reading
        assert peer.session.gone

    run(main())


async def failure(task: asyncio.Task[Any]) -> tuple[Code, str]:
    with pytest.raises(SessionFailure) as caught:
        await task
    return caught.value.code, caught.value.detail


def test_answers_find_their_requests_in_any_order() -> None:
    async def test(peer: Peer) -> None:
        first, second = peer.ask(busid=""), peer.ask("unbind", busid="1-1")
        asked = [await peer.hear(), await peer.hear()]
        assert [a["op"] for a in asked] == ["list", "unbind"]
        one, two = asked[0]["id"], asked[1]["id"]
        await peer.say(id=one, row={"n": 1})
        await peer.say(id=two, ok={"for": "second"})
        await peer.say(id=one, row={"n": 2})
        await peer.say(id=one, ok={})
        assert (await second).ok == {"for": "second"}
        reply = await first
        assert [r["n"] for r in reply.rows] == [1, 2]

    against(test)


def test_an_error_is_that_requests_alone() -> None:
    async def test(peer: Peer) -> None:
        first, second = peer.ask(), peer.ask()
        one, two = (await peer.hear())["id"], (await peer.hear())["id"]
        await peer.say(id=one, error={"code": "DeviceBusy", "detail": "sda\x1b is mounted"})
        assert await failure(first) == (Code.DEVICE_BUSY, "sda is mounted")
        await peer.say(id=two, ok={})
        assert (await second).rows == []

    against(test)


def test_a_silent_session_is_told_to_stop_and_its_late_answer_is_nobodys() -> None:
    async def test(peer: Peer) -> None:
        slow = peer.ask(seconds=0.02)
        number = (await peer.hear())["id"]
        assert (await failure(slow))[0] is Code.TIMED_OUT
        cancel = await peer.hear()
        assert (cancel["op"], cancel["request"]) == ("cancel", number)
        read, write = os.pipe()
        await peer.say([write], id=number, ok={})
        os.close(write)
        await peer.say(id=cancel["id"], ok={})
        # A descriptor that nobody waits for is closed: the pipe has no writer left.
        await settle()
        assert os.read(read, 1) == b""
        os.close(read)
        again = peer.ask()
        await peer.say(id=(await peer.hear())["id"], ok={"again": True})
        assert (await again).ok == {"again": True}

    against(test)


def test_a_caller_that_leaves_cancels_its_request() -> None:
    async def test(peer: Peer) -> None:
        left = peer.ask("export")
        number = (await peer.hear())["id"]
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        assert (await peer.hear())["request"] == number

    against(test)


def test_descriptors_come_along_and_are_the_callers() -> None:
    async def test(peer: Peer) -> None:
        task = peer.ask("export")
        number = (await peer.hear())["id"]
        read, write = os.pipe()
        await peer.say([write], id=number, ok={})
        os.close(write)
        reply = await task
        fd = reply.descriptors.take(0)
        os.write(fd, b"x")
        os.close(fd)
        assert os.read(read, 2) == b"x"
        assert os.read(read, 2) == b""
        os.close(read)

    against(test)


@pytest.mark.parametrize("kind", ["row", "error", "event", "stranger"])
def test_stray_descriptors_are_closed(kind: str) -> None:
    async def test(peer: Peer) -> None:
        task = peer.ask()
        number = (await peer.hear())["id"]
        read, write = os.pipe()
        packet: dict[str, dict[str, Any]] = {
            "row": {"id": number, "row": {}},
            "error": {"id": number, "error": {"code": "Failed", "detail": ""}},
            "event": {"event": "changed"},
            "stranger": {"id": number + 1, "ok": {}},
        }
        await peer.say([write], **packet[kind])
        os.close(write)
        await settle()
        assert os.read(read, 1) == b""
        os.close(read)
        if kind == "error":
            assert (await failure(task))[0] is Code.FAILED
        else:
            # An answer that nobody here waits for may have been the process before's.
            await peer.say(id=number, ok={})
            assert len((await task).descriptors) == 0

    against(test)


@pytest.mark.parametrize(
    "data",
    [b"nonsense", b"[]", b"{}", b'{"id":1}', b'{"id":1,"ok":[]}', b'{"id":1,"row":3}',
     b'{"id":-1,"ok":{}}',
     b'{"id":true,"ok":{}}', b'{"id":1,"error":{}}', b'{"event":7}',
     b'{"id":1,"error":{"code":"NoSuchCode","detail":""}}', b'{"event":"closed"}',
     b'{"event":"' + b"x" * 99 + b'"}'],
)  # fmt: skip
def test_a_session_that_misbehaves_is_ended(data: bytes) -> None:
    async def test(peer: Peer) -> None:
        tasks = [peer.ask(), peer.ask()]
        await peer.hear()
        await peer.hear()
        peer.raw.send(data)
        for task in tasks:
            assert (await failure(task))[0] in {Code.FAILED}
        assert await peer.channel.receive() is None
        assert (await failure(peer.ask()))[0] is Code.FAILED

    against(test)


def test_too_many_rows() -> None:
    async def test(peer: Peer) -> None:
        task = peer.ask()
        number = (await peer.hear())["id"]
        try:
            for _ in range(MAX_DEVICES + 1):
                await peer.say(id=number, row={})
        except ConnectionError:
            pass
        assert (await failure(task))[0] is Code.FAILED

    against(test)


def test_too_many_descriptors() -> None:
    async def test(peer: Peer) -> None:
        task = peer.ask()
        await peer.hear()
        read, write = os.pipe()
        socket.send_fds(peer.raw, [b'{"event":"changed"}'], [write] * (MAX_FDS + 1))
        os.close(write)
        assert (await failure(task))[0] is Code.FAILED
        assert os.read(read, 1) == b""
        os.close(read)

    against(test)


def test_a_session_that_ends_fails_what_waits_and_what_comes() -> None:
    async def test(peer: Peer) -> None:
        task = peer.ask()
        await peer.hear()
        peer.channel.close()
        assert (await failure(task))[0] is Code.CONNECTION_FAILED
        assert peer.session.gone
        assert peer.session.ended.code is Code.CONNECTION_FAILED
        assert (await failure(peer.ask()))[0] is Code.CONNECTION_FAILED

    against(test)


def test_why_it_ended_is_what_it_said() -> None:
    async def test(peer: Peer) -> None:
        task = peer.ask()
        await peer.hear()
        await peer.say(event="closed", error={"code": "TimedOut", "detail": "no keepalive"})
        peer.channel.close()
        assert await failure(task) == (Code.TIMED_OUT, "no keepalive")
        assert [e["event"] for e in peer.events] == ["closed"]

    against(test)


def test_a_session_that_does_not_read_cannot_hold_up_a_request_for_ever() -> None:
    async def test(peer: Peer) -> None:
        peer.raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        tasks = [peer.ask(seconds=0.1, busid="x" * 200) for _ in range(900)]
        # Sending their cancellations waits too; closing lets everyone go.
        await asyncio.sleep(0.2)
        peer.session.close()
        for task in tasks:
            assert (await failure(task))[0] in {Code.TIMED_OUT, Code.CONNECTION_FAILED}

    against(test)


def test_closing_is_seen_by_the_other_end() -> None:
    async def test(peer: Peer) -> None:
        peer.session.close()
        assert await peer.channel.receive() is None

    against(test)


def test_requests_are_plain_packets() -> None:
    async def test(peer: Peer) -> None:
        task = peer.ask("open", host="pi", port=22, sudo=False)
        await settle()
        sent = decode(peer.raw.recv(65536))
        assert sent == {"op": "open", "id": sent["id"], "host": "pi", "port": 22, "sudo": False}
        await peer.say(id=sent["id"], ok={})
        await task

    against(test)
