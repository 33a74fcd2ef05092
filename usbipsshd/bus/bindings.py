# SPDX-License-Identifier: GPL-3.0-or-later
"""Attachments that live no longer than the bus connection of who asked for them."""

from __future__ import annotations

from collections.abc import Callable

from usbipsshd.attachment import Attachment
from usbipsshd.attachments import Attachments
from usbipsshd.bus.callers import Callers
from usbipsshd.bus.values import BusError, Caller, Disconnected


class Bindings:
    """Detaches what is bound to a caller when it leaves. Listens to attachments."""

    def __init__(self, attachments: Attachments, callers: Callers) -> None:
        self._attachments = attachments
        self._callers = callers
        self._watches: dict[int, Callable[[], None]] = {}
        attachments.listen(self)

    def bind(self, caller: Caller, attachment: Attachment) -> None:
        """Bind an attachment to its caller."""
        if self._attachments.get(attachment.number) is None:
            return  # It is gone already.
        attachment.bound_to = caller.name
        self._watches[attachment.number] = self._callers.watch(
            caller.name, lambda: self._attachments.detach_soon(attachment)
        )

    async def resume(self) -> None:
        """Bind again what an earlier process bound; what is bound to nobody any more goes."""
        for attachment in self._attachments:
            if not attachment.bound_to:
                continue
            try:
                caller = await self._callers.get(attachment.bound_to)
            except (BusError, Disconnected, TimeoutError):
                caller = None
            # After a restart of the bus the name may be somebody else's.
            if caller is None or caller.uid != attachment.owner_uid:
                self._attachments.detach_soon(attachment)
            else:
                self.bind(caller, attachment)

    def attachment_added(self, attachment: Attachment) -> None:
        """See :class:`usbipsshd.attachments.AttachmentListener`; nothing to do."""

    def attachment_changed(self, attachment: Attachment) -> None:
        """See :class:`usbipsshd.attachments.AttachmentListener`; nothing to do."""

    def attachment_removed(self, attachment: Attachment) -> None:
        """See :class:`usbipsshd.attachments.AttachmentListener`."""
        unwatch = self._watches.pop(attachment.number, None)
        if unwatch is not None:
            unwatch()
