# SPDX-License-Identifier: GPL-3.0-or-later
"""Changes the list of remotes, as callers and root's files ask for it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from usbipsshd.attachments import Attachments
from usbipsshd.authority import Action, details
from usbipsshd.errors import Code, UsbipError
from usbipsshd.hostkey import fetch_host_key
from usbipsshd.hubs import Hubs
from usbipsshd.launcher import Launcher
from usbipsshd.links import Links
from usbipsshd.remotes import Remote, RemoteStore, check_fingerprint, fingerprint
from usbipsshd.service import Asking

log = logging.getLogger(__name__)

MAX_ROUNDS = 10
"""How often what holds a remote is detached before it is given up."""


class RemoteList:
    """The work of AddRemote, RemoveRemote and TrustHostKey, and of a reload."""

    def __init__(
        self,
        *,
        store: RemoteStore,
        links: Links,
        attachments: Attachments,
        hubs: Hubs,
        launcher: Launcher,
    ) -> None:
        self._store = store
        self._links = links
        self._attachments = attachments
        self._hubs = hubs
        self._launcher = launcher

    async def add_remote(self, asking: Asking, name: str, options: Mapping[str, object]) -> Remote:
        """List a remote."""
        # Nobody is asked about what cannot be done, or reads what is no name.
        self._store.new(name, options)
        await asking.require([Action.MANAGE_REMOTES], details(name))
        remote = self._store.add(name, options)
        log.info("uid %d added the remote %s at %s", asking.uid, name, remote.address)
        return remote

    async def remove_remote(self, asking: Asking, name: str) -> None:
        """Detach what a remote holds, and forget it."""
        self._store.listed(name)
        await asking.require([Action.MANAGE_REMOTES], details(name))
        self._store.check_removable(name)
        await self._detach_all_of(name, asking.uid)
        # At once, so that nothing begins in between.
        self._store.remove(name)
        await self._links.drop(name)
        log.info("uid %d removed the remote %s", asking.uid, name)

    async def _detach_all_of(self, name: str, by: int) -> None:
        """Detach what a remote holds, also what begins meanwhile."""
        for _ in range(MAX_ROUNDS):
            hubs = [hub for hub in self._hubs if hub.remote == name]
            attachments = [one for one in self._attachments if one.remote == name]
            if not hubs and not attachments:
                return
            async with asyncio.TaskGroup() as group:
                for hub in hubs:
                    group.create_task(self._hubs.detach(hub, by))
                for attachment in attachments:
                    group.create_task(self._attachments.detach(attachment, by))
        raise UsbipError(
            Code.DEVICE_BUSY, f"Devices of {name} are being attached all the time; try again."
        )

    async def reload(self) -> None:
        """Read root's files again. What is attached stays, but not from a remote that is gone."""
        gone = self._store.reload()
        self._links.follow(self._store)
        for remote in gone:
            log.info("the remote %s is listed no more", remote.name)
            await self._detach_all_of(remote.name, 0)
            await self._links.drop(remote.name)
        log.info("read the list of remotes again")

    async def trust_host_key(self, asking: Asking, name: str, wanted: str) -> None:
        """Pin a listed remote's host key, if it presents exactly this one now."""
        check_fingerprint(wanted)
        remote = self._store.listed(name)
        await asking.require([Action.MANAGE_REMOTES], details(name))
        key = await fetch_host_key(self._launcher, self._links.ways, remote, wanted)
        try:
            offered = fingerprint(key)
        except ValueError:
            raise UsbipError(
                Code.FAILED, f"{name} presented something that is no host key."
            ) from None
        if offered != wanted:
            raise UsbipError(
                Code.HOST_KEY_MISMATCH,
                f"{name} presents the host key {offered}, not the one given; nothing was trusted.",
            )
        self._store.check_still(remote)
        self._store.pin(name, key)
        log.info("uid %d trusts the host key %s of %s", asking.uid, wanted, name)
        self._links.to(remote).forget_trouble()
