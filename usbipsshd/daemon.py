# SPDX-License-Identifier: GPL-3.0-or-later
"""The root process: makes every part, and runs them until it is told to stop."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from usbipsshd.authority import Authority
from usbipsshd.bus.asking import Asks
from usbipsshd.bus.bindings import Bindings
from usbipsshd.bus.connection import Connection
from usbipsshd.bus.logind import Logind
from usbipsshd.bus.manager import Manager
from usbipsshd.bus.objects import ObjectTree
from usbipsshd.bus.systemd import is_restarting, load_module
from usbipsshd.ownkey import Key
from usbipsshd.parts import Parts
from usbipsshd.settings import Settings
from usbipsshd.udev import Events
from usbipsshd.vhci import Vhci

log = logging.getLogger(__name__)

BUS_NAME = "org.usbipssh1"


class Daemon:
    """The root process's life."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stop = asyncio.Event()
        self._reload = asyncio.Event()

    def stop(self) -> None:
        """Begin to stop: devices are given back, ports freed."""
        self._stop.set()

    async def run(self) -> None:
        """Run until :meth:`stop`, SIGTERM, SIGINT or the loss of the bus; SIGHUP reloads.

        Raises ConnectionError when the bus is gone, and what kept it from starting.
        """
        paths = self._settings.paths
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self._reload.set)
        paths.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        paths.run.mkdir(mode=0o755, parents=True, exist_ok=True)
        with only_one(paths.run / "lock"):
            await self._run()

    async def _run(self) -> None:
        settings, paths = self._settings, self._settings.paths
        events = Events()
        key = Key(paths.state)
        await asyncio.to_thread(key.load)
        vhci = Vhci(paths.sys)
        if not vhci.available and settings.modprobe is not None:
            # Attach would load it too; this way its properties tell the truth from the start.
            await settings.modprobe("vhci-hcd")
        async with settings.event_source.running(events), asyncio.TaskGroup() as group:
            bus = Connection(settings.bus_address)
            modprobe = settings.modprobe or partial(load_module, bus.call)
            parts = Parts(settings, group, events, key, vhci, modprobe=modprobe)
            try:
                lost = await self._serve(bus, parts, group)
            except BaseException:
                # Also when some task has failed: before its siblings, cancelled, give back.
                parts.collapse(hand_over=settings.can_hand_over)
                raise
            finally:
                await bus.stop()
            if lost:
                raise ConnectionError(f"the message bus is gone: {lost}")

    async def _serve(self, bus: Connection, parts: Parts, group: asyncio.TaskGroup) -> str:
        """Serve until it is time to stop; return why the bus went, empty if it did not."""
        settings = self._settings
        bindings = Bindings(parts.attachments, parts.hubs, bus.callers)
        asks = Asks(Authority(bus.call))
        manager = Manager(
            service=parts.service,
            lending=parts.lending,
            unbinding=parts.unbinding,
            resets=parts.resets,
            remotes=parts.remotes,
            asks=asks,
            bindings=bindings,
        )
        tree = ObjectTree(bus.emit, manager.dispatch(), _machine_id(settings.paths.machine_id))
        parts.publish(tree)
        parts.remember(settings.descriptors)
        await bus.start(tree.handle)
        await bus.own_name(BUS_NAME)
        logind = Logind(bus, before=parts.sleep, after=parts.wake)
        parts.holds_sleep = lambda: logind.holding
        background = [
            group.create_task(bindings.resume(), name="bindings"),
            group.create_task(logind.run(), name="logind"),
            group.create_task(settings.watch_network(parts.good_news), name="network"),
            group.create_task(settings.notifier.watchdog(), name="watchdog"),
            group.create_task(self._reload_when_told(parts), name="reload"),
        ]
        try:
            settings.notifier.send("READY=1")
            parts.status.tell()
            log.info("ready on %s", BUS_NAME)
            lost = await self._until_stopped(bus)
            settings.notifier.send("STOPPING=1", "STATUS=Stopping")
            if settings.can_hand_over and (lost or await is_restarting(bus.call)):
                log.info("stopping for a restart: everything stays attached")
                await parts.hand_over()
            else:
                await parts.give_everything_back()
        finally:
            for task in background:
                task.cancel()
        return lost

    async def _reload_when_told(self, parts: Parts) -> None:
        """Read the configuration again at each SIGHUP (sd_notify(3), RELOADING)."""
        while True:
            await self._reload.wait()
            self._reload.clear()
            self._settings.notifier.reloading()
            await parts.remotes.reload()
            self._settings.notifier.send("READY=1")

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


@contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Hold a lock that no other daemon on this machine holds; raise :exc:`BlockingIOError`.

    What is written down below /run is then nobody's but ours.
    """
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BlockingIOError("another usbipsshd runs on this machine") from None
        yield


def _machine_id(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return "0" * 32
