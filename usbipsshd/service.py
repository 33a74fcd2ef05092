# SPDX-License-Identifier: GPL-3.0-or-later
"""What callers can ask for, without D-Bus: authorize, do, answer.

Every method says first what it needs to be allowed. No connection is made before
``list`` is granted, and nothing is changed before the rest is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from usbipsshd.attachment import Attachment, Direction, State
from usbipsshd.attachments import Attachments
from usbipsshd.authority import Action, details
from usbipsshd.chooser import Chooser, changed, summary_of
from usbipsshd.descriptors import Summary
from usbipsshd.device import Device, is_busid
from usbipsshd.drivers import Drivers
from usbipsshd.errors import Code, UsbipError
from usbipsshd.hub import Hub
from usbipsshd.hubs import Hubs
from usbipsshd.link import Link
from usbipsshd.links import Links, PassedAgent
from usbipsshd.localchecks import LocalChecks
from usbipsshd.localusb import LocalUsb
from usbipsshd.pattern import Pattern
from usbipsshd.preflight import Finding, Verdict, there
from usbipsshd.remotes import Remote, RemoteStore
from usbipsshd.remoteusb import RemoteUsb
from usbipsshd.usbids import UsbIds

EVERYTHING = "*"
"""What a question names where it is about a hub: in no language."""


class Asking(Protocol):
    """One call's dealings with polkit."""

    @property
    def uid(self) -> int:
        """The caller's uid."""

    async def require(
        self, actions: Sequence[Action], details: Mapping[str, str], *, more: bool = False
    ) -> None:
        """Return if the caller may do all of ``actions``; else raise :exc:`UsbipError`.

        May ask it, if it allows that; ``more`` says that this call will require more later.
        """

    async def may(self, action: Action, details: Mapping[str, str]) -> bool:
        """Whether the caller may, without asking it."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A device as a listing shows it."""

    device: Device
    state: str
    attachment: int = 0
    """The attachment's number if it is attached here, or exported from here; else 0."""


@dataclass(frozen=True, slots=True)
class AttachOptions:
    """Options of Attach and Export."""

    keep: bool = False
    persist: bool = False
    unmount: bool = True
    rebind: bool = True
    expect_vendor_id: int | None = None
    expect_product_id: int | None = None
    bound_to: str = ""
    """The caller's name on the bus if the attachment lives no longer than that."""

    def expects(self, device: Device) -> bool:
        """Whether it is what the caller meant, as far as that was said."""
        return self.expect_vendor_id in (None, device.vendor_id) and (
            self.expect_product_id in (None, device.product_id)
        )


@dataclass(frozen=True, slots=True)
class HubOptions:
    """Options of AttachAll."""

    persist: bool = False
    unmount: bool = True
    rebind: bool = True
    bound_to: str = ""
    """The caller's name on the bus if the hub lives no longer than that."""


