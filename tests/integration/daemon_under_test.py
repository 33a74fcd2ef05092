# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole daemon, with every outside part replaced by a test's: run as a program."""

from __future__ import annotations

import argparse
import asyncio
import inspect
import json
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from usbipsshd.bus.values import BusError, Disconnected
from usbipsshd.daemon import Daemon
from usbipsshd.launcher import (
    AgentLauncher,
    Launcher,
    SpawnAgent,
    SpawnLauncher,
    SystemdAgent,
    SystemdLauncher,
)
from usbipsshd.network import watch_network
from usbipsshd.notify import Notifier
from usbipsshd.settings import Paths, Settings
from usbipsshd.udev import Events


class FakeUdev:
    """Notices from the made-up kernel's event stream."""

    def __init__(self, control: Path) -> None:
        self._control = control

    @asynccontextmanager
    async def running(self, events: Events) -> AsyncIterator[None]:
        reader, writer = await asyncio.open_unix_connection(str(self._control))
        writer.write(b'{"op": "subscribe"}\n')
        listening = asyncio.create_task(self._listen(reader, events))
        try:
            yield
        finally:
            listening.cancel()
            await asyncio.wait([listening])
            writer.close()

    @staticmethod
    async def _listen(reader: asyncio.StreamReader, events: Events) -> None:
        while await reader.readline():
            events.notify()


class FieldsHandler(logging.Handler):
    """Writes down what journald would get with fields of its own: a JSON object a line."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        fields = getattr(record, "journal_fields", None)
        if fields:
            with self._path.open("a") as file:
                file.write(json.dumps({"MESSAGE": record.getMessage(), **fields}) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser()
    for name in ("sys", "control", "agent-sysfs", "folder", "tree", "session-user"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--session-socket")
    parser.add_argument("--agent-socket")
    parser.add_argument("--notify-socket", default="")
    parser.add_argument("--stored", default="")
    arguments = parser.parse_args()
    stored: dict[str, list[int]] = {}
    for item in arguments.stored.split(",") if arguments.stored else ():
        name, _, fd = item.rpartition(":")
        stored.setdefault(name, []).append(int(fd))
    logging.basicConfig(level=logging.DEBUG, stream=sys.stderr, format="daemon: %(message)s")
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    folder, fake_sys = Path(arguments.folder), Path(arguments.sys)
    logging.getLogger().addHandler(FieldsHandler(folder / "journal"))

    async def modprobe(module: str) -> bool:
        child = await asyncio.create_subprocess_exec(fake_sys / "bin/modprobe", module)
        return await child.wait() == 0

    launcher: Launcher = SpawnLauncher(
        arguments.session_user,
        command=(
            sys.executable, "-m", "usbipsshd.session", "--agent-sysfs", arguments.agent_sysfs,
        ),
        environment={"PATH": "/usr/bin:/bin", "PYTHONPATH": arguments.tree},
    )  # fmt: skip
    if arguments.session_socket:
        launcher = SystemdLauncher(Path(arguments.session_socket))
    agents: AgentLauncher = SpawnAgent(str(fake_sys))
    if arguments.agent_socket:
        agents = SystemdAgent(Path(arguments.agent_socket))
    settings = Settings(
        bus_address=os.environ["DBUS_SYSTEM_BUS_ADDRESS"],
        launcher=launcher,
        agent_launcher=agents,
        event_source=FakeUdev(Path(arguments.control)),
        modprobe=modprobe,
        notifier=Notifier(arguments.notify_socket or os.environ.get("NOTIFY_SOCKET", "")),
        now=time.time,
        watch_network=watch_network,
        descriptors=stored,
        can_hand_over=bool(arguments.session_socket),
        paths=Paths(
            sys=fake_sys,
            udev=folder / "udev",
            config=folder / "etc",
            state=folder / "state",
            run=folder / "run",
            modules=(folder / "modules",),
            known_hosts=(folder / "known_hosts",),
        ),
    )  # fmt: skip
    try:
        asyncio.run(_run(settings, folder / "tasks"))
    except* (BusError, Disconnected, OSError) as group:
        logging.error("ended: %s", group.exceptions[0])  # noqa: TRY400
        status = 1
    else:
        status = 0
    return status


def _within(task: asyncio.Task[object]) -> list[str]:
    """The functions that wait for one another, the innermost last."""
    found: list[str] = []
    inner: object = task.get_coro()
    while inspect.iscoroutine(inner):
        found.append(inner.__qualname__)
        inner = inner.cr_await
    return found


async def _run(settings: Settings, tasks: Path) -> None:
    """Run; at SIGUSR1 the tasks, each by its name and what it is in, go into the fifo ``tasks``."""

    def tell() -> None:
        found = sorted((task.get_name(), _within(task)) for task in asyncio.all_tasks())
        tasks.write_text(json.dumps(found))

    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, tell)
    await Daemon(settings).run()


if __name__ == "__main__":
    sys.exit(main())
