# SPDX-License-Identifier: GPL-3.0-or-later
"""The parts of the root process, put together."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

from usbipsshd.attachment import Direction
from usbipsshd.attachments import Attachments
from usbipsshd.bus.objects import ObjectTree
from usbipsshd.bus.publisher import Publisher
from usbipsshd.chooser import Chooser
from usbipsshd.drivers import Drivers
from usbipsshd.exporter import LocalExporter
from usbipsshd.exporting import Exporting
from usbipsshd.here import Here
from usbipsshd.hold import Hold
from usbipsshd.hubs import Hubs
from usbipsshd.importer import Importer
from usbipsshd.importing import Importing
from usbipsshd.lending import Lending
from usbipsshd.links import Links
from usbipsshd.localchecks import Kernel, LocalChecks
from usbipsshd.localusb import LocalUsb
from usbipsshd.matcher import Matcher
from usbipsshd.memory import Memory
from usbipsshd.ownkey import Key
from usbipsshd.remotelist import RemoteList
from usbipsshd.remotes import RemoteStore
from usbipsshd.resets import Resets
from usbipsshd.resetter import LocalResetter
from usbipsshd.service import Service
from usbipsshd.settings import Settings
from usbipsshd.sshconfig import SshConfig
from usbipsshd.status import Status
from usbipsshd.takenports import TakenPorts
from usbipsshd.takeover import TakeOver
from usbipsshd.udev import Events
from usbipsshd.unbinding import Unbinding
from usbipsshd.usbids import UsbIds
from usbipsshd.vhci import Vhci
from usbipsshd.way import OwnKeys, Ways

log = logging.getLogger(__name__)

CLOSE_SECONDS = 60.0


class Parts:
    """Everything but the bus. Tasks run in ``group``."""

    def __init__(
        self,
        settings: Settings,
        group: asyncio.TaskGroup,
        events: Events,
        key: Key,
        vhci: Vhci,
        *,
        modprobe: Callable[[str], Awaitable[bool]],
    ) -> None:
        paths = settings.paths
        usb, ids = LocalUsb(paths.sys, paths.udev), UsbIds()
        chooser = Chooser(Matcher(), ids)
        release = os.uname().release
        drivers = Drivers(release, paths.modules)
        hold = Hold(paths.sys, paths.run / "authorized_default.json")
        taken_ports = TakenPorts(paths.run / "taken-ports.json")
        self.holds_sleep: Callable[[], bool] = lambda: False
        """Whether the machine's next sleep waits for us; the bus knows."""
        self._group = group
        self._events = events
        self._key = key
        self._vhci = vhci
        self._store = RemoteStore(paths.config, paths.state, paths.known_hosts)
        self._store.load()
        self._memory = Memory(paths.run, paths.state)
        self._importer = Importer(vhci, usb, hold, events, modprobe, taken_ports=taken_ports)
        self._importer.recover()
        events.listen(self._importer.settle)
        self._here = Here(group=group, launcher=settings.agent_launcher, keeper=settings.notifier)
        own = OwnKeys(key)
        self._links = Links(
            group=group,
            launcher=settings.launcher,
            ways=Ways(SshConfig(paths.config / "ssh_config"), own, self._store.known_hosts),
            own=own,
            keeper=settings.notifier,
        )
        self.attachments = Attachments(
            group=group,
            crafts={
                Direction.IMPORT: partial(
                    Importing, importer=self._importer, chooser=chooser, drivers=drivers
                ),
                Direction.EXPORT: partial(
                    Exporting,
                    here=self._here,
                    usb=usb,
                    chooser=chooser,
                    drivers=drivers,
                    group=group,
                ),
            },
            events=events,
            now=settings.now,
        )
        self.hubs = Hubs(
            group=group, attachments=self.attachments, chooser=chooser, now=settings.now
        )
        self.status = Status(self.attachments, settings.notifier.send)
        self._here.listen(self.attachments.news.here_lost)
        self.attachments.listen(self.status)
        self._links.listen(self.attachments.news)
        self._links.listen(self.hubs)
        self.attachments.listen(self.hubs)
        exporter = LocalExporter(paths.sys, usb, events)
        self.service = Service(
            store=self._store,
            links=self._links,
            attachments=self.attachments,
            hubs=self.hubs,
            usb=usb,
            ids=ids,
            chooser=chooser,
            drivers=drivers,
            checks=LocalChecks(
                vhci,
                Kernel(release, os.uname().version),
                paths.modules,
                paths.os_release,
                holds_sleep=self._sleep_waits,
                exports=exporter.available,
            ),
            keep=self._memory.write,
        )
        self.resets = Resets(
            self.service, usb, chooser, LocalResetter(usb, exporter, events, paths.mountinfo)
        )
        self.lending = Lending(self.service, usb, chooser)
        self.unbinding = Unbinding(self.service, usb, chooser, exporter)
        self.remotes = RemoteList(
            store=self._store,
            links=self._links,
            attachments=self.attachments,
            hubs=self.hubs,
            launcher=settings.launcher,
        )

    def _sleep_waits(self) -> bool:
        return self.holds_sleep()

    def publish(self, tree: ObjectTree) -> None:
        """Show everything on the bus, now and whenever it changes."""
        publisher = Publisher(
            tree,
            links=self._links,
            attachments=self.attachments,
            hubs=self.hubs,
            store=self._store,
            vhci=self._vhci,
            public_key=self._key.line,
        )
        self._events.listen(publisher.look)
        self._store.listen(publisher.remotes_changed)

    def remember(self, descriptors: Mapping[str, Sequence[int]]) -> None:
        """Go on with what an earlier process was doing; ``descriptors`` are sessions it left."""
        remembered = self._memory.recall()
        take_over = TakeOver(
            store=self._store,
            links=self._links,
            attachments=self.attachments,
            hubs=self.hubs,
            importer=self._importer,
            here=self._here,
            group=self._group,
        )
        take_over.run(remembered, descriptors)
        # Only now: what was not looked at yet must not be let through.
        self._importer.give_up_rest()
        self._memory.watch(self.attachments, self.hubs)

    def good_news(self) -> None:
        """The network has changed: who waits tries now."""
        self.attachments.poke()
        self.hubs.poke()

    async def sleep(self) -> None:
        """Give everything back before the machine sleeps."""
        self.hubs.sleep()
        await self.attachments.sleep()
        await self._links.close()

    def wake(self) -> None:
        """The machine is awake again: everything comes back."""
        self.attachments.wake()
        self.hubs.wake()

    async def hand_over(self) -> None:
        """Leave everything attached for the process that comes after this one."""
        self._memory.freeze()
        await self.hubs.abandon()
        await self.attachments.abandon()
        await self._links.abandon()
        await self._here.abandon()

    def collapse(self, *, hand_over: bool) -> None:
        """The daemon goes down in the middle of things: what is written down stays as it is.

        With ``hand_over`` nothing is given back, so that the next process can go on.
        """
        self._memory.hold()
        if hand_over:
            self.hubs.abandon_soon()
            self.attachments.abandon_soon()
            self._links.abandon_soon()
            self._here.abandon_soon()

    async def give_everything_back(self) -> None:
        """Detach everything; what persists is remembered for the next start."""
        self._memory.keep_persistent()
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self.hubs.close()
                await self.attachments.close()
                await self._links.close()
                await self._here.close()
        except TimeoutError:
            log.warning("not everything could be given back in time")
        self._importer.settle()
        self._memory.clear()
