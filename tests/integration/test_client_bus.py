# SPDX-License-Identifier: GPL-3.0-or-later
"""A client's connection to the bus: descriptors, a bus that is slow, a bus that is gone."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from integration.sessionbus import SessionBus, session_bus
from openfiles import open_before, open_files

from usbipsshd.bus.connection import Connection
from usbipsshd.bus.values import BusError, Call, Disconnected, Reply, Variant
from usbipsshd.client.bus import Asked, Bus, Signal

LIMIT = 30.0


@pytest.fixture
def bus() -> Iterator[SessionBus]:
    with session_bus() as made:
        yield made


@asynccontextmanager
async def client(bus: SessionBus) -> AsyncIterator[Bus]:
    made = Bus(bus.address)
    await made.connect()
    try:
        yield made
    finally:
        await made.close()


def test_descriptors_go_along_and_stay_the_callers(bus: SessionBus) -> None:
    async def read(call: Call) -> Reply:
        (options,) = call.args
        assert isinstance(options, dict)
        fd = call.take(options["ssh-agent"].value)
        try:
            return Reply("s", [os.read(fd, 10).decode()])
        finally:
            os.close(fd)

    async def main() -> None:
        service = Connection(bus.address)
        await service.start(read)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            async with client(bus) as one:
                before = len(open_before())
                for text in ("one", "two"):
                    ours.send(text.encode())
                    options = {"ssh-agent": Variant("h", 0)}
                    answer = await one.call(
                        str(service.unique_name), "/a", "a.b", "Read", "a{sv}", [options],
                        fds=[theirs.fileno()],
                    )  # fmt: skip
                    assert answer == (text,)
                assert len(open_files()) <= before
                ours.send(b"mine")
                assert theirs.recv(10) == b"mine"
        await service.stop(1)

    asyncio.run(main())


def test_a_bus_that_reads_nothing_for_a_while_loses_nothing(bus: SessionBus) -> None:
    """More than a socket holds is sent meanwhile, as a panel's menu is."""
    text = "x" * 10_000
    count = 200

    async def main() -> None:
        async with client(bus) as sender, client(bus) as listener:
            arrived: asyncio.Queue[object] = asyncio.Queue()

            def heard(signal: Signal) -> None:
                if signal.interface == "a.b":
                    arrived.put_nowait(signal.body[0])

            listener.listen(heard)
            await listener.subscribe(interface="a.b")
            bus.signal(signal.SIGSTOP)
            try:
                for number in range(count):
                    sender.emit("/a", "a.b", "C", "s", [f"{number} {text}"])
            finally:
                bus.signal(signal.SIGCONT)
            async with asyncio.timeout(LIMIT):
                for number in range(count):
                    assert await arrived.get() == f"{number} {text}"
            assert not sender.gone.done()

    asyncio.run(main())


def test_a_bus_that_goes_ends_what_waits_for_it(bus: SessionBus) -> None:
    async def never(_call: Call) -> Reply:
        await asyncio.Event().wait()
        return Reply()

    async def main() -> None:
        service = Connection(bus.address)
        await service.start(never)
        async with client(bus) as one:
            call = one.call(str(service.unique_name), "/a", "a.b", "Wait")
            waiting = asyncio.create_task(call)
            # What is asked after it is answered after it has been sent.
            await one.owner("a.b")
            bus.stop()
            with pytest.raises(Disconnected):
                async with asyncio.timeout(LIMIT):
                    await waiting
            async with asyncio.timeout(LIMIT):
                await one.gone
            with pytest.raises(Disconnected):
                await one.owner("a.b")
            one.emit("/a", "a.b", "C")
        await service.stop(0)
        bus.start()

    asyncio.run(main())


def test_calls_are_answered_by_whoever_serves(bus: SessionBus) -> None:
    def service(asked: Asked) -> Reply:
        if asked.member == "Double":
            (number,) = asked.body
            assert isinstance(number, int)
            return Reply("i", [2 * number])
        raise BusError("a.b.Error.No", "No.")

    async def main() -> None:
        async with client(bus) as one, client(bus) as other:
            with pytest.raises(BusError) as nobody:
                await other.call(one.name, "/a", "a.b", "Double", "i", [4])
            assert nobody.value.name.endswith(".UnknownMethod")
            one.serve(service)
            assert await other.call(one.name, "/a", "a.b", "Double", "i", [4]) == (8,)
            with pytest.raises(BusError) as refused:
                await other.call(one.name, "/a", "a.b", "Triple")
            assert (refused.value.name, refused.value.message) == ("a.b.Error.No", "No.")

    asyncio.run(main())
