# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent of this machine as the root process sees it: started, asked, lost, taken over."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from unit.made import KEYBOARD, STICK, refused, run

from usbipsshd.errors import Code, UsbipError
from usbipsshd.here import DESCRIPTOR_NAME, Here

Work = Callable[["World"], Awaitable[None]]
BIND = "bind 2-2 46f4 0001 2 2 1"


class World:
    """Agents that do what a test says, and a place to leave their sockets."""

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self.here = Here(group=group, launcher=self, keeper=self)
        self.here.listen(lambda busid, error: self.lost.append((busid, error.code)))
        self.lost: list[tuple[str, Code]] = []
        self.kept: set[str] = set()
        self.agents = 0
        self.requests: list[str] = []
        self.answers: dict[str, str] = {}
        """How requests end, by their verb; ``ok`` if nothing is said, never if empty."""
        self.ends: list[socket.socket] = []
        self.said = asyncio.Event()
        self.can_start = True

    def store(self, name: str, fd: int) -> None:
        self.kept.add(name)

    def unstore(self, name: str) -> None:
        self.kept.discard(name)

    @asynccontextmanager
    async def agent(self) -> AsyncIterator[socket.socket]:
        if not self.can_start:
            raise UsbipError(Code.FAILED, "There is no socket.")
        self.agents += 1
        ours, theirs = socket.socketpair()
        self.ends.append(theirs)
        talking = asyncio.create_task(self.talk(theirs))
        try:
            with ours:
                yield ours
        finally:
            await asyncio.wait([talking])

    async def talk(self, sock: socket.socket) -> None:
        """Be an agent, until its input ends."""
        reader, writer = await asyncio.open_connection(sock=sock)
        writer.write(b"hello 1 0 6.1 debian perl\n")
        while line := (await reader.readline()).decode().rstrip("\n"):
            tag, _, request = line.partition(" ")
            self.requests.append(request)
            self.said.set()
            answer = self.answers.get(request.partition(" ")[0], "ok")
            if answer:
                writer.write(f"{tag} dir /run/x\n{tag} {answer}\n".encode())
        writer.close()


def with_world(work: Work) -> None:
    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            world = World(group)
            await work(world)
            await world.here.close()
        assert world.kept == set()

    run(main(), 20)


def test_it_is_there_for_as_long_as_a_device_is_exported() -> None:
    async def work(world: World) -> None:
        await world.here.bind(STICK, unmount=True)
        assert world.kept == {DESCRIPTOR_NAME}
        await world.here.bind(KEYBOARD, unmount=False)
        await world.here.release(STICK.busid, rebind=True)
        assert world.here.holds(KEYBOARD.busid)
        assert not world.here.holds(STICK.busid)
        await world.here.release(KEYBOARD.busid, rebind=False)
        await world.here.bind(STICK, unmount=True)
        assert world.agents == 2
        assert world.requests[0] == BIND
        assert world.requests[2:4] == [
            f"release {STICK.busid} 1",
            f"release {KEYBOARD.busid} 0",
        ]
        await world.here.release(STICK.busid, rebind=True)

    with_world(work)


def test_what_it_refuses_is_told_of_this_machine() -> None:
    async def work(world: World) -> None:
        world.answers["bind"] = "fail DeviceBusy sleep (process 12) uses /mnt"
        with refused(Code.DEVICE_BUSY, "on this machine (sleep (process 12) uses /mnt)"):
            await world.here.bind(STICK, unmount=True)
        assert not world.here.holds(STICK.busid)
        world.answers["bind"] = "fail ModuleUnavailable usbip-host"
        with refused(Code.MODULE_UNAVAILABLE, "This machine has no kernel module usbip-host"):
            await world.here.bind(STICK, unmount=True)
        await world.here.release(STICK.busid, rebind=True)
        assert not any(r.startswith("release") for r in world.requests)

    with_world(work)


def test_what_was_asked_for_is_awaited_by_who_undoes_it() -> None:
    async def work(world: World) -> None:
        world.answers["bind"] = ""
        binding = asyncio.create_task(world.here.bind(STICK, unmount=True))
        await world.said.wait()
        binding.cancel()
        await asyncio.wait([binding])
        releasing = asyncio.create_task(world.here.release(STICK.busid, rebind=True))
        await asyncio.sleep(0)
        assert world.requests == [BIND]
        # Its answer never comes: it has ended, and the next one gives back what it left.
        world.ends[0].shutdown(socket.SHUT_RDWR)
        await releasing
        assert not world.here.holds(STICK.busid)

    with_world(work)


def test_one_that_is_lost_is_told_and_the_next_gives_back_what_it_had() -> None:
    async def work(world: World) -> None:
        await world.here.bind(STICK, unmount=True)
        lost = asyncio.Event()
        world.here.listen(lambda busid, error: lost.set())
        world.ends[0].shutdown(socket.SHUT_RDWR)
        await lost.wait()
        assert world.lost == [(STICK.busid, Code.DEVICE_FAILED)]
        await world.here.release(STICK.busid, rebind=True)
        assert world.agents == 2
        assert world.requests[-1] == f"unbind {STICK.busid}"

    with_world(work)


def test_another_process_goes_on_with_it() -> None:
    async def work(world: World) -> None:
        ours, theirs = socket.socketpair()
        talking = asyncio.create_task(world.talk(theirs))
        world.here.take_over(ours.detach(), [STICK.busid])
        assert world.here.holds(STICK.busid)
        await world.here.release(STICK.busid, rebind=True)
        await world.here.close()
        await talking
        assert world.agents == 0

    with_world(work)


def test_one_that_was_left_for_nothing_ends() -> None:
    async def work(world: World) -> None:
        ours, theirs = socket.socketpair()
        talking = asyncio.create_task(world.talk(theirs))
        world.here.take_over(ours.detach(), [])
        await talking

    with_world(work)


def test_it_is_left_as_it_is_for_another_process() -> None:
    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            world = World(group)
            await world.here.bind(STICK, unmount=True)
            kept = world.ends[0].dup()
            abandoned = asyncio.create_task(world.here.abandon())
            await world.said.wait()
            world.ends[0].shutdown(socket.SHUT_RDWR)
            await abandoned
            kept.close()
        assert world.kept == {DESCRIPTOR_NAME}
        assert world.lost == []
        assert world.requests == [BIND]

    run(main(), 20)


def test_it_cannot_be_started() -> None:
    async def work(world: World) -> None:
        world.can_start = False
        for _ in range(2):
            with refused(Code.FAILED, "no socket"):
                await world.here.bind(STICK, unmount=True)

    with_world(work)
