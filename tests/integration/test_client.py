# SPDX-License-Identifier: GPL-3.0-or-later
"""The client of the daemon that the tray and the command line share, against the real daemon."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fakekernel import KEYBOARD, STICK
from integration.world import ALICE, BOB, ROOT, World, world

from usbipsshd.client.daemon import Client
from usbipsshd.client.errors import ClientError
from usbipsshd.client.snapshot import Snapshot

SECONDS = 60.0


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    with world() as made:
        made.add_remote()
        yield made


@pytest.fixture
def w(shared: World) -> Iterator[World]:
    for busid, device in {"2-1": STICK, "1-1": KEYBOARD}.items():
        shared.pi.plug(busid, device)
    yield shared
    shared.detach_all()
    shared.unplug_all()


@asynccontextmanager
async def client(w: World, uid: int = ALICE) -> AsyncIterator[Client]:
    """A client that the bus takes for ``uid``'s."""
    made = Client(w.bus.address)
    # The bus takes the credentials of the moment when the socket is connected.
    os.setresuid(uid, uid, 0)
    try:
        await made.connect()
    finally:
        os.setresuid(0, 0, 0)
    try:
        yield made
    finally:
        await made.close()


def run(main: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(2 * SECONDS):
            await main
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(bounded())


def states(snapshot: Snapshot) -> list[str]:
    return [a.state for a in snapshot.attachments]


def is_(*wanted: str) -> Callable[[Snapshot], bool]:
    return lambda snapshot: states(snapshot) == list(wanted)


def test_what_it_publishes_follows_what_happens(w: World) -> None:
    async def main() -> None:
        async with client(w) as one:
            assert one.snapshot.present
            assert one.snapshot.manager.version
            assert one.snapshot.manager.public_key.startswith("ssh-ed25519 ")
            assert [r.name for r in one.snapshot.remotes] == ["pi"]
            assert one.snapshot.attachments == ()
            free = one.snapshot.manager.free_ports
            seen: list[list[str]] = []
            stop = one.listen(lambda: seen.append(states(one.snapshot)))
            path = await one.attach("pi", "2-1", {"keep": True})
            (attachment,) = (await one.wait_until(is_("attached"), SECONDS)).attachments
            assert attachment.path == path
            assert attachment.keep
            assert not attachment.persist
            assert attachment.owner_uid == ALICE
            assert attachment.remote_bus_id == "2-1"
            assert attachment.name
            assert attachment.speed == 5000.0
            assert attachment.device_nodes
            await one.wait_until(lambda s: s.manager.free_ports != free, SECONDS)
            await one.set_options(path, {"keep": False})
            await one.wait_until(lambda s: not s.attachments[0].keep, SECONDS)
            assert set(await one.statistics(path)) == {"received", "sent"}
            assert await one.detach(path) == 1
            await one.wait_until(lambda s: s.attachments == (), SECONDS)
            stop()
            told = list(seen)
            assert [] in told
            assert ["connecting"] in told
            assert ["attached"] in told

    run(main())


def test_devices(w: World) -> None:
    async def main() -> None:
        async with client(w) as one:
            plugged: asyncio.Queue[str] = asyncio.Queue()
            one.listen_to_plugs(plugged.put_nowait)
            devices = {d.busid: d for d in await one.list_remote("pi")}
            assert devices["2-1"].state == "available"
            assert devices["2-1"].interfaces[0].triple == "080650"
            assert devices["1-1"].interfaces[0].name == "kbd"
            w.pi.unplug("1-1")
            assert await asyncio.wait_for(plugged.get(), SECONDS) == "pi"
            assert {d.busid for d in await one.list_remote("pi", "2-1")} == {"2-1"}
            path = await one.attach("pi", "2-1")
            (stick,) = await one.list_remote("pi", "2-1")
            assert (stick.state, stick.attachment) == ("attached", path)
            assert await one.list_local("9-9") == []
            hub = await one.attach_all("pi", "0627")
            await one.wait_until(lambda s: [h.path for h in s.hubs] == [hub], SECONDS)

    run(main())


def test_errors_are_the_daemons(w: World) -> None:
    async def main() -> None:
        async with client(w, BOB) as bob, client(w) as alice:
            with pytest.raises(ClientError) as refused:
                await bob.list_remote("pi")
            assert refused.value.code == "AccessDenied"
            with pytest.raises(ClientError) as missing:
                await alice.attach("pi", "7-7")
            assert missing.value.name == "org.usbipssh1.Error.DeviceNotFound"
            assert "pi" in missing.value.message
            with pytest.raises(ClientError) as unknown:
                await alice.attach("pi", "2-1", {"kep": True})
            assert unknown.value.code == "InvalidArgs"

    run(main())


def test_remotes(w: World) -> None:
    async def main() -> None:
        async with client(w) as one:
            path = await one.add_remote("other", address="root@127.0.0.1:1", label="Another")
            assert path == f"{ROOT}/remote/other"
            await one.wait_until(lambda s: [r.name for r in s.remotes] == ["other", "pi"], SECONDS)
            with pytest.raises(ClientError) as failed:
                await one.list_remote("other")
            assert failed.value.code == "ConnectionFailed"
            found = await one.wait_until(lambda s: s.remotes[0].state == "unreachable", SECONDS)
            assert found.remotes[0].label == "Another"
            assert found.remotes[0].last_error[0].endswith("ConnectionFailed")
            await one.remove_remote("other")
            await one.wait_until(lambda s: len(s.remotes) == 1, SECONDS)

    run(main())


def test_the_daemon_goes_and_comes_back(w: World) -> None:
    async def main() -> None:
        async with client(w) as one:
            path = await one.attach("pi", "2-1")
            await one.wait_until(is_("attached"), SECONDS)
            waiting = asyncio.create_task(one.attach("pi", "1-1"))
            assert await asyncio.to_thread(w.stop_daemon) == 0
            gone = await one.wait_until(lambda s: not s.present, SECONDS)
            assert gone.attachments == ()
            assert gone.remotes == ()
            # Whatever became of it, it has ended, and tells.
            with pytest.raises(ClientError):
                await waiting
            with pytest.raises(ClientError) as absent:
                await one.detach(path)
            assert "usbipsshd" in absent.value.message
            await asyncio.to_thread(w.start_daemon)
            back = await one.wait_until(lambda s: bool(s.manager.version and s.remotes), SECONDS)
            assert [r.name for r in back.remotes] == ["pi"]
            await one.attach("pi", "2-1")
            await one.wait_until(is_("attached"), SECONDS)

    run(main())


def test_somebody_else_tells_lies(w: World) -> None:
    """Only the daemon's signals count, also when they are sent to the client alone."""

    async def main() -> None:
        async with client(w) as one:
            await one.attach("pi", "2-1")
            await one.wait_until(is_("attached"), SECONDS)
            assert one._bus is not None
            done = await asyncio.to_thread(
                w.bus.busctl,
                ALICE,
                f"--destination={one._bus.name}",
                "emit",
                ROOT,
                "org.freedesktop.DBus.ObjectManager",
                "InterfacesRemoved",
                "oas",
                one.snapshot.attachments[0].path,
                "1",
                "org.usbipssh1.Attachment",
            )
            assert done.returncode == 0, done.stderr
            # What is asked after it is answered after it.
            await one.list_local()
            assert states(one.snapshot) == ["attached"]

    run(main())


def test_without_a_bus(tmp_path: Any) -> None:
    async def main() -> None:
        with pytest.raises(ClientError) as failed:
            await Client(f"unix:path={tmp_path}/none").connect()
        assert "bus" in failed.value.message

    run(main())
