# SPDX-License-Identifier: GPL-3.0-or-later
"""Gives exported devices that match back to their own drivers, there or here."""

from __future__ import annotations

from collections.abc import Sequence

from usbipsshd.authority import Action, details
from usbipsshd.chooser import Chooser
from usbipsshd.device import Device
from usbipsshd.errors import Code, UsbipError
from usbipsshd.exporter import LocalExporter
from usbipsshd.links import PassedAgent
from usbipsshd.localusb import LocalUsb
from usbipsshd.pattern import Pattern
from usbipsshd.remoteusb import RemoteUsb
from usbipsshd.service import Asking, Service


class Unbinding:
    """The work of Unbind."""

    def __init__(
        self, service: Service, usb: LocalUsb, chooser: Chooser, exporter: LocalExporter
    ) -> None:
        self._service = service
        self._usb = usb
        self._chooser = chooser
        self._exporter = exporter

    async def unbind(
        self, asking: Asking, remote: str, pattern: str, agent: PassedAgent | None = None
    ) -> list[str]:
        """Give exported devices back to their own drivers; return their bus ids."""
        parsed = Pattern.parse(pattern)
        attachments = self._service.attachments
        if not remote:
            others = self._service.others_hold("", asking.uid)
            await asking.require([Action.UNBIND], details(""), more=others)
            exported = await self._exported(parsed, self._usb.devices(), "This machine")
            lent = [a for a in map(attachments.lent, (d.busid for d in exported)) if a]
            for export in lent:
                await self._service.may_detach(asking, export)
            for export in lent:
                # Its own driver is what this is about, whatever Export was told.
                export.rebind = True
                await attachments.detach(export, asking.uid)
            for device in exported:
                if all(device.busid != export.device.busid for export in lent):
                    await self._exporter.unbind(device.busid)
            return [d.busid for d in exported]
        found = self._service.store.find(remote)
        name = found.name
        unlisted = [] if found.listed else [Action.USE_UNLISTED_REMOTE]
        actions = [*unlisted, Action.UNBIND]
        # Somebody else's attachment may be among what is found.
        others = self._service.others_hold(name, asking.uid)
        await asking.require(actions, details(name), more=others)
        with self._service.kept(found, agent) as link:
            async with link.use() as session:
                usb = RemoteUsb(session, name)
                exported = await self._exported(parsed, await usb.devices(), name)
                ours = await self._service.may_take(asking, name, exported)
                for device in exported:
                    attachment = ours[device.busid]
                    if attachment is not None:
                        self._service.hubs.leave_alone(attachment)
                        await attachments.detach(attachment, asking.uid)
                    await usb.unbind(device.busid)
        return [d.busid for d in exported]

    async def _exported(
        self, pattern: Pattern, devices: Sequence[Device], where: str
    ) -> list[Device]:
        found = await self._chooser.select(pattern, devices)
        if not found and not pattern.any:
            raise UsbipError(
                Code.DEVICE_NOT_FOUND,
                f"{where} has no device that matches; list it to see what is there.",
            )
        return [d for d in found if d.exported]
