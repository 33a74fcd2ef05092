# SPDX-License-Identifier: GPL-3.0-or-later
"""Packets and descriptors over the control socket."""

from __future__ import annotations

import array
import asyncio
import os
import socket

import pytest
from openfiles import open_before, open_files

from usbipsshd.messages import MAX_FDS, MAX_PACKET, BadPacket
from usbipsshd.seqpacket import SeqPacket


def pair() -> tuple[SeqPacket, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return SeqPacket(ours), theirs


def raw_send(sock: socket.socket, data: bytes, fds: list[int]) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]
    sock.sendmsg([data], rights if fds else [])


def test_a_packet_arrives_whole_with_its_descriptors() -> None:
    async def main() -> None:
        ours, theirs = pair()
        other = SeqPacket(theirs)
        read, write = os.pipe()
        await ours.send({"op": "a"}, (write,))
        await ours.send({"op": "b"})
        os.close(write)
        first, second = await other.receive(), await other.receive()
        assert first is not None
        assert second is not None
        assert (first[0], second[0]) == ({"op": "a"}, {"op": "b"})
        assert (len(first[1]), len(second[1])) == (1, 0)
        fd = first[1].take(0)
        assert not os.get_inheritable(fd)
        os.write(fd, b"x")
        assert os.read(read, 1) == b"x"
        with pytest.raises(BadPacket):
            first[1].take(0)
        os.close(fd)
        os.close(read)
        ours.close()
        assert await other.receive() is None
        other.close()

    asyncio.run(main())


def test_descriptors_that_nobody_takes_are_closed() -> None:
    async def main() -> None:
        ours, theirs = pair()
        before = open_before()
        raw_send(theirs, b'{"op":"a"}', [0, 1])
        received = await ours.receive()
        assert received is not None
        assert len(open_files() - before) == 2
        with received[1]:
            pass
        assert open_files() == before
        ours.close()
        theirs.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("data", "count"),
    [
        (b"{" * 100, 1),
        (b"[1]", 2),
        (b"\xff", 1),
        (b"{}", MAX_FDS + 1),
        (b"{}", 100),
        (b'{"a":"' + b"x" * MAX_PACKET + b'"}', 1),
    ],
)
def test_nonsense_is_refused_and_its_descriptors_closed(data: bytes, count: int) -> None:
    async def main() -> None:
        ours, theirs = pair()
        before = open_before()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MAX_PACKET)
        raw_send(theirs, data, [0] * count)
        raw_send(theirs, b'{"op":"next"}', [])
        with pytest.raises(BadPacket):
            await ours.receive()
        assert open_files() == before
        received = await ours.receive()
        assert received is not None
        assert received[0] == {"op": "next"}
        ours.close()
        theirs.close()

    asyncio.run(main())


def test_a_sender_waits_for_a_reader_and_order_is_kept() -> None:
    async def main() -> None:
        ours, theirs = pair()
        other = SeqPacket(theirs)
        text = "x" * 30000
        tasks = [asyncio.create_task(ours.send({"n": n, "text": text})) for n in range(100)]
        await asyncio.sleep(0)
        assert not all(task.done() for task in tasks)
        for n in range(100):
            received = await other.receive()
            assert received is not None
            assert received[0]["n"] == n
        await asyncio.gather(*tasks)
        ours.close()
        other.close()

    asyncio.run(main())


def test_cancelled_receive_loses_nothing_and_close_wakes_everyone() -> None:
    async def main() -> None:
        ours, theirs = pair()
        task = asyncio.create_task(ours.receive())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        raw_send(theirs, b'{"op":"a"}', [])
        received = await ours.receive()
        assert received is not None
        waiting = asyncio.create_task(ours.receive())
        await asyncio.sleep(0)
        ours.close()
        assert await waiting is None
        with pytest.raises(ConnectionError):
            await ours.send({})
        theirs.close()

    asyncio.run(main())


def test_a_blocked_sender_fails_when_the_other_side_goes() -> None:
    async def main() -> None:
        ours, theirs = pair()
        task = asyncio.create_task(fill(ours))
        for _ in range(50):
            await asyncio.sleep(0)
        theirs.close()
        with pytest.raises(ConnectionError):
            await task
        ours.close()

    async def fill(channel: SeqPacket) -> None:
        while True:
            await channel.send({"text": "x" * 60000})

    asyncio.run(main())


def test_too_much_is_not_sent() -> None:
    async def main() -> None:
        ours, theirs = pair()
        with pytest.raises(BadPacket):
            await ours.send({"a": "x" * MAX_PACKET})
        with pytest.raises(BadPacket):
            await ours.send({}, [0] * (MAX_FDS + 1))
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(1)
        ours.close()
        theirs.close()

    asyncio.run(main())


def test_only_the_right_kind_of_socket() -> None:
    a, b = socket.socketpair()
    with a, b, pytest.raises(ValueError, match="SEQPACKET"):
        SeqPacket(a)
