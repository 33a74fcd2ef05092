# SPDX-License-Identifier: GPL-3.0-or-later
"""What Export does: the one matching device of this machine goes to a remote."""

from __future__ import annotations

from collections.abc import Callable

from usbipsshd.attachment import Attachment, Direction
from usbipsshd.attachments import Attachments
from usbipsshd.authority import Action, details
from usbipsshd.chooser import Chooser, changed, summary_of
from usbipsshd.device import Device
from usbipsshd.exporting import LocalDevices
from usbipsshd.here import MACHINE
from usbipsshd.links import Links, PassedAgent
from usbipsshd.localusb import LocalUsb
from usbipsshd.pattern import Pattern
from usbipsshd.remotes import RemoteStore
from usbipsshd.service import Asking, AttachOptions, cannot_keep, no_agent_later
from usbipsshd.usbids import UsbIds


class Lending:
    """Beside :class:`usbipsshd.service.Service`, for the other direction."""

    def __init__(
        self,
        *,
        store: RemoteStore,
        links: Links,
        attachments: Attachments,
        usb: LocalUsb,
        ids: UsbIds,
        chooser: Chooser,
        keep: Callable[[], bool],
    ) -> None:
        self._store = store
        self._links = links
        self._attachments = attachments
        self._usb = usb
        self._ids = ids
        self._chooser = chooser
        self._keep = keep

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
        parsed = Pattern.parse(pattern)
        if agent is not None and options.persist:
            raise no_agent_later()
        found = self._store.find(remote)
        device = await self._chooser.one(LocalDevices(self._usb), MACHINE, parsed, self._is_free)
        if not _expected(device, options):
            raise changed(MACHINE, device)
        summary_of(MACHINE, device)
        actions = [
            *([] if found.listed else [Action.USE_UNLISTED_REMOTE]),
            *([Action.MANAGE_REMOTES] if options.persist else []),
            Action.EXPORT,
        ]
        title = self._ids.title(device.vendor_id, device.product_id)
        await asking.require(actions, details(found.name, device, title))
        await self._attachments.awake()
        with self._links.kept(found, agent) as link:
            attachment = Attachment(
                self._attachments.number(),
                found.name,
                pattern,
                device,
                asking.uid,
                rebind=options.rebind,
                unmount=options.unmount,
                keep=options.keep or options.persist,
                persist=options.persist,
                private=link.private,
                bound_to=options.bound_to,
                direction=Direction.EXPORT,
                local_busid=device.busid,
            )
            self._attachments.begin(link, attachment)
            if options.persist and not self._keep():
                await self._attachments.detach(attachment, asking.uid)
                raise cannot_keep()
            # By then the attachment itself keeps the link.
            await self._attachments.usable(attachment)
        return attachment

    def _is_free(self, device: Device) -> bool:
        return self._attachments.lent(device.busid) is None


def _expected(device: Device, options: AttachOptions) -> bool:
    return options.expect_vendor_id in (None, device.vendor_id) and (
        options.expect_product_id in (None, device.product_id)
    )
