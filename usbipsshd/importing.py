# SPDX-License-Identifier: GPL-3.0-or-later
"""Brings a remote's device to this machine, and gives it back."""

from __future__ import annotations

import logging
import os

from usbipsshd.attachment import Attachment
from usbipsshd.chooser import Chooser, changed, no_more_than, same_device, summary_of
from usbipsshd.control import Session
from usbipsshd.device import Device
from usbipsshd.doing import Doing, Table, Where
from usbipsshd.drivers import Drivers
from usbipsshd.errors import Code, UsbipError
from usbipsshd.importer import Imported, Importer
from usbipsshd.link import Link
from usbipsshd.pattern import Pattern
from usbipsshd.remoteusb import RemoteUsb

log = logging.getLogger(__name__)

PORT_FREE_SECONDS = 10.0
"""For the port to come free, which Detach promises, also where the machine stalls for a while."""


class Importing(Doing):
    """See :class:`usbipsshd.doing.Doing`."""

    def __init__(
        self,
        attachment: Attachment,
        table: Table,
        *,
        importer: Importer,
        chooser: Chooser,
        drivers: Drivers,
    ) -> None:
        super().__init__(attachment, table)
        self._importer = importer
        self._chooser = chooser
        self._drivers = drivers
        self._imported: Imported | None = None

    async def attach(self, link: Link, *, again: bool) -> str:
        """See :meth:`Doing.attach`."""
        attachment = self.attachment
        async with link.use() as session:
            usb = RemoteUsb(session, attachment.remote)
            if again:
                found = await self._find_again(usb)
                # What was approved stays the limit, whatever took its place meanwhile.
                attachment.approved = attachment.approved or attachment.device
                attachment.device = found
            device = attachment.device
            await self._importer.prepare(device.speed)
            self.session = session
            self.failed = (device.busid, device.devnum)
            fd = await self._export(usb)
        try:
            imported = await self._importer.attach(fd, device, self._taken)
        except UsbipError as error:
            # What the other end says of it tells more than "it went away".
            if error.code is Code.DEVICE_FAILED and self.ended.done():
                raise self.ended.result() from None
            raise
        finally:
            os.close(fd)
        self.failed = None
        self._importer.keep_awake(imported.local_busid)
        attachment.device_nodes = self._importer.nodes(imported.local_busid)
        return f"{device.busid} of {attachment.remote} as {imported.local_busid}"

    async def _export(self, usb: RemoteUsb) -> int:
        attachment, device = self.attachment, self.attachment.device
        try:
            return await usb.export(device, unmount=attachment.unmount, rebind=attachment.rebind)
        except UsbipError as error:
            if error.code is not Code.ALREADY_ATTACHED:
                raise
        # Left by a process before this one, that could not finish; nobody here uses it.
        await usb.release(device.busid, rebind=True)
        return await usb.export(device, unmount=attachment.unmount, rebind=attachment.rebind)

    async def _find_again(self, usb: RemoteUsb) -> Device:
        """The device that is meant now; raise :exc:`UsbipError` if it is not the approved one."""
        attachment = self.attachment

        def free(device: Device) -> bool:
            return self.table.at(attachment.remote, device.busid) in (None, attachment)

        pattern = Pattern.parse(attachment.pattern)
        device = await self._chooser.one(usb, attachment.remote, pattern, free)
        await check_approved(attachment, pattern, device, attachment.remote, self._drivers)
        if not free(device):
            raise UsbipError(
                Code.ALREADY_ATTACHED,
                f"{device.busid} of {attachment.remote} is attached here already.",
            )
        return device

    def _taken(self, imported: Imported) -> None:
        self.where = self._imported = imported
        self.attachment.port = imported.port
        self.attachment.local_busid = imported.local_busid
        self.table.changed(self.attachment)

    def take_over(self, where: Where) -> bool:
        """See :meth:`Doing.take_over`."""
        if not isinstance(where, Imported) or not self._importer.take_over(
            where, self.attachment.device
        ):
            return False
        attachment = self.attachment
        self.where = self._imported = where
        attachment.port, attachment.local_busid = where.port, where.local_busid
        attachment.device_nodes = self._importer.nodes(where.local_busid)
        return True

    def look(self) -> None:
        """See :meth:`Doing.look`."""
        attachment, imported = self.attachment, self._imported
        if imported is None or self.where is None:
            return
        if not self._importer.present(imported):
            self.end(
                UsbipError(
                    Code.DEVICE_FAILED,
                    "The device left this machine: it was unplugged from "
                    f"{attachment.remote}, or detached by another program.",
                )
            )
            return
        if (changed := self._importer.changed(imported)) is not None:
            self.end(changed)
            return
        self._importer.keep_awake(attachment.local_busid)
        nodes = self._importer.nodes(attachment.local_busid)
        if nodes != attachment.device_nodes:
            attachment.device_nodes = nodes
            self.table.changed(attachment)

    async def statistics(self) -> tuple[int, int]:
        """See :meth:`Doing.statistics`."""
        return await self._usb().statistics(self.attachment.device.busid)

    def _usb(self) -> RemoteUsb:
        if self.session is None:
            raise UsbipError(Code.NOT_ATTACHED, "The device is not attached at the moment.")
        return RemoteUsb(self.session, self.attachment.remote)

    async def undo(self, where: Where | None, session: Session | None) -> None:
        """This machine first: the exporter must see the connection end before it unbinds."""
        attachment = self.attachment
        imported, self._imported = self._imported, None
        if where is not None and imported is not None:
            self._importer.detach(imported)
            await self._importer.gone(imported, PORT_FREE_SECONDS)
        attachment.local_busid, attachment.port, attachment.device_nodes = "", 0, []
        self.table.changed(attachment)
        # Without its session the agent there is giving everything back by itself.
        if session is not None and not session.gone:
            usb = RemoteUsb(session, attachment.remote)
            try:
                await usb.release(attachment.device.busid, rebind=attachment.rebind)
            except UsbipError as error:
                # Lost in the middle of it: then, too, the agent does it by itself.
                if not session.gone:
                    log.warning(
                        "%s of %s: giving back failed: %s",
                        attachment.device.busid, attachment.remote, error,
                    )  # fmt: skip


async def check_approved(
    attachment: Attachment, pattern: Pattern, device: Device, machine: str, drivers: Drivers
) -> None:
    """Raise :exc:`UsbipError` (DeviceChanged) unless ``device`` may take the place of the one that
    was approved.
    """
    summary = summary_of(machine, device)
    approved = attachment.approved or attachment.device
    if pattern.busid and not pattern.negated:
        fits = same_device(approved, device)
    else:
        fits = no_more_than(approved, device, machine)
    if not fits:
        raise changed(machine, device)
    # Its drivers may have come to this machine since.
    if not attachment.input_allowed and await drivers.can_type_or_network(summary):
        raise UsbipError(
            Code.DEVICE_CHANGED,
            f"{device.busid} of {machine} can type or carry the network, which was not approved; "
            "choose it again.",
        )
