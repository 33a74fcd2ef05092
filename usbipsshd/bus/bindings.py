# SPDX-License-Identifier: GPL-3.0-or-later
"""Attachments and hubs that live no longer than the bus connection of who asked for them."""

from __future__ import annotations

from collections.abc import Callable

from usbipsshd.attachment import Attachment
from usbipsshd.attachments import Attachments
from usbipsshd.bus.callers import Callers
from usbipsshd.bus.values import BusError, Caller, Disconnected
from usbipsshd.hub import Hub
from usbipsshd.hubs import Hubs


class Bindings:
    """Detaches what is bound to a caller when it leaves. Listens to attachments and hubs."""

    def __init__(self, attachments: Attachments, hubs: Hubs, callers: Callers) -> None:
        self._attachments = attachments
        self._hubs = hubs
        self._callers = callers
        self._watches: dict[int, Callable[[], None]] = {}
        self._hub_watches: dict[int, Callable[[], None]] = {}
        attachments.listen(self)
        hubs.listen(self)

    def bind(self, caller: Caller, attachment: Attachment) -> None:
        """Bind an attachment to its caller."""
        if self._attachments.get(attachment.number) is None:
            return  # It is gone already.
        attachment.bound_to = caller.name
        self._watches[attachment.number] = self._callers.watch(
            caller.name, lambda: self._attachments.detach_soon(attachment)
        )

    def bind_hub(self, caller: Caller, hub: Hub) -> None:
        """Bind a hub to its caller."""
        if self._hubs.get(hub.number) is None:
            return
        hub.bound_to = caller.name
        self._hub_watches[hub.number] = self._callers.watch(
            caller.name, lambda: self._hubs.detach_soon(hub)
        )

    async def resume(self) -> None:
        """Bind again what an earlier process bound; what is bound to nobody any more goes."""
        for hub in self._hubs:
            if hub.bound_to:
                caller = await self._caller(hub.bound_to, hub.owner_uid)
                if caller is None:
                    self._hubs.detach_soon(hub)
                else:
                    self.bind_hub(caller, hub)
        for attachment in self._attachments:
            if attachment.bound_to:
                caller = await self._caller(attachment.bound_to, attachment.owner_uid)
                if caller is None:
                    self._attachments.detach_soon(attachment)
                else:
                    self.bind(caller, attachment)

    async def _caller(self, name: str, uid: int) -> Caller | None:
        try:
            caller = await self._callers.get(name)
        except (BusError, Disconnected, TimeoutError):
            return None
        # After a restart of the bus the name may be somebody else's.
        return caller if caller.uid == uid else None

    def attachment_added(self, attachment: Attachment) -> None:
        """See :class:`usbipsshd.attachments.AttachmentListener`; nothing to do."""

    def attachment_changed(self, attachment: Attachment) -> None:
        """See :class:`usbipsshd.attachments.AttachmentListener`; nothing to do."""

    def attachment_removed(self, attachment: Attachment) -> None:
        """See :class:`usbipsshd.attachments.AttachmentListener`."""
        unwatch = self._watches.pop(attachment.number, None)
        if unwatch is not None:
            unwatch()

    def hub_added(self, hub: Hub) -> None:
        """See :class:`usbipsshd.hubs.HubListener`; nothing to do."""

    def hub_changed(self, hub: Hub) -> None:
        """See :class:`usbipsshd.hubs.HubListener`; nothing to do."""

    def hub_removed(self, hub: Hub) -> None:
        """See :class:`usbipsshd.hubs.HubListener`."""
        unwatch = self._hub_watches.pop(hub.number, None)
        if unwatch is not None:
            unwatch()
