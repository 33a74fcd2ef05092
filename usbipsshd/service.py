# SPDX-License-Identifier: GPL-3.0-or-later
"""What callers can ask for, without D-Bus: authorize, do, answer.

Every method says first what it needs to be allowed. No connection is made before
``list`` is granted, and nothing is changed before the rest is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from usbipsshd.attachment import Attachment, State
from usbipsshd.attachments import Attachments
from usbipsshd.authority import Action
from usbipsshd.descriptors import BadDescriptors, Summary, summarize
from usbipsshd.device import Device, is_busid
from usbipsshd.errors import Code, UsbipError
from usbipsshd.exporter import LocalExporter
from usbipsshd.launcher import Launcher
from usbipsshd.link import Link, fetch_host_key
from usbipsshd.links import Links
from usbipsshd.localusb import LocalUsb
from usbipsshd.matcher import Matcher
from usbipsshd.pattern import Pattern
from usbipsshd.remotes import Remote, RemoteStore, check_fingerprint, fingerprint
from usbipsshd.remoteusb import RemoteUsb
from usbipsshd.usbids import UsbIds

log = logging.getLogger(__name__)

MAX_NAMED = 8
"""Bus ids named in one error message."""


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
    """The attachment's number if it is attached here, else 0."""


@dataclass(frozen=True, slots=True)
class AttachOptions:
    """Options of Attach."""

    unmount: bool = True
    rebind: bool = True
    expect_vendor_id: int | None = None
    expect_product_id: int | None = None


