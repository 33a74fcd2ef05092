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
from usbipsshd.callersagent import check_agent_socket
from usbipsshd.control import Session
from usbipsshd.errors import Code, UsbipError
from usbipsshd.hub import Hub
from usbipsshd.hubs import Hubs
from usbipsshd.importer import Importer
from usbipsshd.link import Link
from usbipsshd.links import Links, agent_name, descriptor_name, private_name
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
        left = dict(descriptors)
        links = self._every_link([*remembered.attachments, *remembered.hubs], left)
        sessions = self._sessions(links, left)
        # Hubs first: their attachments find them.
        for hub in remembered.hubs:
            try:
                self._hubs.begin(self._link(hub), hub, restored=True)
            except UsbipError as error:
                log.warning("a hub on %s is given up: %s", hub.remote, error)
        for attachment in remembered.attachments:
            running = remembered.running.get(attachment.number)
            try:
                self._attachment(attachment, running, sessions)
            except UsbipError as error:
                log.warning(
                    "%s of %s is given up: %s", attachment.device.busid, attachment.remote, error
                )
        for link in links.values():
            name = link.remote.name
            self._group.create_task(self._compare(link, sessions.get(link)), name=f"compare {name}")

    def _every_link(
        self, users: Sequence[Attachment | Hub], descriptors: dict[str, Sequence[int]]
    ) -> dict[str, Link]:
        """The links of all users, by the names of their sessions; takes the agents' sockets."""
        links: dict[str, Link] = {}
        for user in users:
            number = user.private
            name = private_name(number) if number else descriptor_name(user.remote)
            if name in links:
                continue
            with contextlib.suppress(UsbipError):
                remote = self._store.find(user.remote)
                if number:
                    agent = _agent(descriptors.pop(agent_name(number), ()))
                    links[name] = self._links.resume_private(remote, number, agent, user.owner_uid)
                else:
                    links[name] = self._links.to(remote)
        return links

    def _link(self, user: Attachment | Hub) -> Link:
        remote = self._store.find(user.remote)
        return self._links.private(user.private) or self._links.to(remote)

    def _sessions(
        self, links: Mapping[str, Link], descriptors: Mapping[str, Sequence[int]]
    ) -> dict[Link, Session]:
        sessions: dict[Link, Session] = {}
        for stored, fds in descriptors.items():
            link = links.get(stored)
            for fd in fds:
                channel = _channel(fd)
                if channel is None or link is None or link in sessions:
                    # Without us it gives everything back and ends. The one that is used of
                    # several is stored anew as soon as its link runs.
                    if channel is not None:
                        channel.close()
                    self._links.keeper.unstore(stored)
                    continue
                sessions[link] = link.take_over(channel)
        return sessions

    def _attachment(
        self, attachment: Attachment, running: Running | None, sessions: Mapping[Link, Session]
    ) -> None:
        # A remote that is listed no more: nobody takes its devices over, and they are detached.
        link = self._link(attachment)
        session = sessions.get(link)
        device = attachment.device
        present = running is not None and self._importer.take_over(running.imported, device)
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
            log.warning("lost with the process before: %s of %s", device.busid, attachment.remote)

    async def _compare(self, link: Link, session: Session | None) -> None:
        """Give back what the session exports and nobody here knows of, and the other way round."""
        name = link.remote.name
        # A link that nobody uses any more becomes idle after this.
        with link.kept():
            if session is None:
                return
            usb = RemoteUsb(session, name)
            try:
                exported = set(await usb.exports())
                for attachment in self._attachments:
                    at_home = (attachment.remote, attachment.private) == (name, link.private)
                    if at_home and attachment.state is State.ATTACHED:
                        if attachment.device.busid not in exported:
                            self._attachments.lost(attachment, _LOST)
                        exported.discard(attachment.device.busid)
                for busid in exported:
                    used = self._attachments.at(name, busid)
                    if used is None or used.state is State.WAITING:
                        await usb.release(busid, rebind=True)
            except UsbipError as error:
                log.warning("%s: its session was taken over and does not answer: %s", name, error)


def _agent(fds: Sequence[int]) -> int | None:
    """The ssh-agent's socket among ``fds``, whose others are closed; None if there is none."""
    found: int | None = None
    for fd in fds:
        try:
            check_agent_socket(fd, 0)
            good = found is None
        except UsbipError:
            good = False
        if good:
            found = fd
        else:
            with contextlib.suppress(OSError):
                os.close(fd)
    return found


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
