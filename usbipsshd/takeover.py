# SPDX-License-Identifier: GPL-3.0-or-later
"""Goes on with what an earlier process of ours was doing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Mapping, Sequence

from usbipsshd.attachment import Attachment, State
from usbipsshd.attachments import Attachments, Running
from usbipsshd.control import Session
from usbipsshd.errors import Code, UsbipError
from usbipsshd.hubs import Hubs
from usbipsshd.importer import Importer
from usbipsshd.links import Links, descriptor_name
from usbipsshd.memory import Remembered
from usbipsshd.remotes import RemoteStore
from usbipsshd.remoteusb import RemoteUsb
from usbipsshd.seqpacket import SeqPacket

log = logging.getLogger(__name__)


class TakeOver:
    """Puts things back as they were, in one go, before anybody can ask for them."""

    def __init__(
        self,
        *,
        store: RemoteStore,
        links: Links,
        attachments: Attachments,
        hubs: Hubs,
        importer: Importer,
        group: asyncio.TaskGroup,
    ) -> None:
        self._store = store
        self._links = links
        self._attachments = attachments
        self._hubs = hubs
        self._importer = importer
        self._group = group

    def run(self, remembered: Remembered, descriptors: Mapping[str, Sequence[int]]) -> None:
        """Take over sessions, then begin what is remembered; what cannot go on is logged."""
        numbers = [a.number for a in remembered.attachments]
        self._attachments.skip_numbers(max(numbers, default=0))
        # Also those of hubs that were left out, and live on in their attachments alone.
        hubs = [h.number for h in remembered.hubs] + [a.hub for a in remembered.attachments]
        self._hubs.skip_numbers(max(hubs, default=0))
        names = {a.remote for a in remembered.attachments} | {h.remote for h in remembered.hubs}
        sessions = self._sessions(names, descriptors)
        # Hubs first: their attachments find them.
        for hub in remembered.hubs:
            try:
                link = self._links.to(self._store.find(hub.remote))
                self._hubs.begin(link, hub, restored=True)
            except UsbipError as error:
                log.warning("a hub on %s is given up: %s", hub.remote, error)
        for attachment in remembered.attachments:
            running = remembered.running.get(attachment.number)
            try:
                self._attachment(attachment, running, sessions.get(attachment.remote))
            except UsbipError as error:
                log.warning(
                    "%s of %s is given up: %s", attachment.device.busid, attachment.remote, error
                )
        for name, session in sessions.items():
            self._group.create_task(self._compare(name, session), name=f"compare {name}")

    def _sessions(
        self, names: set[str], descriptors: Mapping[str, Sequence[int]]
    ) -> dict[str, Session]:
        sessions: dict[str, Session] = {}
        wanted = {descriptor_name(name): name for name in names}
        for stored, fds in descriptors.items():
            name = wanted.get(stored)
            for fd in fds:
                channel = _channel(fd)
                if channel is None or name is None or name in sessions:
                    # Without us it gives everything back and ends. The one that is used of
                    # several is stored anew as soon as its link runs.
                    if channel is not None:
                        channel.close()
                    self._links.keeper.unstore(stored)
                    continue
                try:
                    link = self._links.to(self._store.find(name))
                except UsbipError:
                    channel.close()
                    self._links.keeper.unstore(stored)
                    continue
                sessions[name] = link.take_over(channel)
        return sessions

    def _attachment(
        self, attachment: Attachment, running: Running | None, session: Session | None
    ) -> None:
        link = self._links.to(self._store.find(attachment.remote))
        present = running is not None and self._importer.take_over(running.imported)
        if running is not None and session is not None and present:
            attachment.state = State.ATTACHED
            attachment.port = running.imported.port
            attachment.local_busid = running.imported.local_busid
            attachment.device_nodes = self._importer.nodes(attachment.local_busid)
            self._attachments.take_over(link, running, session)
            log.info("still attached: %s of %s", attachment.device.busid, attachment.remote)
            return
        if running is not None:
            self._importer.detach(running.imported)
        if attachment.keep and not attachment.hub:
            self._attachments.begin(link, attachment)
        else:
            log.warning(
                "lost with the process before: %s of %s", attachment.device.busid, attachment.remote
            )

    async def _compare(self, name: str, session: Session) -> None:
        """Give back what the session exports and nobody here knows of, and the other way round."""
        usb = RemoteUsb(session, name)
        try:
            # The link of a session that nobody uses any more becomes idle after this.
            with self._links.to(self._store.find(name)).kept():
                exported = set(await usb.exports())
                for attachment in self._attachments:
                    if attachment.remote == name and attachment.state is State.ATTACHED:
                        if attachment.device.busid not in exported:
                            self._attachments.lost(attachment, _LOST)
                        exported.discard(attachment.device.busid)
                for busid in exported:
                    used = self._attachments.at(name, busid)
                    if used is None or used.state is State.WAITING:
                        await usb.release(busid, rebind=True)
        except UsbipError as error:
            log.warning("%s: its session was taken over and does not answer: %s", name, error)


def _channel(fd: int) -> SeqPacket | None:
    """The control socket that ``fd`` is; closed and None if it is none."""
    try:
        sock = socket.socket(fileno=fd)
    except OSError:
        with contextlib.suppress(OSError):
            os.close(fd)
        return None
    try:
        return SeqPacket(sock)
    except ValueError:
        sock.close()
        return None


_LOST = UsbipError(Code.DEVICE_FAILED, "The device was given back while usbipsshd restarted.")
