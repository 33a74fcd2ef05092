# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs on desk, in a person's session: starts the tray there, clicks, and prints what came of it.

traydriver.py attach | refused
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from integration import panel as panels
from integration.notifier import NotificationServer, notifications
from integration.panel import Panel, panel

STICK = "Disk: "

# Python is slow on an emulated machine.
panels.LIMIT = 150.0


def disks() -> list[str]:
    """The disks that are here; the machine's own is called otherwise."""
    return sorted(str(node) for node in Path("/dev").glob("sd*") if node.is_block_device())


Told = dict[str, object]


async def attach(shown: Panel, told: NotificationServer) -> Told:
    """Click the stick, and click it again."""
    menu = await shown.menu_with(lambda m: m.find(STICK), "the stick")
    row = menu.find(STICK)
    before = disks()
    await shown.click(row)
    menu = await shown.menu_with(
        lambda m: m.find(STICK).checked and m.find("Copy /dev/sd"), "the check mark and the disk"
    )
    attached = {
        "label": row.label,
        "before": before,
        "disks": disks(),
        "title": await shown.titled("is attached"),
        "rows": [each.label for each in menu.find("More").find(STICK).walk()],
        "same": menu.find(STICK).id == row.id,
        "told": await told.next("attached"),
    }
    await shown.click(menu.find(STICK))
    await shown.menu_with(lambda m: not m.find(STICK).checked, "no check mark")
    await shown.menu_with(lambda m: m.find(STICK).label == row.label, "as it was")
    return {**attached, "after": disks(), "count": len(told.told)}


async def refused(shown: Panel, told: NotificationServer) -> Told:
    """Click on what this person may not do."""
    menu = await shown.menu_with(lambda m: m.find("Attach everything"), "the menu")
    await shown.click(menu.find("Attach everything"))
    summary, body = await told.next("refused")
    return {"summary": summary, "body": body, "labels": (await shown.menu()).labels()}


async def main(do: Callable[[Panel, NotificationServer], Awaitable[Told]]) -> None:
    """Show the tray to nobody, and print what happened."""
    address = os.environ["DBUS_SESSION_BUS_ADDRESS"]
    async with panel(address) as shown, notifications(address) as told:
        tray = await asyncio.create_subprocess_exec("usbipssh-tray")
        try:
            found = await do(shown, told)
        finally:
            tray.terminate()
            status = await tray.wait()
        print(json.dumps({**found, "status": status, "all": told.told}))


if __name__ == "__main__":
    asyncio.run(main({"attach": attach, "refused": refused}[sys.argv[1]]))
