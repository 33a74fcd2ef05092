# SPDX-License-Identifier: GPL-3.0-or-later
"""Resets of devices that match, there or here, attached or not."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from usbipsshd.attachment import Attachment
from usbipsshd.authority import Action, details
from usbipsshd.chooser import Chooser, attachable
from usbipsshd.device import Device
from usbipsshd.errors import Code, UsbipError
from usbipsshd.links import PassedAgent
from usbipsshd.localusb import LocalUsb
from usbipsshd.pattern import Pattern
from usbipsshd.remoteusb import RemoteUsb
from usbipsshd.resetter import LocalResetter
from usbipsshd.service import Asking, Service

log = logging.getLogger(__name__)


class Resets:
    """The work of Reset."""

    def __init__(
        self, service: Service, usb: LocalUsb, chooser: Chooser, local: LocalResetter
    ) -> None:
        self._service = service
        self._usb = usb
        self._chooser = chooser
        self._local = local

    async def reset(
        self, asking: Asking, remote: str, pattern: str, agent: PassedAgent | None = None
    ) -> list[str]:
        """Reset the devices that match; return their bus ids. The remote "" is this machine.

        What is attached here is given back for that time, and is back when this returns. Raises
        :exc:`UsbipError` for the first that cannot be reset.
        """
        parsed = Pattern.parse(pattern)
        if not remote:
            others = self._service.others_hold("", asking.uid)
            await asking.require([Action.RESET], details(""), more=others)
            devices = await self._select(parsed, self._usb.devices(), "This machine")
            lent = {d.busid: self._service.attachments.lent(d.busid) for d in devices}
            for attachment in lent.values():
                if attachment is not None:
                    await self._service.may_detach(asking, attachment)
            for device in devices:
                attachment = lent[device.busid]
                if attachment is None:
                    await self._local.reset(device)
                    continue
                async with self._service.attachments.paused(attachment):
                    await self._local.reset(device)
        else:
            devices = await self._reset_there(asking, remote, parsed, agent)
        busids = [device.busid for device in devices]
        log.info("uid %d reset %s of %s", asking.uid, " ".join(busids), remote or "this machine")
        return busids

    async def _reset_there(
        self, asking: Asking, remote: str, pattern: Pattern, agent: PassedAgent | None
    ) -> list[Device]:
        service = self._service
        found = service.store.find(remote)
        name = found.name
        unlisted = [] if found.listed else [Action.USE_UNLISTED_REMOTE]
        # Somebody else's attachment may be among what is found.
        others = service.others_hold(name, asking.uid)
        await asking.require([*unlisted, Action.RESET], details(name), more=others)
        with service.kept(found, agent) as link:
            async with link.use() as session:
                usb = RemoteUsb(session, name)
                devices = await self._select(pattern, await usb.devices(), name)
                attached = await service.may_take(asking, name, devices)
                for device in devices:
                    await self._reset_one(usb, device, attached[device.busid])
        return devices

    async def _reset_one(
        self, usb: RemoteUsb, device: Device, attachment: Attachment | None
    ) -> None:
        if attachment is None:
            await usb.reset(device)
            return
        async with self._service.attachments.paused(attachment):
            await usb.reset(device)

    async def _select(
        self, pattern: Pattern, devices: Sequence[Device], where: str
    ) -> list[Device]:
        found = await self._chooser.select(pattern, devices)
        fit = [device for device in found if attachable(device)]
        if not fit:
            why = "no device that matches"
            if found:
                why = "only hubs and devices attached from elsewhere that match"
            raise UsbipError(
                Code.DEVICE_NOT_FOUND, f"{where} has {why}; list it to see what is there."
            )
        return fit
