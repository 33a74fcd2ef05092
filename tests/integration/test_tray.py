# SPDX-License-Identifier: GPL-3.0-or-later
"""The tray against the real daemon: what happens is in the menu, and a click makes it happen."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest
from fakekernel import KEYBOARD, SERIAL_ADAPTER, STICK
from integration.notifier import notifications
from integration.panel import panel
from integration.sessionbus import SessionBus, session_bus
from integration.trays import LIMIT, spawn, tray
from integration.world import ALICE, ATTACHMENT, BOB, CAROL, World, world

STICK_ROW = "Disk: SanDisk Ultra"
KEYBOARD_ROW = "Keyboard: Logitech USB Keyboard"


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    with world() as made:
        made.pi.plug("2-1", STICK)
        made.pi.plug("1-1", KEYBOARD)
        made.add_remote()
        yield made


@pytest.fixture
def w(shared: World) -> Iterator[World]:
    yield shared
    shared.detach_all()
    shared.check_clean()


@pytest.fixture
def session(shared: World) -> Iterator[SessionBus]:
    with session_bus(shared.bus.spawn) as made:
        yield made


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


async def aside(function: Any, *arguments: Any) -> Any:
    """Something that waits for another process, while the panel goes on."""
    return await asyncio.to_thread(function, *arguments)


def test_objects_come_and_go_and_the_menu_follows(w: World, session: SessionBus) -> None:
    async def main() -> None:
        async with tray(session, w, ALICE) as (shown, told):
            menu = await shown.menu_with(lambda m: m.find(STICK_ROW))
            assert menu.labels()[:3] == ["pi: connected", KEYBOARD_ROW, STICK_ROW]
            assert not menu.find(STICK_ROW).checked
            assert (await shown.look())["Title"] == "USB over ssh: nothing is attached"
            number = menu.find(STICK_ROW).id

            path = await aside(w.attach, "2-1", ALICE, "pi", "keep", "b", "true")
            menu = await shown.menu_with(lambda m: m.find(STICK_ROW).checked)
            assert menu.find(STICK_ROW).id == number
            await told.next("SanDisk Ultra")
            assert "attached" in (await shown.look())["Title"]
            more = menu.find("More")
            about = more.find(STICK_ROW)
            assert about.find("Keep attached").checked
            nodes = w.get(path, ATTACHMENT, "DeviceNodes")
            for node in nodes:
                about.find(f"Copy {node}")
            about.find("Bus id there: 2-1")
            about.find("Speed: 5000 Mbit/s")

            # It is unplugged there, and waits.
            w.pi.unplug("2-1")
            await shown.menu_with(lambda m: not m.find(STICK_ROW).checked)
            menu = await shown.menu_with(lambda m: m.find(f"{STICK_ROW}, waiting"))
            assert "waiting" in (await shown.look())["Title"]
            w.pi.plug("2-1", STICK)
            await shown.menu_with(lambda m: m.find(STICK_ROW).checked)

            w.pi.plug("1-2", SERIAL_ADAPTER)
            await shown.menu_with(lambda m: m.find("Serial adapter: FTDI"))
            w.pi.unplug("1-2")
            await shown.menu_with(lambda m: not [x for x in m.labels() if x.startswith("Serial")])
            await aside(w.call, ALICE, "Detach", "sa{sv}", path, "0")
            await shown.menu_with(lambda m: m.find(STICK_ROW).label == STICK_ROW)

    run(main())


def test_a_click_attaches_and_another_one_detaches(w: World, session: SessionBus) -> None:
    async def main() -> None:
        async with tray(session, w, ALICE) as (shown, told):
            menu = await shown.menu_with(lambda m: m.find(STICK_ROW))
            await shown.click(menu.find(STICK_ROW))
            menu = await shown.menu_with(lambda m: m.find(STICK_ROW).checked)
            (path,) = w.attachments()
            assert w.get(path, ATTACHMENT, "OwnerUid") == ALICE
            await told.next("SanDisk Ultra")
            count = len(told.told)
            await shown.click(menu.find("More").find(STICK_ROW).find("Keep attached"))
            await shown.menu_with(
                lambda m: m.find("More").find(STICK_ROW).find("Keep attached").checked
            )
            assert w.get(path, ATTACHMENT, "Keep") is True
            await shown.click(menu.find(STICK_ROW))
            await shown.menu_with(lambda m: not m.find(STICK_ROW).checked)
            await shown.menu_with(lambda m: m.find(STICK_ROW).label == STICK_ROW)
            assert w.attachments() == []
            # What one clicks off is not told: the next thing that is told is another one.
            await aside(w.attach, "1-1")
            await told.next("Logitech")
            assert [s for s, _ in told.told[count:] if "SanDisk" in s] == []

    run(main())


def test_everything_there(w: World, session: SessionBus) -> None:
    async def main() -> None:
        async with tray(session, w, ALICE) as (shown, _told):
            menu = await shown.menu_with(lambda m: m.find(STICK_ROW))
            await shown.click(menu.find("Attach everything there"))
            menu = await shown.menu_with(
                lambda m: m.find(STICK_ROW).checked and m.find(KEYBOARD_ROW).checked
            )
            assert menu.find("Attach everything there").checked
            await shown.click(menu.find("Attach everything there"))
            rows = (STICK_ROW, KEYBOARD_ROW, "Attach everything there")
            await shown.menu_with(lambda m: not any(m.find(row).checked for row in rows))

    run(main())


def test_a_refusal_is_told_once(w: World, session: SessionBus) -> None:
    rows: list[str] = []

    async def main() -> None:
        async with tray(session, w, BOB) as (shown, told):
            menu = await shown.menu_with(lambda m: m.find("You may not"))
            rows.extend(menu.labels())
            # Alice has something attached, which Bob sees and may not take away.
            path = await aside(w.attach, "2-1")
            menu = await shown.menu_with(lambda m: m.find("Disk"))
            row = menu.find("Disk")
            assert row.checked
            assert row.label.endswith(", by another user")
            await shown.click(row)
            summary, body = await told.next("refused")
            assert "Detaching" in summary
            assert "polkit rule" in body
            assert w.get(path, ATTACHMENT, "State") == "attached"
        # It has ended: nothing more will come.
        assert [s for s, _ in told.told if "refused" in s] == [summary]

    run(main())
    assert "Try again" in rows


def test_where_nobody_can_be_asked_for_a_password_it_says_what_to_start(
    w: World, session: SessionBus
) -> None:
    async def main() -> None:
        async with tray(session, w, CAROL) as (shown, told):
            menu = await shown.menu_with(lambda m: m.find("Show its devices"))
            await shown.click(menu.find("Show its devices"))
            menu = await shown.menu_with(lambda m: m.find("You would have to give a password"))
            await shown.click(menu.find("Attach everything there"))
            _summary, body = await told.next("refused")
            assert "no polkit agent runs" in body
            menu = await shown.menu_with(lambda m: m.find("Nobody can be asked for a password"))
            assert menu.labels()[0].startswith("Nobody")
            assert "password" in (await shown.look())["Title"]

    run(main())


def test_the_daemon_is_restarted(w: World, session: SessionBus) -> None:
    async def main() -> None:
        async with tray(session, w, ALICE) as (shown, told):
            await shown.menu_with(lambda m: m.find(STICK_ROW))
            assert await aside(w.stop_daemon) == 0
            menu = await shown.menu_with(lambda m: m.find("The service usbipsshd is not running"))
            assert menu.find("Start it").enabled
            assert "not running" in (await shown.look())["Title"]
            await shown.click(menu.find("Start it"))
            await shown.menu_with(lambda m: m.find("Its log says more"))
            await aside(w.start_daemon)
            menu = await shown.menu_with(lambda m: m.find(STICK_ROW))
            await shown.click(menu.find(STICK_ROW))
            await shown.menu_with(lambda m: m.find(STICK_ROW).checked)
            assert all("refused" not in s for s, _ in told.told)

    run(main())


def test_the_panel_is_restarted(w: World, session: SessionBus) -> None:
    async def main() -> None:
        async with tray(session, w, ALICE) as (shown, _told):
            await shown.menu_with(lambda m: m.find(STICK_ROW))
            await shown.leave()
            await shown.start()
            await shown.item()
            await shown.menu_with(lambda m: m.find(STICK_ROW))

    run(main())


def test_one_tray_is_enough(w: World, session: SessionBus) -> None:
    async def main() -> None:
        async with tray(session, w, ALICE) as (shown, _told):
            await shown.menu_with(lambda m: m.find(STICK_ROW))
            second = await aside(spawn, session, w, ALICE)
            assert await aside(second.wait, LIMIT) == 0
            assert len(shown.items) == 1

    run(main())


def test_quit_ends_it_and_what_is_attached_stays(w: World, session: SessionBus) -> None:
    async def main() -> None:
        async with panel(session.address) as shown:
            process = await aside(spawn, session, w, ALICE)
            menu = await shown.menu_with(lambda m: m.find(STICK_ROW))
            await shown.click(menu.find(STICK_ROW))
            menu = await shown.menu_with(lambda m: m.find(STICK_ROW).checked)
            await shown.click(menu.find("Quit"))
            assert await aside(process.wait, LIMIT) == 0
            assert len(w.attachments()) == 1

    run(main())


def test_a_panel_that_comes_later_than_the_tray(w: World, session: SessionBus) -> None:
    async def main() -> None:
        async with notifications(session.address) as told:
            process = await aside(spawn, session, w, ALICE)
            # It has looked for a panel once it has its name.
            async with panel(session.address, watch=False) as onlooker:
                await onlooker.named("org.usbipssh1.Tray")
                await onlooker.start()
                await onlooker.menu_with(lambda m: m.find(STICK_ROW))
            process.terminate()
            assert await aside(process.wait, LIMIT) == 0
            assert told.told == []

    run(main())


def test_where_nothing_shows_icons_it_says_what_to_install(w: World, session: SessionBus) -> None:
    async def main() -> None:
        async with notifications(session.address) as told:
            process = await aside(spawn, session, w, ALICE)
            _summary, body = await told.next("cannot be shown")
            assert "AppIndicator and KStatusNotifierItem Support" in body
            assert await aside(process.wait, LIMIT) == 1
            assert len(told.told) == 1

    run(main())


def test_without_a_session_bus_it_says_so(w: World, session: SessionBus) -> None:
    process = spawn(
        session, w, ALICE, stderr=subprocess.PIPE,
        environment={"DBUS_SESSION_BUS_ADDRESS": "unix:path=/nonexistent"},
    )  # fmt: skip
    _out, error = process.communicate(timeout=LIMIT)
    assert process.returncode == 1
    assert b"no session bus" in error
    assert b"Traceback" not in error
