# SPDX-License-Identifier: GPL-3.0-or-later
"""Goes on with what an earlier process of ours was doing."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Mapping, Sequence

from usbipsshd.attachment import Attachment, Direction, State
from usbipsshd.attachments import Attachments, Running
from usbipsshd.callersagent import check_agent_socket
from usbipsshd.control import Session
from usbipsshd.device import Device
from usbipsshd.doing import Lent, Where
from usbipsshd.entry import name_of
from usbipsshd.errors import Code, UsbipError
from usbipsshd.here import DESCRIPTOR_NAME, Here
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
        here: Here,
        group: asyncio.TaskGroup,
    ) -> None:
        self._store = store
        self._links = links
        self._attachments = attachments
        self._hubs = hubs
        self._importer = importer
        self._here = here
        self._group = group

    def run(self, remembered: Remembered, descriptors: Mapping[str, Sequence[int]]) -> None:
        """Take over sessions, then begin what is remembered; what cannot go on is logged."""
        numbers = [a.number for a in remembered.attachments]
        self._attachments.skip_numbers(max(numbers, default=0))
        # Also those of hubs that were left out, and live on in their attachments alone.
        hubs = [h.number for h in remembered.hubs] + [a.hub for a in remembered.attachments]
        self._hubs.skip_numbers(max(hubs, default=0))
        left = dict(descriptors)
        exports = [a for a in remembered.attachments if a.direction is Direction.EXPORT]
        lent = [a.device.busid for a in (*exports, *remembered.leaving)]
        for number, fd in enumerate(left.pop(DESCRIPTOR_NAME, ())):
            if number:
                os.close(fd)
            else:
                self._here.take_over(fd, lent)
        for attachment in remembered.leaving:
            self._release_soon(attachment.device.busid, rebind=attachment.rebind)
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
                if running is not None and isinstance(running.where, Lent):
                    self._drop(running.where, attachment.device)
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
        if running is not None:
            if session is not None and self._attachments.take_over(link, running, session):
                log.info("still attached: %s", name_of(attachment))
                return
            self._drop(running.where, device)
        elif attachment.direction is Direction.EXPORT:
            # It may have been on its way.
            self._release_soon(device.busid)
        if attachment.keep and not attachment.hub:
            self._attachments.begin(link, attachment)
        else:
            log.warning("lost with the process before: %s of %s", device.busid, attachment.remote)

    def _drop(self, where: Where, device: Device) -> None:
        """Undo what cannot go on."""
        if isinstance(where, Lent):
            self._release_soon(where.busid)
        elif self._importer.take_over(where, device):
            self._importer.detach(where)

    def _release_soon(self, busid: str, *, rebind: bool = True) -> None:
        self._group.create_task(self._release(busid, rebind=rebind), name=f"release {busid}")

    async def _release(self, busid: str, *, rebind: bool) -> None:
        try:
            await self._here.release(busid, rebind=rebind)
        except UsbipError as error:
            log.warning("%s was left exported: %s", busid, error)

    async def _compare(self, link: Link, session: Session | None) -> None:
        """Give back what the session exports and nobody here knows of, and the other way round."""
        name = link.remote.name
        # A link that nobody uses any more becomes idle after this.
        with link.kept():
            if session is None:
                return
            usb = RemoteUsb(session, name)
            try:
                for busid in self._unknown(link, Direction.IMPORT, await usb.exports()):
                    used = self._attachments.at(name, busid)
                    if used is None or used.state is State.WAITING:
                        await usb.release(busid, rebind=True)
                for busid in self._unknown(link, Direction.EXPORT, await usb.loans()):
                    used = self._attachments.lent(busid)
                    if used is None or used.remote != name or used.state is State.WAITING:
                        await usb.take_back(busid)
            except UsbipError as error:
                log.warning("%s: its session was taken over and does not answer: %s", name, error)

    def _unknown(self, link: Link, direction: Direction, busids: Sequence[str]) -> set[str]:
        """Those of ``busids`` that no attachment has; what has none of them is lost."""
        unknown = set(busids)
        for attachment in self._attachments:
            at_home = (attachment.remote, attachment.private) == (link.remote.name, link.private)
            if not at_home or attachment.direction is not direction:
                continue
            if attachment.state is State.ATTACHED:
                if attachment.device.busid not in unknown:
                    self._attachments.lost(attachment, _LOST)
                unknown.discard(attachment.device.busid)
        return unknown


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
