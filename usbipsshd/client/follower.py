# SPDX-License-Identifier: GPL-3.0-or-later
"""Follows what the daemon publishes. Nothing polls, and looking does not start the daemon."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping
from typing import TypeVar

from usbipsshd.bus.connection import SYSTEM_BUS
from usbipsshd.bus.values import BusError, Disconnected
from usbipsshd.client.bus import BUS, BUS_PATH, Bus, Signal
from usbipsshd.client.errors import explained
from usbipsshd.client.snapshot import (
    ROOT,
    Attachment,
    Hub,
    Manager,
    Remote,
    Snapshot,
    from_properties,
)

NAME = "org.usbipssh1"
MANAGER = "org.usbipssh1.Manager"
ATTACHMENT = "org.usbipssh1.Attachment"
HUB = "org.usbipssh1.Hub"
REMOTE = "org.usbipssh1.Remote"
PROPERTIES = "org.freedesktop.DBus.Properties"
OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"

_Object = Remote | Attachment | Hub
_KINDS: Mapping[str, type[_Object]] = {ATTACHMENT: Attachment, HUB: Hub, REMOTE: Remote}
_O = TypeVar("_O", Remote, Attachment, Hub)


class Follower:
    """What the daemon publishes now. :meth:`connect` first, :meth:`close` at the end.

    The daemon may be absent, may come and be restarted at any time.
    """

    def __init__(self, address: str = "") -> None:
        self._address = address or os.environ.get("DBUS_SYSTEM_BUS_ADDRESS", "") or SYSTEM_BUS
        self._bus: Bus | None = None
        self._owner = ""
        self._manager = Manager()
        self._objects: dict[str, _Object] = {}
        self._loaded = False
        self._listeners: list[Callable[[], None]] = []
        self._plug_listeners: list[Callable[[str], None]] = []
        self._news = asyncio.Event()
        self._loading: asyncio.Task[None] | None = None
        self.snapshot = Snapshot()
        """What the daemon publishes now."""

    # Life

    async def connect(self) -> None:
        """Connect to the bus and learn what there is; raise :exc:`ClientError` without a bus."""
        self._bus = Bus(self._address)
        try:
            await self._bus.connect()
            self._bus.listen(self._signal)
            await self._bus.subscribe(
                sender=BUS, path=BUS_PATH, interface=BUS, member="NameOwnerChanged", arg0=NAME
            )
            await self._bus.subscribe(sender=NAME)
            self._owner = await self._bus.owner(NAME)
            if self._owner:
                await self._load()
        except (BusError, Disconnected, TimeoutError) as error:
            await self._bus.close()
            raise explained(error) from error

    async def close(self) -> None:
        """End the connection."""
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.wait([self._loading])
        if self._bus is not None:
            await self._bus.close()

    async def disconnected(self) -> None:
        """Wait until the bus is gone."""
        assert self._bus is not None
        await asyncio.shield(self._bus.gone)

    # What it publishes

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call ``listener`` whenever :attr:`snapshot` has changed; returns what ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def listen_to_plugs(self, listener: Callable[[str], None]) -> Callable[[], None]:
        """Call ``listener`` with a remote's name when something was plugged in or out there."""
        self._plug_listeners.append(listener)
        return lambda: self._plug_listeners.remove(listener)

    async def wait_until(
        self, condition: Callable[[Snapshot], bool], seconds: float | None
    ) -> Snapshot:
        """The first snapshot for which ``condition`` holds; raise :exc:`TimeoutError`.

        Without ``seconds`` it waits for as long as it takes.
        """
        async with asyncio.timeout(seconds):
            while not condition(self.snapshot):
                self._news.clear()
                await self._news.wait()
        return self.snapshot

    async def _load(self) -> None:
        """Learn everything anew; what comes after the answers is told by signals."""
        assert self._bus is not None
        owner = self._owner

        def objects(body: tuple[object, ...]) -> None:
            tables = body[0] if body and isinstance(body[0], dict) else {}
            self._objects = {}
            for path, interfaces in tables.items():
                self._add(path, interfaces)
            self._loaded = True

        def manager(body: tuple[object, ...]) -> None:
            if body and isinstance(body[0], dict):
                self._manager = from_properties(Manager, body[0], Manager())

        self._loaded = False
        await self._bus.call(
            NAME, ROOT, PROPERTIES, "GetAll", "s", [MANAGER], start=False, at_once=manager
        )
        await self._bus.call(
            NAME, ROOT, OBJECT_MANAGER, "GetManagedObjects", start=False, at_once=objects
        )
        if owner == self._owner:
            self._changed()

    def _signal(self, signal: Signal) -> None:
        if (signal.sender, signal.member) == (BUS, "NameOwnerChanged"):
            if signal.body and signal.body[0] == NAME:
                self._owner_changed(str(signal.body[2]))
            return
        # A signal that is sent to us alone passes every rule, so the sender is looked at here.
        if not self._owner or signal.sender != self._owner:
            return
        match signal.member, signal.body:
            case "InterfacesAdded", (str(path), dict(interfaces)):
                self._add(path, interfaces)
            case "InterfacesRemoved", (str(path), list()):
                self._objects.pop(path, None)
            case "PropertiesChanged", (str(interface), dict(values), list()):
                self._change(signal.path, interface, values)
            case "DevicesChanged", ():
                found = self._objects.get(signal.path)
                if isinstance(found, Remote):
                    for listener in list(self._plug_listeners):
                        listener(found.name)
                return
            case _:
                return
        if self._loaded:
            self._changed()

    def _owner_changed(self, owner: str) -> None:
        self._owner = owner
        self._objects = {}
        self._manager = Manager()
        self._loaded = False
        if self._loading is not None:
            self._loading.cancel()
            self._loading = None
        if owner:
            self._loading = asyncio.create_task(self._load_again(), name="load")
        self._changed()

    async def _load_again(self) -> None:
        # If it went meanwhile, that is told, too.
        with contextlib.suppress(BusError, Disconnected, TimeoutError):
            await self._load()

    def _add(self, path: str, interfaces: Mapping[str, object]) -> None:
        for interface, values in interfaces.items():
            kind = _KINDS.get(interface)
            if kind is not None and isinstance(values, dict):
                self._objects[path] = _made(kind, path, values)

    def _change(self, path: str, interface: str, values: Mapping[str, object]) -> None:
        if path == ROOT and interface == MANAGER:
            self._manager = from_properties(Manager, values, self._manager)
            return
        found = self._objects.get(path)
        if found is not None and _KINDS.get(interface) is type(found):
            self._objects[path] = _updated(found, values)

    def _changed(self) -> None:
        def of(kind: type[_O]) -> list[_O]:
            return [each for each in self._objects.values() if isinstance(each, kind)]

        self.snapshot = Snapshot(
            present=bool(self._owner),
            manager=self._manager,
            remotes=tuple(sorted(of(Remote), key=lambda r: r.name)),
            attachments=tuple(sorted(of(Attachment), key=_number)),
            hubs=tuple(sorted(of(Hub), key=_number)),
        )
        self._news.set()
        for listener in list(self._listeners):
            listener()


def _made(kind: type[_Object], path: str, values: Mapping[str, object]) -> _Object:
    return _updated(kind(path=path), values)


def _updated(found: _Object, values: Mapping[str, object]) -> _Object:
    if isinstance(found, Remote):
        return from_properties(Remote, values, found)
    if isinstance(found, Hub):
        return from_properties(Hub, values, found)
    return from_properties(Attachment, values, found)


def _number(one: Attachment | Hub) -> int:
    last = one.path.rpartition("/")[2]
    return int(last) if last.isascii() and last.isdigit() else 0
