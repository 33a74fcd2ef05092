# SPDX-License-Identifier: GPL-3.0-or-later
"""Keeps the objects on the bus as the daemon's things are."""

from __future__ import annotations

import asyncio

from usbipsshd import __version__
from usbipsshd.attachment import Attachment
from usbipsshd.attachments import Attachments
from usbipsshd.bus.encode import (
    ROOT,
    attachment_path,
    attachment_properties,
    hub_path,
    hub_properties,
    remote_path,
    remote_properties,
)
from usbipsshd.bus.manager import ATTACHMENT, HUB, MANAGER, REMOTE
from usbipsshd.bus.objects import ObjectTree
from usbipsshd.errors import UsbipError
from usbipsshd.hub import Hub
from usbipsshd.hubs import Hubs
from usbipsshd.link import Link, LinkStatus
from usbipsshd.links import Links
from usbipsshd.remotes import RemoteStore
from usbipsshd.vhci import Vhci

LOADING_SECONDS = 0.5
"""How often to look whether the kernel's module is there while it is being loaded."""
_CONSTANT = frozenset({"Remote", "Pattern", "OwnerUid", "Hub"})


class Publisher:
    """Listens to links and attachments, and tells the object tree."""

    def __init__(
        self,
        tree: ObjectTree,
        *,
        links: Links,
        attachments: Attachments,
        hubs: Hubs,
        store: RemoteStore,
        vhci: Vhci,
        public_key: str,
    ) -> None:
        self._tree = tree
        self._links = links
        self._store = store
        self._vhci = vhci
        tree.add(
            ROOT,
            {
                MANAGER: {
                    "Version": __version__,
                    "PublicKey": public_key,
                    "VhciAvailable": vhci.available,
                    "FreePorts": vhci.free(),
                }
            },
        )
        links.listen(self)
        attachments.listen(self)
        hubs.listen(self)
        self.remotes_changed()

    def look(self) -> None:
        """Something changed on this machine."""
        if self._vhci.loading:
            # The end of that is no event.
            asyncio.get_running_loop().call_later(LOADING_SECONDS, self.look)
        self._tree.change(
            ROOT, MANAGER, VhciAvailable=self._vhci.available, FreePorts=self._vhci.free()
        )

    def remotes_changed(self) -> None:
        """A remote was added or removed."""
        listed = {remote_path(r.name): r for r in self._store}
        start = remote_path("x")[:-1]
        for path in self._tree.paths():
            if path.startswith(start) and path not in listed:
                self._tree.remove(path)
        for path, remote in listed.items():
            if path not in self._tree:
                link = self._links.get(remote.name)
                status = link.status if link is not None else LinkStatus()
                self._tree.add(path, {REMOTE: remote_properties(remote, status)})
            else:
                self._tree.change(path, REMOTE, Label=remote.label)

    def link_changed(self, link: Link) -> None:
        """See :class:`usbipsshd.links.LinkListener`."""
        path = remote_path(link.remote.name)
        if not link.private and link.remote.listed and path in self._tree:
            values = remote_properties(link.remote, link.status)
            del values["Name"]
            self._tree.change(path, REMOTE, **values)

    def link_devices_changed(self, link: Link) -> None:
        """See :class:`usbipsshd.links.LinkListener`."""
        path = remote_path(link.remote.name)
        if not link.private and link.remote.listed and path in self._tree:
            self._tree.emit(path, REMOTE, "DevicesChanged")

    def link_released(self, link: Link, busid: str, error: UsbipError) -> None:
        """See :class:`usbipsshd.links.LinkListener`; the attachment tells."""

    def link_returned(self, link: Link, busid: str, error: UsbipError) -> None:
        """See :class:`usbipsshd.links.LinkListener`; the attachment tells."""

    def link_lost(self, link: Link, error: UsbipError) -> None:
        """See :class:`usbipsshd.links.LinkListener`; the link's status tells."""

    def attachment_added(self, attachment: Attachment) -> None:
        """See :class:`usbipsshd.attachments.AttachmentListener`."""
        path = attachment_path(attachment.number)
        self._tree.add(path, {ATTACHMENT: attachment_properties(attachment)})

    def attachment_changed(self, attachment: Attachment) -> None:
        """See :class:`usbipsshd.attachments.AttachmentListener`."""
        values = attachment_properties(attachment)
        changing = {n: v for n, v in values.items() if n not in _CONSTANT}
        self._tree.change(attachment_path(attachment.number), ATTACHMENT, **changing)
        self.look()

    def hub_added(self, hub: Hub) -> None:
        """See :class:`usbipsshd.hubs.HubListener`."""
        self._tree.add(hub_path(hub.number), {HUB: hub_properties(hub)})

    def hub_changed(self, hub: Hub) -> None:
        """See :class:`usbipsshd.hubs.HubListener`."""
        values = hub_properties(hub)
        changing = {n: values[n] for n in ("State", "Attachments", "RetryAt", "LastError")}
        self._tree.change(hub_path(hub.number), HUB, **changing)

    def hub_removed(self, hub: Hub) -> None:
        """See :class:`usbipsshd.hubs.HubListener`."""
        self._tree.remove(hub_path(hub.number))

    def attachment_removed(self, attachment: Attachment) -> None:
        """See :class:`usbipsshd.attachments.AttachmentListener`."""
        self._tree.remove(attachment_path(attachment.number))
        self.look()
