# SPDX-License-Identifier: GPL-3.0-or-later
"""The tray in a real panel, with the real daemon. Pictures are left in build/desktop."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from desktop.screen import SECONDS, desktop, until
from desktop.traymenu import TrayMenu
from fakekernel import KEYBOARD, SERIAL_ADAPTER, STICK
from integration.world import ATTACHMENT, REMOTE, ROOT, World, world

from usbipssh_tray.status import Status

DEVICES = {"1-1": KEYBOARD, "1-2": SERIAL_ADAPTER, "2-1": STICK}
PI, DISK = "raspberry: ", "Disk: SanDisk Ultra"
BENCH = f"{ROOT}/remote/bench3"
ABSENT = "The service usbipsshd is not running."


@pytest.fixture(scope="module")
def machines() -> Iterator[World]:
    with world() as made:
        for busid, device in DEVICES.items():
            made.pi.plug(busid, device)
        made.add_remote("raspberry")
        # The same machine under a name whose key nobody has looked at.
        where = f"root@127.0.0.1:{made.ssh.port}"
        made.call(0, "AddRemote", "sa{sv}", "bench3", "1", "address", "s", where)
        yield made


@pytest.fixture(scope="module")
def menu(machines: World) -> Iterator[TrayMenu]:
    with desktop() as screen:
        screen.start_panel()
        tray = screen.spawn(
            [sys.executable, "-m", "usbipssh_tray", "--debug"],
            "tray",
            {"DBUS_SYSTEM_BUS_ADDRESS": machines.bus.address},
        )
        try:
            yield TrayMenu(screen)
        finally:
            tray.send_signal(signal.SIGTERM)
            try:
                assert tray.wait(SECONDS) == 0
            except subprocess.TimeoutExpired:
                tray.kill()
                tray.wait(SECONDS)
                raise


@pytest.fixture(autouse=True)
def closed(menu: TrayMenu, machines: World, request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test begins with nothing attached, the menu closed, and everything listed."""
    until(lambda: menu.has(DISK, "Look again"), "the devices in the menu")
    yield
    menu.desktop.keep(f"end-of-{request.node.name}")
    menu.close()
    machines.detach_all()


def test_a_click_attaches_and_another_one_gives_it_back(menu: TrayMenu, machines: World) -> None:
    menu.shows(Status.IDLE)
    menu.desktop.keep("icon-idle")
    menu.click(DISK, picture="menu-idle")
    menu.shows(Status.ATTACHED)
    assert len(machines.attachments()) == 1
    menu.click(DISK, picture="menu-attached")
    menu.shows(Status.IDLE)
    until(lambda: not machines.attachments(), "the attachment to end")


def test_submenus_open_and_their_rows_work(menu: TrayMenu, machines: World) -> None:
    menu.click(DISK)
    menu.shows(Status.ATTACHED)
    menu.click("More", DISK, "Keep attached", section=PI, picture="menu-more")
    (path,) = machines.attachments()
    until(lambda: machines.get(path, ATTACHMENT, "Keep"), "keep")


def test_the_icon_is_back_when_the_panel_is_restarted(menu: TrayMenu, machines: World) -> None:
    menu.shows(Status.IDLE)
    menu.desktop.kill_panel()
    until(lambda: menu.icon(Status.IDLE) is None, "the panel to go")
    menu.desktop.start_panel()
    menu.shows(Status.IDLE)
    menu.click(DISK)
    menu.shows(Status.ATTACHED)
    assert len(machines.attachments()) == 1


def test_the_menu_recovers_when_the_daemon_is_restarted(menu: TrayMenu, machines: World) -> None:
    machines.stop_daemon()
    menu.shows(Status.TROUBLE)
    menu.look(ABSENT, "menu-no-daemon")
    machines.start_daemon()
    menu.shows(Status.IDLE)
    until(lambda: menu.has(PI, DISK), "the devices, without anybody asking for them")
    menu.click(DISK)
    menu.shows(Status.ATTACHED)


def test_a_machine_is_added(menu: TrayMenu, machines: World) -> None:
    menu.click("Add a machine")
    until(lambda: menu.desktop.has_keyboard("Add a machine"), "the dialog")
    menu.desktop.type(f"127.0.0.1:{machines.ssh.port}")
    menu.desktop.keys("alt+n", "ctrl+a")
    menu.desktop.type("third")
    menu.desktop.keys("Return")
    until(lambda: menu.has("third: "), "the new machine")
    machines.call(0, "RemoveRemote", "sa{sv}", "third", "0")
    until(lambda: not menu.has("third: "), "the machine to go")


def test_a_host_key_is_looked_at_and_trusted(menu: TrayMenu, machines: World) -> None:
    menu.click("Look at its key", section="bench3")
    until(lambda: menu.desktop.has_keyboard("Is this bench3?"), "the dialog")
    menu.desktop.keys("Escape")
    until(lambda: not menu.desktop.has_keyboard("Is this bench3?"), "the dialog to close")
    assert machines.get(BENCH, REMOTE, "OfferedHostKey") == machines.fingerprint()
    menu.click("Look at its key", section="bench3")
    until(lambda: menu.desktop.has_keyboard("Is this bench3?"), "the dialog")
    menu.desktop.keys("alt+t")
    until(lambda: menu.has("bench3: connected"), "the machine to be trusted")
    assert machines.get(BENCH, REMOTE, "OfferedHostKey") == ""