class Service:
    """The daemon's work, as callers see it."""

    def __init__(
        self,
        *,
        store: RemoteStore,
        links: Links,
        attachments: Attachments,
        usb: LocalUsb,
        exporter: LocalExporter,
        ids: UsbIds,
        matcher: Matcher,
        launcher: Launcher,
    ) -> None:
        self.store = store
        self.links = links
        self.attachments = attachments
        self._usb = usb
        self._exporter = exporter
        self._ids = ids
        self._matcher = matcher
        self._launcher = launcher

    async def list_local(self, pattern: str) -> list[Listed]:
        """This machine's devices that match, in tree order."""
        parsed = Pattern.parse(pattern)
        return [self._listed("", d) for d in await self._select(parsed, self._usb.devices())]

    async def list_remote(self, asking: Asking, remote: str, pattern: str) -> list[Listed]:
        """A remote's devices that match, in tree order."""
        parsed = Pattern.parse(pattern)
        link = self._link(remote)
        await asking.require(_to_connect(link.remote), {"remote": link.remote.name})
        async with link.use() as session:
            devices = await RemoteUsb(session, link.remote.name).devices()
        return [self._listed(link.remote.name, d) for d in await self._select(parsed, devices)]

    async def attach(
        self, asking: Asking, remote: str, pattern: str, options: AttachOptions
    ) -> Attachment:
        """Attach the one device that matches; return when it is usable here."""
        parsed = Pattern.parse(pattern)
        link = self._link(remote)
        await asking.require(_to_connect(link.remote), {"remote": link.remote.name}, more=True)
        with link.kept():
            device = await self._choose(link, parsed, options)
            details, action = self._details(link.remote, device)
            await asking.require([action], details)
            attachment = self.attachments.begin(
                link, device, pattern, asking.uid, unmount=options.unmount, rebind=options.rebind
            )
        await self.attachments.usable(attachment)
        return attachment

    async def _choose(self, link: Link, pattern: Pattern, options: AttachOptions) -> Device:
        """The one device that is meant, with its descriptors."""
        name = link.remote.name
        async with link.use() as session:
            usb = RemoteUsb(session, name)
            if pattern.busid and not pattern.negated:
                found = [await usb.describe(pattern.busid)]
            else:
                found = await self._select(pattern, await usb.devices())
            chosen = self._only(name, found)
            if self.attachments.at(name, chosen.busid) is not None:
                raise UsbipError(
                    Code.ALREADY_ATTACHED, f"{chosen.busid} of {name} is attached here already."
                )
            device = chosen if chosen.descriptors else await usb.describe(chosen.busid)
        expected = options.expect_vendor_id in (
            None,
            device.vendor_id,
        ) and options.expect_product_id in (None, device.product_id)
        same = (device.vendor_id, device.product_id) == (chosen.vendor_id, chosen.product_id)
        if not expected or not same:
            raise UsbipError(
                Code.DEVICE_CHANGED,
                f"{device.busid} of {name} is a {device.vendor_id:04x}:{device.product_id:04x} now, "
                "not the device that was expected; list again and choose.",
            )
        return self._ids.named(device)

    @staticmethod
    def _only(name: str, matching: Sequence[Device]) -> Device:
        found = [d for d in matching if not d.hub and not d.virtual]
        if len(found) == 1:
            return found[0]
        if found:
            raise UsbipError(
                Code.MULTIPLE_DEVICES,
                f"On {name}, {len(found)} devices match: {_names(found)}; "
                "choose one by its bus id.",
            )
        why = "no device matches"
        if matching:
            why = "only what is never attached matches: hubs and devices attached from elsewhere"
        raise UsbipError(Code.DEVICE_NOT_FOUND, f"On {name}, {why}; list it to see what is there.")

    def _details(self, remote: Remote, device: Device) -> tuple[dict[str, str], Action]:
        """What polkit's rules are told of an attach, and which action it is."""
        try:
            summary: Summary = summarize(device.descriptors)
        except BadDescriptors:
            raise UsbipError(
                Code.DEVICE_FAILED,
                f"{remote.name} tells nonsense about {device.busid}; it is refused.",
            ) from None
        if (summary.vendor_id, summary.product_id) != (device.vendor_id, device.product_id):
            raise UsbipError(
                Code.DEVICE_CHANGED,
                f"{remote.name} contradicts itself about {device.busid}; it is refused.",
            )
        details = {
            "remote": remote.name,
            "busid": device.busid,
            "device.vendor-id": f"{device.vendor_id:04x}",
            "device.product-id": f"{device.product_id:04x}",
            "device.classes": " ".join(summary.classes),
            "device.name": self._ids.title(device.vendor_id, device.product_id),
        }
        return details, Action.ATTACH_INPUT if summary.can_type_or_network else Action.ATTACH

    async def detach(self, asking: Asking, attachment: Attachment) -> None:
        """Detach one device and wait until it was given back."""
        await self._may_detach(asking, attachment)
        await self.attachments.detach(attachment)

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
            if ((a.remote, a.device.busid) == (name, busid) if slash else a.local_busid == busid)
        ]
        if not found:
            where = f"of {name} " if slash else ""
            raise UsbipError(Code.NOT_ATTACHED, f"{busid} {where}is not attached here.")
        await self.detach(asking, found[0])
        return 1

    async def _detach_all(self, asking: Asking) -> int:
        """Everything of the caller's own, and of others what it may detach without a question."""
        mine = [
            a
            for a in self.attachments
            if a.owner_uid == asking.uid
            or await asking.may(Action.DETACH_OTHERS, {"remote": a.remote, "busid": a.device.busid})
        ]
        async with asyncio.TaskGroup() as group:
            for attachment in mine:
                group.create_task(self.attachments.detach(attachment))
        return len(mine)

    async def _may_detach(self, asking: Asking, attachment: Attachment) -> None:
        if attachment.owner_uid != asking.uid:
            details, _ = self._details(self.store.find(attachment.remote), attachment.device)
            await asking.require([Action.DETACH_OTHERS], details)

    async def unbind(self, asking: Asking, remote: str, pattern: str) -> list[str]:
        """Give exported devices back to their own drivers; return their bus ids."""
        parsed = Pattern.parse(pattern)
        if not remote:
            await asking.require([Action.UNBIND], {"remote": ""})
            exported = await self._exported(parsed, self._usb.devices(), "This machine")
            for device in exported:
                await self._exporter.unbind(device.busid)
            return [d.busid for d in exported]
        link = self._link(remote)
        unlisted = [] if link.remote.listed else [Action.USE_UNLISTED_REMOTE]
        actions = [*unlisted, Action.UNBIND]
        # Somebody else's attachment may be among what is found.
        others = any(
            a.remote == link.remote.name and a.owner_uid != asking.uid for a in self.attachments
        )
        await asking.require(actions, {"remote": link.remote.name}, more=others)
        async with link.use() as session:
            usb = RemoteUsb(session, link.remote.name)
            exported = await self._exported(parsed, await usb.devices(), link.remote.name)
            ours = {d.busid: self.attachments.at(link.remote.name, d.busid) for d in exported}
            for attachment in ours.values():
                if attachment is not None:
                    await self._may_detach(asking, attachment)
            for device in exported:
                attachment = ours[device.busid]
                if attachment is not None:
                    await self.attachments.detach(attachment)
                await usb.unbind(device.busid)
        return [d.busid for d in exported]

    async def _exported(
        self, pattern: Pattern, devices: Sequence[Device], where: str
    ) -> list[Device]:
        found = await self._select(pattern, devices)
        if not found and not pattern.any:
            raise UsbipError(
                Code.DEVICE_NOT_FOUND,
                f"{where} has no device that matches; list it to see what is there.",
            )
        return [d for d in found if d.exported]

    async def add_remote(self, asking: Asking, name: str, options: Mapping[str, object]) -> Remote:
        """List a remote."""
        await asking.require([Action.MANAGE_REMOTES], {"remote": name})
        remote = self.store.add(name, options)
        log.info("uid %d added the remote %s at %s", asking.uid, name, remote.address)
        return remote

    async def remove_remote(self, asking: Asking, name: str) -> None:
        """Detach what a remote holds, and forget it."""
        await asking.require([Action.MANAGE_REMOTES], {"remote": name})
        self.store.check_removable(name)
        async with asyncio.TaskGroup() as group:
            for attachment in self.attachments:
                if attachment.remote == name:
                    group.create_task(self.attachments.detach(attachment))
        await self.links.drop(name)
        self.store.remove(name)
        log.info("uid %d removed the remote %s", asking.uid, name)

    async def trust_host_key(self, asking: Asking, name: str, wanted: str) -> None:
        """Pin a listed remote's host key, if it presents exactly this one now."""
        check_fingerprint(wanted)
        remote = self.store.listed(name)
        await asking.require([Action.MANAGE_REMOTES], {"remote": name})
        key = await fetch_host_key(self._launcher, remote, wanted)
        try:
            offered = fingerprint(key)
        except ValueError:
            raise UsbipError(
                Code.FAILED, f"{name} presented something that is no host key."
            ) from None
        if offered != wanted:
            raise UsbipError(
                Code.HOST_KEY_MISMATCH,
                f"{name} presents the host key {offered}, not the one given; nothing was trusted.",
            )
        self.store.pin(name, key)
        log.info("uid %d trusts the host key %s of %s", asking.uid, wanted, name)
        self.links.to(remote).forget_trouble()

    def _link(self, remote: str) -> Link:
        return self.links.to(self.store.find(remote))

    async def _select(self, pattern: Pattern, devices: Sequence[Device]) -> list[Device]:
        return await self._matcher.select(pattern, [self._ids.named(d) for d in devices])

    def _listed(self, remote: str, device: Device) -> Listed:
        attachment = self.attachments.at(remote, device.busid) if remote else None
        if not remote:
            for other in self.attachments:
                if other.local_busid == device.busid:
                    return Listed(device, "attached", other.number)
        if attachment is not None and attachment.state is State.ATTACHED:
            return Listed(device, "attached", attachment.number)
        return Listed(device, "exported" if device.exported else "available")


def _to_connect(remote: Remote) -> list[Action]:
    """What has to be granted before a connection is made."""
    return [Action.LIST] if remote.listed else [Action.USE_UNLISTED_REMOTE, Action.LIST]


def _names(devices: Sequence[Device]) -> str:
    more = ", …" if len(devices) > MAX_NAMED else ""
    return ", ".join(d.busid for d in devices[:MAX_NAMED]) + more
