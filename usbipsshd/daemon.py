# SPDX-License-Identifier: GPL-3.0-or-later
"""The root process: makes every part, and runs them until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from usbipsshd.attachments import Attachments
from usbipsshd.authority import Authority
from usbipsshd.bus.connection import Connection
from usbipsshd.bus.manager import Manager
from usbipsshd.bus.objects import ObjectTree
from usbipsshd.bus.publisher import Publisher
from usbipsshd.exporter import LocalExporter
from usbipsshd.hold import Hold
from usbipsshd.importer import Importer
from usbipsshd.launcher import Launcher
from usbipsshd.links import Links
from usbipsshd.localusb import LocalUsb
from usbipsshd.matcher import Matcher
from usbipsshd.notify import Notifier
from usbipsshd.remotes import RemoteStore
from usbipsshd.service import Service
from usbipsshd.signer import Key
from usbipsshd.udev import Events, EventSource
from usbipsshd.usbids import UsbIds
from usbipsshd.vhci import Vhci

log = logging.getLogger(__name__)

BUS_NAME = "org.usbipssh1"
CLOSE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Paths:
    """Where everything is; tests have other places."""

    sys: Path = Path("/sys")
    config: Path = Path("/etc/usbipsshd")
    state: Path = Path("/var/lib/usbipsshd")
    run: Path = Path("/run/usbipsshd")
    machine_id: Path = Path("/etc/machine-id")
    known_hosts: tuple[Path, ...] = (
        Path("/etc/ssh/ssh_known_hosts"),
        Path("/root/.ssh/known_hosts"),
    )


@dataclass(frozen=True, slots=True)
class Settings:
    """What the daemon is made of from outside."""

    bus_address: str
    launcher: Launcher
    event_source: EventSource
    modprobe: Callable[[str], Awaitable[bool]]
    notifier: Notifier
    now: Callable[[], float]
    """Seconds since the epoch."""
    paths: Paths = field(default_factory=Paths)


class Daemon:
    """The root process's life."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """Begin to stop: devices are given back, ports freed."""
        self._stop.set()

    async def run(self) -> None:
        """Run until :meth:`stop`, SIGTERM, SIGINT or the loss of the bus.

        Raises ConnectionError when the bus is gone, and what kept it from starting.
        """
        settings, paths = self._settings, self._settings.paths
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        events = Events()
        key = Key(paths.state)
        paths.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        paths.run.mkdir(mode=0o755, parents=True, exist_ok=True)
        await asyncio.to_thread(key.load)
        store = RemoteStore(paths.config, paths.state, paths.known_hosts)
        store.load()
        hold = Hold(paths.sys, paths.run / "authorized_default.json")
        vhci, usb = Vhci(paths.sys), LocalUsb(paths.sys)
        if not vhci.available:
            # Attach would load it too; this way its properties tell the truth from the start.
            await settings.modprobe("vhci-hcd")
        async with settings.event_source.running(events), asyncio.TaskGroup() as group:
            links = Links(group=group, launcher=settings.launcher, key=key, store=store)
            importer = Importer(vhci, usb, hold, events, settings.modprobe)
            attachments = Attachments(
                group=group, importer=importer, events=events, now=settings.now
            )
            links.listen(attachments)
            service = Service(
                store=store,
                links=links,
                attachments=attachments,
                usb=usb,
                exporter=LocalExporter(paths.sys, usb, events),
                ids=UsbIds(),
                matcher=Matcher(),
                launcher=settings.launcher,
            )
            bus = Connection(settings.bus_address)
            try:
                tree = ObjectTree(
                    bus.emit,
                    Manager(service, Authority(bus.call)).dispatch(),
                    _machine_id(paths.machine_id),
                )
                publisher = Publisher(
                    tree,
                    links=links,
                    attachments=attachments,
                    store=store,
                    vhci=vhci,
                    public_key=key.line,
                )
                events.listen(publisher.look)
                store.listen(publisher.remotes_changed)
                await bus.start(tree.handle)
                await bus.own_name(BUS_NAME)
                # Only now: with two of us, what the other one holds is not left over.
                hold.recover()
                settings.notifier.send("READY=1", "STATUS=Ready")
                log.info("ready on %s", BUS_NAME)
                lost = await self._until_stopped(bus)
                settings.notifier.send("STOPPING=1", "STATUS=Giving devices back")
                await self._give_everything_back(attachments, links)
            finally:
                await bus.stop()
            if lost:
                raise ConnectionError(f"the message bus is gone: {lost}")

    async def _until_stopped(self, bus: Connection) -> str:
        """Wait for a reason to stop; return why the bus went, empty if it did not."""
        stopping = asyncio.create_task(self._stop.wait())
        losing = asyncio.create_task(bus.disconnected())
        try:
            await asyncio.wait([stopping, losing], return_when=asyncio.FIRST_COMPLETED)
            return losing.result() if losing.done() else ""
        finally:
            stopping.cancel()
            losing.cancel()
            await asyncio.wait([stopping, losing])

    @staticmethod
    async def _give_everything_back(attachments: Attachments, links: Links) -> None:
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await attachments.close()
                await links.close()
        except TimeoutError:
            log.warning("not everything could be given back in time")


def _machine_id(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return "0" * 32