class Service:
    """The daemon's work, as callers see it."""

    def __init__(
        self,
        *,
        store: RemoteStore,
        links: Links,
        attachments: Attachments,
        hubs: Hubs,
        usb: LocalUsb,
        ids: UsbIds,
        chooser: Chooser,
        drivers: Drivers,
        checks: LocalChecks,
        keep: Callable[[], bool],
    ) -> None:
        self.store = store
        self.links = links
        self.attachments = attachments
        self.hubs = hubs
        self._usb = usb
        self._ids = ids
        self._chooser = chooser
        self.drivers = drivers
        self._checks = checks
        self._keep = keep
        """Writes down what is to persist, now; whether that went well."""

    async def list_local(self, pattern: str) -> list[Listed]:
        """This machine's devices that match, in tree order."""
        parsed = Pattern.parse(pattern)
        return [
            self._listed("", d) for d in await self._chooser.select(parsed, self._usb.devices())
        ]

    async def list_remote(
        self, asking: Asking, remote: str, pattern: str, agent: PassedAgent | None = None
    ) -> list[Listed]:
        """A remote's devices that match, in tree order."""
        parsed = Pattern.parse(pattern)
        found = self.store.find(remote)
        await asking.require(_to_connect(found), details(found.name))
        with self.kept(found, agent) as link:
            async with link.use() as session:
                devices = await RemoteUsb(session, found.name).devices()
        return [self._listed(found.name, d) for d in await self._chooser.select(parsed, devices)]

    async def preflight(
        self, asking: Asking, remote: str, agent: PassedAgent | None = None
    ) -> list[Finding]:
        """What would stop an attach, here and, unless ``remote`` is empty, there."""
        if not remote:
            return list(self._checks.findings())
        there_ = self.store.find(remote)
        name = there_.name
        await asking.require(_to_connect(there_), details(name))
        found = list(self._checks.findings())
        try:
            with self.kept(there_, agent) as link:
                async with link.use() as session:
                    facts = await RemoteUsb(session, name).facts()
        except UsbipError as error:
            return [*found, Finding("connection", "there", Verdict.PROBLEM, error.message)]
        connected = Finding("connection", "there", Verdict.OK, f"{name} lets this machine in.")
        return [*found, connected, *there(name, facts)]

    async def attach(
        self,
        asking: Asking,
        remote: str,
        pattern: str,
        options: AttachOptions,
        agent: PassedAgent | None = None,
    ) -> Attachment:
        """Attach the one device that matches; return when it is usable here.

        With ``agent`` the attachment has a connection of its own, for as long as it lasts.
        """
        parsed = Pattern.parse(pattern)
        if agent is not None and options.persist:
            raise no_agent_later()
        found = self.store.find(remote)
        name = found.name
        await asking.require(_to_connect(found), details(name), more=True)
        await self.attachments.awake()
        with self.kept(found, agent) as link:
            async with link.use() as session:
                device = await self._chooser.one(
                    RemoteUsb(session, name), name, parsed, self._is_free(name)
                )
            if not options.expects(device):
                raise changed(name, device)
            about, summary = self.details_of(name, device)
            strict = await self.drivers.can_type_or_network(summary)
            action = Action.ATTACH_INPUT if strict else Action.ATTACH
            managing = [Action.MANAGE_REMOTES] if options.persist else []
            await asking.require([*managing, action], about)
            attachment = Attachment(
                self.attachments.number(),
                name,
                pattern,
                device,
                asking.uid,
                rebind=options.rebind,
                unmount=options.unmount,
                keep=options.keep or options.persist,
                persist=options.persist,
                input_allowed=strict,
                private=link.private,
                bound_to=options.bound_to,
            )
            await self.begin(link, attachment)
        return attachment

    @contextmanager
    def kept(self, remote: Remote, agent: PassedAgent | None = None) -> Iterator[Link]:
        """The link to a remote as it was found before anybody was asked; see :meth:`Links.kept`.

        Raises :exc:`UsbipError` (UnknownRemote) for one that was removed while a person thought.
        """
        self.store.check_still(remote)
        with self.links.kept(remote, agent) as link:
            yield link

    async def begin(self, link: Link, attachment: Attachment) -> None:
        """Begin what was authorized, write it down if it persists, and wait until it is usable.

        From then on the attachment itself keeps the link. Raises :exc:`UsbipError`, also where
        the remote was removed meanwhile (UnknownRemote).
        """
        self.store.check_still(link.remote)
        self.attachments.begin(link, attachment)
        if attachment.persist and not self._keep():
            await self.attachments.detach(attachment, attachment.owner_uid)
            raise _cannot_keep()
        await self.attachments.usable(attachment)

    def _is_free(self, remote: str) -> Callable[[Device], bool]:
        return lambda device: self.attachments.at(remote, device.busid) is None

    async def attach_all(
        self,
        asking: Asking,
        remote: str,
        pattern: str,
        options: HubOptions,
        agent: PassedAgent | None = None,
    ) -> Hub:
        """Attach every device that matches, now and later; return when the remote is watched.

        With ``agent`` the hub has a connection of its own, for as long as it lasts.
        """
        Pattern.parse(pattern)
        if agent is not None and options.persist:
            raise no_agent_later()
        found = self.store.find(remote)
        managing = [Action.MANAGE_REMOTES] if options.persist else []
        actions = [*managing, *_to_connect(found), Action.ATTACH_INPUT]
        await asking.require(actions, details(found.name, name=EVERYTHING))
        with self.kept(found, agent) as link:
            hub = Hub(
                self.hubs.number(),
                found.name,
                pattern,
                asking.uid,
                persist=options.persist,
                unmount=options.unmount,
                rebind=options.rebind,
                private=link.private,
                bound_to=options.bound_to,
            )
            self.hubs.begin(link, hub)
            if options.persist and not self._keep():
                await self.hubs.detach(hub, asking.uid)
                raise _cannot_keep()
            await self.hubs.watching(hub)
        return hub

    def details_of(
        self, remote: str, device: Device, machine: str = ""
    ) -> tuple[dict[str, str], Summary]:
        """What polkit's rules are told of a device, and what it can do.

        ``machine`` has it, or the remote. Raises :exc:`UsbipError` for one that is never attached.
        """
        summary = summary_of(machine or remote, device)
        title = self._ids.title(device.vendor_id, device.product_id)
        return details(remote, device, title, summary.classes), summary

    async def set_options(
        self, asking: Asking, attachment: Attachment, keep: bool | None, persist: bool | None
    ) -> None:
        """Change what becomes of an attachment later; None leaves as it is."""
        if attachment.hub:
            raise UsbipError(
                Code.INVALID_ARGS,
                "This device belongs to a hub, which keeps it; detach the hub and attach it alone.",
            )
        if persist and attachment.private:
            raise no_agent_later()
        persists = attachment.persist if persist is None else persist
        if persists and keep is False:
            raise UsbipError(
                Code.INVALID_ARGS, "What persists is kept, too; set persist to false as well."
            )
        keeps = persists or (attachment.keep if keep is None else keep)
        others = [] if attachment.owner_uid == asking.uid else [Action.DETACH_OTHERS]
        managing = [Action.MANAGE_REMOTES] if persists and not attachment.persist else []
        if others or managing:
            about = self._details_of(attachment)
            await asking.require([*managing, *others], about)
        before = attachment.keep, attachment.persist
        self.attachments.set_options(attachment, keep=keeps, persist=persists)
        if persists and not self._keep():
            self.attachments.set_options(attachment, keep=before[0], persist=before[1])
            raise _cannot_keep()

    async def detach(self, asking: Asking, attachment: Attachment) -> None:
        """Detach one device and wait until it was given back."""
        await self.may_detach(asking, attachment)
        self.hubs.leave_alone(attachment)
        await self.attachments.detach(attachment, asking.uid)

    async def detach_hub(self, asking: Asking, hub: Hub) -> None:
        """Detach a hub with all that it attached."""
        if hub.owner_uid != asking.uid:
            await asking.require([Action.DETACH_OTHERS], _hub_details(hub))
        await self.hubs.detach(hub, asking.uid)

    async def detach_target(self, asking: Asking, target: str) -> int:
        """Detach ``all``, a local bus id or ``remote/busid``; return how many."""
        if target == "all":
            return await self._detach_all(asking)
        remote, slash, busid = target.rpartition("/")
        if not is_busid(busid) or (slash and not remote):
            raise UsbipError(
                Code.INVALID_ARGS,
                "What to detach is an object path, remote/busid, a bus id of this machine, or all.",
            )
        name = self.store.find(remote).name if slash else ""
        found = [
            a
            for a in self.attachments
            if ((a.remote, a.remote_busid) == (name, busid) if slash else a.local_busid == busid)
        ]
        if not found:
            where = f"of {name} " if slash else ""
            raise UsbipError(Code.NOT_ATTACHED, f"{busid} {where}is not attached here.")
        await self.detach(asking, found[0])
        return 1

    async def _detach_all(self, asking: Asking) -> int:
        """Everything of the caller's own, and of others what it may detach without a question."""
        hubs = [h for h in self.hubs if await self._owns(asking, h.owner_uid, _hub_details(h))]
        attachments = [
            a
            for a in self.attachments
            if await self._owns(asking, a.owner_uid, self._details_of(a))
        ]
        async with asyncio.TaskGroup() as group:
            for hub in hubs:
                group.create_task(self.hubs.detach(hub, asking.uid))
            for attachment in attachments:
                self.hubs.leave_alone(attachment)
                group.create_task(self.attachments.detach(attachment, asking.uid))
        return len(attachments)

    @staticmethod
    async def _owns(asking: Asking, owner_uid: int, about: Mapping[str, str]) -> bool:
        return owner_uid == asking.uid or await asking.may(Action.DETACH_OTHERS, about)

    def others_hold(self, remote: str, uid: int) -> bool:
        """Whether anything of a remote's is attached that is another user's.

        The remote "" is this machine, of which something may be exported.
        """
        return any(
            (a.remote == remote or (not remote and a.direction is Direction.EXPORT))
            and a.owner_uid != uid
            for a in self.attachments
        )

    async def may_take(
        self, asking: Asking, remote: str, devices: Sequence[Device]
    ) -> Mapping[str, Attachment | None]:
        """What is attached of a remote's devices, if the caller may take it all; else raise."""
        found = {d.busid: self.attachments.at(remote, d.busid) for d in devices}
        for attachment in found.values():
            if attachment is not None:
                await self.may_detach(asking, attachment)
        return found

    async def may_detach(self, asking: Asking, attachment: Attachment) -> None:
        """Return if the caller may take an attachment from its owner; else raise."""
        if attachment.owner_uid != asking.uid:
            await asking.require([Action.DETACH_OTHERS], self._details_of(attachment))

    def _details_of(self, attachment: Attachment) -> dict[str, str]:
        """What polkit's rules are told of an attachment; a hub begins with any device."""
        remote, device = attachment.remote, attachment.device
        try:
            about, _ = self.details_of(remote, device)
        except UsbipError:
            return details(remote, device)
        return about

    def _listed(self, remote: str, device: Device) -> Listed:
        state = "exported" if device.exported else "available"
        for other in self.attachments:
            if remote:
                is_it = (other.remote, other.remote_busid) == (remote, device.busid)
                is_it = is_it and other.state is State.ATTACHED
            else:
                is_it = other.local_busid == device.busid
            if is_it:
                attached = other.direction is Direction.IMPORT
                return Listed(device, "attached" if attached else state, other.number)
        return Listed(device, state)


def no_agent_later() -> UsbipError:
    """The error for what would need a caller's ssh-agent after the caller is gone."""
    return UsbipError(
        Code.INVALID_ARGS,
        "What is attached with an ssh-agent cannot persist: the agent is gone by then.",
    )


def _cannot_keep() -> UsbipError:
    """The error for an attachment that is to persist and cannot be written down."""
    return UsbipError(
        Code.FAILED,
        "This machine could not write down what is to persist; see whether its disk is full, and "
        "the log of usbipsshd.",
    )


def _hub_details(hub: Hub) -> dict[str, str]:
    """What polkit's rules are told of a hub."""
    return details(hub.remote, name=EVERYTHING)


def _to_connect(remote: Remote) -> list[Action]:
    """What has to be granted before a connection is made."""
    return [Action.LIST] if remote.listed else [Action.USE_UNLISTED_REMOTE, Action.LIST]
