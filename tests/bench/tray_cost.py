# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tray costs: one of a hundred devices changes, and nothing happens at all."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from integration.notifier import notifications
from integration.panel import Panel, panel
from integration.sessionbus import session_bus

from bench.session_cost import memory
from bench.table import Row
from usbipsshd.bus.connection import Connection
from usbipsshd.bus.contract import load
from usbipsshd.bus.objects import ObjectTree
from usbipsshd.bus.values import Call, Variant

REMOTES, DEVICES = 5, 20
CHANGES = 100
IDLE_SECONDS = 10
_NAME, _ROOT = "org.usbipssh1", "/org/usbipssh1"
_LIMIT = 60.0


class Daemon:
    """As many devices as wanted, all attached, and nothing behind them."""

    def __init__(self, address: str) -> None:
        self._connection = Connection(address)
        dispatch = dict.fromkeys(load().methods(), self._answer)
        self.tree = ObjectTree(self._connection.emit, dispatch, "0" * 32)

    async def start(self) -> None:
        """Be the daemon."""
        await self._connection.start(self.tree.handle)
        manager: dict[str, object] = {
            "Version": "1", "PublicKey": "", "VhciAvailable": True, "FreePorts": {"hs": 1},
        }  # fmt: skip
        self.tree.add(_ROOT, {f"{_NAME}.Manager": manager})
        for remote in range(REMOTES):
            values: dict[str, object] = {
                "Name": f"pi{remote}", "Label": "", "State": "connected", "OfferedHostKey": "",
                "LastError": ("", ""),
            }  # fmt: skip
            self.tree.add(f"{_ROOT}/remote/pi{remote}", {f"{_NAME}.Remote": values})
            for device in range(DEVICES):
                path = attachment(remote, device)
                self.tree.add(path, {f"{_NAME}.Attachment": _attachment(remote, device)})
        await self._connection.own_name(_NAME)

    async def stop(self) -> None:
        """Leave."""
        await self._connection.stop(1)

    def change(self, path: str, state: str) -> None:
        """One attachment is in another state."""
        self.tree.change(path, f"{_NAME}.Attachment", State=state)
        self.tree.flush()

    async def _answer(self, call: Call) -> list[object]:
        if call.member != "ListRemote":
            return []
        return [[_device(number) for number in range(DEVICES)]]


def attachment(remote: int, device: int) -> str:
    """An attachment's path."""
    return f"{_ROOT}/attachment/{remote * DEVICES + device + 1}"


def _attachment(remote: int, device: int) -> dict[str, object]:
    return {
        "Remote": f"pi{remote}", "Pattern": "", "RemoteBusId": f"1-{device + 1}",
        "VendorId": 0x0781, "ProductId": 0x5581, "Name": f"Maker Thing {device}", "Serial": "",
        "Speed": 480.0, "State": "attached", "LocalBusId": "5-1", "Port": 1,
        "DeviceNodes": ["/dev/sda", "/dev/sda1"], "Keep": False, "Persist": False,
        "OwnerUid": os.getuid(), "Hub": "/", "AttachedAt": 1, "RetryAt": 0, "LastError": ("", ""),
        "Direction": "import",
    }  # fmt: skip


def _device(number: int) -> dict[str, Variant]:
    interface = {
        "class": Variant("y", 8),
        "subclass": Variant("y", 6),
        "protocol": Variant("y", 80),
    }
    return {
        "busid": Variant("s", f"1-{number + 1}"),
        "vendor-id": Variant("q", 0x0781),
        "product-id": Variant("q", 0x5581),
        "vendor": Variant("s", "Maker"),
        "product": Variant("s", f"Thing {number}"),
        "state": Variant("s", "attached"),
        "interfaces": Variant("aa{sv}", [interface]),
    }


def _cpu(pid: int) -> float:
    """Milliseconds of CPU that a process has used (Documentation/scheduler/sched-stats.rst)."""
    used = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        used += int((task / "schedstat").read_text().split()[0])
    return used / 1e6


async def _measure(address: str, pid: int, shown: Panel, daemon: Daemon) -> list[Row]:
    await shown.menu_with(lambda m: m.find("pi4").find("Disk: Maker Thing 19").checked)
    path = attachment(2, 7)
    start = _cpu(pid)
    for number in range(CHANGES):
        shown.signals.clear()
        daemon.change(path, ("waiting", "attached")[number % 2])
        # The row itself, and the title before it.
        await shown.until(
            lambda: any(s.member == "ItemsPropertiesUpdated" for s in shown.signals), "the change"
        )
    changed = (_cpu(pid) - start) / CHANGES
    # What is left of the last change, such as its notification, is no part of doing nothing.
    await asyncio.sleep(2)
    start = _cpu(pid)
    await asyncio.sleep(IDLE_SECONDS)
    idle = _cpu(pid) - start
    resident, proportional = memory(pid)
    return [
        Row("one of 100 devices changed, CPU", changed, "ms", aim="< 20"),
        Row(f"idle for {IDLE_SECONDS} s, CPU", idle, "ms", aim="0"),
        Row("tray, resident", resident, "MB"),
        Row("tray, proportional", proportional, "MB"),
    ]


async def _run(address: str) -> list[Row]:
    daemon = Daemon(address)
    await daemon.start()
    async with panel(address) as shown, notifications(address):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "usbipssh_tray",
            env={**os.environ, "DBUS_SESSION_BUS_ADDRESS": address,
                 "DBUS_SYSTEM_BUS_ADDRESS": address, "LC_ALL": "C.UTF-8"},
            stdin=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            return await _measure(address, process.pid, shown, daemon)
        finally:
            process.terminate()
            async with asyncio.timeout(_LIMIT):
                await process.wait()
            await daemon.stop()


def menu_and_idle() -> list[Row]:
    """A change of one device of a hundred, and ten seconds of nothing."""
    with session_bus() as bus:
        return asyncio.run(_run(bus.address))
