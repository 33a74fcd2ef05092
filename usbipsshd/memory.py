# SPDX-License-Identifier: GPL-3.0-or-later
"""What the daemon remembers of attachments and hubs: across a restart, and across a reboot.

Two files. One below /run has everything as it is now, so that another process can take it
over; it goes with the machine's shutdown. One in the state folder has what is to persist.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from usbipsshd.attachment import Attachment, Direction, State
from usbipsshd.attachments import Attachments, Running
from usbipsshd.hub import Hub
from usbipsshd.hubs import Hubs
from usbipsshd.messages import BadPacket, Json, Packet
from usbipsshd.records import (
    attachment_from_json,
    attachment_to_json,
    hub_from_json,
    hub_to_json,
    where_from_json,
    where_to_json,
)
from usbipsshd.statefile import load, save

log = logging.getLogger(__name__)

MAX_RECORDS = 512


@dataclass(slots=True)
class Remembered:
    """What an earlier process wrote down."""

    attachments: list[Attachment] = field(default_factory=list)
    """In WAITING."""
    running: dict[int, Running] = field(default_factory=dict)
    """Those that were attached, by number."""
    hubs: list[Hub] = field(default_factory=list)
    leaving: list[Attachment] = field(default_factory=list)
    """Exports that were being detached: their devices are still to be given back here."""
    same_boot: bool = False
    """Whether this was written since the machine started."""


class Memory:
    """Writes down what changes. Listens to attachments and hubs."""

    def __init__(self, run: Path, state: Path) -> None:
        self._now_file = run / "attachments.json"
        self._persist_file = state / "persistent.json"
        self._attachments: Attachments | None = None
        self._hubs: Hubs | None = None
        self._scheduled: asyncio.Handle | None = None
        self._persisted: Packet | None = None
        self._frozen = False

    def recall(self) -> Remembered:
        """What an earlier process left; what makes no sense is left out, with a log line."""
        packet = load(self._now_file)
        found = Remembered(same_boot=bool(packet))
        if not packet:
            # The machine has just started, or what is below /run was damaged.
            packet = load(self._persist_file)
        for record in _records(packet, "hubs"):
            try:
                hub = hub_from_json(record)
                if any(h.number == hub.number for h in found.hubs):
                    raise BadPacket("number: there are two of it")
            except BadPacket as error:
                log.warning("a remembered hub is left out: %s", error)
                continue
            found.hubs.append(hub)
        for record in _records(packet, "attachments"):
            try:
                attachment = attachment_from_json(record)
                if any(a.number == attachment.number for a in found.attachments):
                    raise BadPacket("number: there are two of it")
                where = where_from_json(record)
                if where is not None:
                    found.running[attachment.number] = Running(attachment, where)
            except BadPacket as error:
                log.warning("a remembered attachment is left out: %s", error)
                continue
            found.attachments.append(attachment)
        for record in _records(packet, "leaving"):
            try:
                found.leaving.append(attachment_from_json(record))
            except BadPacket as error:
                log.warning("a device that was being given back is left out: %s", error)
        return found

    def watch(self, attachments: Attachments, hubs: Hubs) -> None:
        """Write down what becomes of these from now on."""
        self._attachments, self._hubs = attachments, hubs
        attachments.listen(self)
        hubs.listen(self)
        self._write()

    def write(self) -> bool:
        """Write now; whether what is to persist is kept, which a full disk may prevent."""
        self._write()
        return self._persisted == self._persistent()

    def freeze(self) -> None:
        """Write no more: what is written down is for the next process."""
        self._write()
        self._frozen = True

    def hold(self) -> None:
        """Write no more, also not what is now: the daemon goes down in the middle of things."""
        self._frozen = True

    def clear(self) -> None:
        """Everything was given back: nothing is to be taken over, what persists still does."""
        self._frozen = True
        self._now_file.unlink(missing_ok=True)

    def keep_persistent(self) -> None:
        """Write no more of what persists: the daemon gives things back because it stops."""
        self._write_persistent()
        self._frozen = True

    def _soon(self) -> None:
        if self._scheduled is None and not self._frozen:
            self._scheduled = asyncio.get_running_loop().call_soon(self._write)

    def _write(self) -> None:
        self._scheduled = None
        if self._frozen or self._attachments is None or self._hubs is None:
            return
        running = {r.attachment.number: r.where for r in self._attachments.running()}
        records: list[Json] = []
        leaving: list[Json] = []
        for attachment in self._attachments:
            record = attachment_to_json(attachment)
            if attachment.number in running:
                record |= where_to_json(running[attachment.number])
            if attachment.state is not State.DETACHING:
                records.append(record)
            elif attachment.direction is Direction.EXPORT:
                # What imports leave is found at the other end. Nobody asks this one.
                leaving.append(record)
        hubs: list[Json] = [hub_to_json(h) for h in self._hubs if h.state is not State.DETACHING]
        save(self._now_file, {"attachments": records, "hubs": hubs, "leaving": leaving})
        self._write_persistent()

    def _write_persistent(self) -> None:
        persistent = self._persistent()
        if persistent == self._persisted:
            return
        if any(persistent.values()):
            if not save(self._persist_file, persistent):
                return
        else:
            # The machine starts the daemon only where this file is.
            self._persist_file.unlink(missing_ok=True)
        self._persisted = persistent

    def _persistent(self) -> Packet:
        return {
            "attachments": [attachment_to_json(a) for a in self._attachments or () if _persists(a)],
            "hubs": [hub_to_json(h) for h in self._hubs or () if _persists(h)],
        }

    def attachment_added(self, attachment: Attachment) -> None:
        """See :class:`usbipsshd.attachments.AttachmentListener`."""
        self._soon()

    def attachment_changed(self, attachment: Attachment) -> None:
        """See :class:`usbipsshd.attachments.AttachmentListener`."""
        self._soon()

    def attachment_removed(self, attachment: Attachment) -> None:
        """See :class:`usbipsshd.attachments.AttachmentListener`."""
        self._soon()

    def hub_added(self, hub: Hub) -> None:
        """See :class:`usbipsshd.hubs.HubListener`."""
        self._soon()

    def hub_changed(self, hub: Hub) -> None:
        """See :class:`usbipsshd.hubs.HubListener`."""
        self._soon()

    def hub_removed(self, hub: Hub) -> None:
        """See :class:`usbipsshd.hubs.HubListener`."""
        self._soon()


def _persists(one: Attachment | Hub) -> bool:
    # Whom it is bound to is gone when the machine starts, and its name on the bus somebody else's.
    return one.persist and not one.bound_to and one.state is not State.DETACHING


def _records(packet: Packet, name: str) -> Iterator[Packet]:
    found = packet.get(name, [])
    for record in found[:MAX_RECORDS] if isinstance(found, list) else ():
        if isinstance(record, dict):
            yield record
