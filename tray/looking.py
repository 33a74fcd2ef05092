# SPDX-License-Identifier: GPL-3.0-or-later
"""What the remotes have: asked when something says that it may be another than before."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Protocol

from usbipssh_tray.entries import Listing
from usbipsshd.client.errors import ClientError
from usbipsshd.client.snapshot import NOTHING, Device

MAX_GONE = 64
"""Devices of one remote that are remembered after they went."""


class List(Protocol):
    """Client.list_remote."""

    async def __call__(  # noqa: D102
        self, remote: str, pattern: str = "", *, interactive: bool = False
    ) -> list[Device]: ...


class Listings:
    """Listings by the remote's name. One question per remote at a time, and a last one after it.

    ``changed`` is called after every change.
    """

    def __init__(self, ask: List, changed: Callable[[], None]) -> None:
        self._ask = ask
        self._changed = changed
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._again: dict[str, bool] = {}
        """Remotes to be looked at once more, and whether somebody may be asked for a password."""
        self.known: Mapping[str, Listing] = {}

    def look(self, remote: str, *, interactive: bool = False) -> None:
        """Look what ``remote`` has."""
        if remote in self._tasks:
            self._again[remote] = interactive or self._again.get(remote, False)
            return
        self._put(remote, replace(self.known.get(remote, Listing()), looking=True))
        task = asyncio.get_running_loop().create_task(
            self._look(remote, interactive), name=f"look at {remote}"
        )
        self._tasks[remote] = task
        task.add_done_callback(lambda _done: self._looked(remote))

    def keep(self, remotes: Iterable[str]) -> None:
        """Forget all but ``remotes``, and look at those that are new."""
        wanted = set(remotes)
        for name in [name for name in self.known if name not in wanted]:
            self.known = {k: v for k, v in self.known.items() if k != name}
            if name in self._tasks:
                self._tasks[name].cancel()
        for name in wanted:
            if name not in self.known:
                self.look(name)

    async def stop(self) -> None:
        """Wait for nothing any more."""
        self._again.clear()
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _look(self, remote: str, interactive: bool) -> None:
        known = self.known[remote]
        before = (*known.devices, *known.gone)
        try:
            found = await self._ask(remote, interactive=interactive)
        except ClientError as error:
            gone = before[:MAX_GONE]
            self._put(remote, Listing((), gone, known=True, error=(error.name, error.message)))
        else:
            there = {device.busid for device in found}
            devices = tuple(_remembered(device, known.devices) for device in found)
            gone = tuple(device for device in before if device.busid not in there)[:MAX_GONE]
            self._put(remote, Listing(devices, gone, known=True, error=NOTHING))

    def _looked(self, remote: str) -> None:
        del self._tasks[remote]
        again = self._again.pop(remote, None)
        if again is not None and remote in self.known:
            self.look(remote, interactive=again)

    def _put(self, remote: str, listing: Listing) -> None:
        self.known = {**self.known, remote: listing}
        self._changed()


def _remembered(device: Device, before: Iterable[Device]) -> Device:
    """An exported device has no interfaces there; what it is does not change."""
    if device.interfaces:
        return device
    for other in before:
        if (other.busid, other.vendor_id, other.product_id) == (
            device.busid, device.vendor_id, device.product_id,
        ):  # fmt: skip
            return replace(device, interfaces=other.interfaces)
    return device
