# SPDX-License-Identifier: GPL-3.0-or-later
"""One attachment with what it takes to run it, and what the log says of it."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from usbipsshd.attachment import Attachment, Direction, Life
from usbipsshd.doing import Doing
from usbipsshd.errors import UsbipError
from usbipsshd.journal import Happening, tell
from usbipsshd.link import Link

log = logging.getLogger(__name__)

_VERBS = {Direction.IMPORT: "attached", Direction.EXPORT: "exported"}


@dataclass(slots=True)
class Entry:
    """A row of the table of attachments."""

    attachment: Attachment
    link: Link
    doing: Doing
    life: Life
    first: bool = True
    """Whether the device is still the one that was just chosen, and need not be found again."""
    attached_before: bool = False
    detached_by: int | None = None
    """The uid of who detached it; None if that was nobody."""

    def tell_attached(self, where: str) -> None:
        """It is usable, for the first time or again."""
        restored = self.attached_before
        self.attached_before = True
        verb = "restored" if restored else _VERBS[self.attachment.direction]
        self._tell(
            Happening.RESTORED if restored else Happening.ATTACHED,
            f"{verb} {where} for uid {self.attachment.owner_uid}",
        )

    def tell_lost(self, error: UsbipError) -> None:
        """It went away by itself."""
        self._tell(Happening.LOST, f"lost {name_of(self.attachment)}: {error.message}")

    def tell_detached(self) -> None:
        """It is over, and everything was given back."""
        if self.attached_before and not self.life.abandoned:
            text = f"detached {name_of(self.attachment)}"
            self._tell(Happening.DETACHED, text, by=self.detached_by)

    def _tell(self, happening: Happening, text: str, by: int | None = None) -> None:
        attachment = self.attachment
        tell(
            log,
            happening,
            text,
            remote=attachment.remote,
            busid=attachment.device.busid,
            uid=attachment.owner_uid if by is None else by,
        )


def name_of(attachment: Attachment) -> str:
    """Which device, in words for the log."""
    between = "of" if attachment.direction is Direction.IMPORT else "on"
    return f"{attachment.device.busid} {between} {attachment.remote}"
