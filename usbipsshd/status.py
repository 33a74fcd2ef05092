# SPDX-License-Identifier: GPL-3.0-or-later
"""The line that ``systemctl status`` shows: how many devices are attached, and how many are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from usbipsshd.attachment import Attachment, State

_ORDER = (State.ATTACHED, State.CONNECTING, State.WAITING, State.DETACHING)


def summary(attachments: Iterable[Attachment]) -> str:
    """Such as ``2 attached, 1 waiting``."""
    counts = Counter(a.state for a in attachments)
    words = [f"{counts[state]} {state.value}" for state in _ORDER if counts[state]]
    return ", ".join(words) or "Ready, nothing is attached"


class Status:
    """Tells systemd whenever that changes (sd_notify(3), STATUS). Listens to attachments."""

    def __init__(self, attachments: Iterable[Attachment], send: Callable[[str], None]) -> None:
        self._attachments = attachments
        self._send = send
        self._told = ""

    def tell(self) -> None:
        """Tell, if there is news."""
        text = summary(self._attachments)
        if text != self._told:
            self._told = text
            self._send(f"STATUS={text}")

    def attachment_added(self, attachment: Attachment) -> None:
        """See :class:`usbipsshd.attachments.AttachmentListener`."""
        self.tell()

    def attachment_changed(self, attachment: Attachment) -> None:
        """See :class:`usbipsshd.attachments.AttachmentListener`."""
        self.tell()

    def attachment_removed(self, attachment: Attachment) -> None:
        """See :class:`usbipsshd.attachments.AttachmentListener`."""
        self.tell()
