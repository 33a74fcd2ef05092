# SPDX-License-Identifier: GPL-3.0-or-later
"""What Export does: the one matching device of this machine goes to a remote."""

from __future__ import annotations

from usbipsshd.attachment import Attachment, Direction
from usbipsshd.authority import Action
from usbipsshd.chooser import Chooser, changed
from usbipsshd.device import Device
from usbipsshd.exporting import LocalDevices
from usbipsshd.here import MACHINE
from usbipsshd.links import PassedAgent
from usbipsshd.localusb import LocalUsb
from usbipsshd.pattern import Pattern
from usbipsshd.service import Asking, AttachOptions, Service, no_agent_later


class Lending:
    """The work of Export."""

    def __init__(self, service: Service, usb: LocalUsb, chooser: Chooser) -> None:
        self._service = service
        self._usb = usb
        self._chooser = chooser

    async def export(
        self,
        asking: Asking,
        remote: str,
        pattern: str,
        options: AttachOptions,
        agent: PassedAgent | None = None,
    ) -> Attachment:
        """Attach the one device of this machine that matches to ``remote``; return when it is
        usable there.

        The device is known before anything is asked, and nothing is connected before the answer.
        """
        service = self._service
        parsed = Pattern.parse(pattern)
        if agent is not None and options.persist:
            raise no_agent_later()
        found = service.store.find(remote)
        device = await self._chooser.one(LocalDevices(self._usb), MACHINE, parsed, self._is_free)
        if not options.expects(device):
            raise changed(MACHINE, device)
        about, summary = service.details_of(found.name, device, MACHINE)
        actions = [
            *([] if found.listed else [Action.USE_UNLISTED_REMOTE]),
            *([Action.MANAGE_REMOTES] if options.persist else []),
            Action.EXPORT,
        ]
        await asking.require(actions, about)
        await service.attachments.awake()
        with service.kept(found, agent) as link:
            attachment = Attachment(
                service.attachments.number(),
                found.name,
                pattern,
                device,
                asking.uid,
                rebind=options.rebind,
                unmount=options.unmount,
                keep=options.keep or options.persist,
                persist=options.persist,
                input_allowed=await service.drivers.can_type_or_network(summary),
                private=link.private,
                bound_to=options.bound_to,
                direction=Direction.EXPORT,
                local_busid=device.busid,
            )
            await service.begin(link, attachment)
        return attachment

    def _is_free(self, device: Device) -> bool:
        return self._service.attachments.lent(device.busid) is None
