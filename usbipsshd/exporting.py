# SPDX-License-Identifier: GPL-3.0-or-later
"""Brings a device of this machine to a remote, and back.

The order is an import's, seen from the other end: usbip-host here has the device and its end of
the connection before the vhci there is given the other one; and the vhci there lets go before
usbip-host here does, whose connection must have ended by then.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from dataclasses import replace
from time import monotonic

from usbipsshd.attachment import Attachment
from usbipsshd.chooser import Chooser
from usbipsshd.control import Session
from usbipsshd.device import Device
from usbipsshd.doing import Doing, Lent, Table, Where
from usbipsshd.drivers import Drivers
from usbipsshd.errors import Code, UsbipError
from usbipsshd.exporter import IN_USE
from usbipsshd.here import MACHINE, Here
from usbipsshd.importing import check_approved
from usbipsshd.link import Link
from usbipsshd.localusb import LocalUsb, read_text
from usbipsshd.pattern import Pattern
from usbipsshd.remoteusb import RemoteUsb
from usbipsshd.sysfs import write
from usbipsshd.usable import nodes_of, patience
from usbipsshd.vhci import speed_code

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
"""How often to ask the remote whether its drivers have bound."""


class LocalDevices:
    """This machine's devices, to choose from as from a remote's."""

    def __init__(self, usb: LocalUsb) -> None:
        self._usb = usb

    async def devices(self) -> list[Device]:
        """Every device but the root hubs, in tree order."""
        return self._usb.devices()

    async def describe(self, busid: str) -> Device:
        """One device with its descriptors; raise :exc:`UsbipError` (DeviceNotFound)."""
        device = self._usb.device(busid, descriptors=True)
        if device is None:
            raise UsbipError(
                Code.DEVICE_NOT_FOUND,
                f"This machine has no device at {busid} now; list it to see what is there.",
            )
        return device


class Exporting(Doing):
    """See :class:`usbipsshd.doing.Doing`."""

    waits_for_remote = False

    def __init__(
        self,
        attachment: Attachment,
        table: Table,
        *,
        here: Here,
        usb: LocalUsb,
        chooser: Chooser,
        drivers: Drivers,
        group: asyncio.TaskGroup,
    ) -> None:
        super().__init__(attachment, table)
        self._here = here
        self._usb = usb
        self._chooser = chooser
        self._drivers = drivers
        self._group = group
        self._seen = self._plugs()
        self._looking = False
        self._look_again = False

    async def attach(self, link: Link, *, again: bool) -> str:
        """See :meth:`Doing.attach`."""
        attachment = self.attachment
        if again:
            await self._find_again()
        device = attachment.device
        speed = speed_code(device.speed)
        async with link.use() as session:
            usb = RemoteUsb(session, attachment.remote)
            # Nothing is unplugged here for a remote that cannot have it.
            await usb.ready(device.busid, speed)
            self.failed = (device.busid, device.devnum)
            if self._here.holds(device.busid):
                # Left by a process before this one, that could not finish.
                await self._here.release(device.busid, rebind=True)
            await self._here.bind(device, unmount=attachment.unmount)
            self.session = session
            there, port = await self._lend(usb, device, speed)
            self.where = Lent(device.busid, there, port)
            attachment.busid_there, attachment.port = there, port
            self.table.changed(attachment)
            await self._usable(usb, device)
        self.failed = None
        return f"{device.busid} to {attachment.remote} as {there}"

    async def _lend(self, usb: RemoteUsb, device: Device, speed: int) -> tuple[str, int]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with ours, theirs:
            try:
                write(self._usb.path(device.busid) / "usbip_sockfd", str(ours.fileno()))
            except OSError as error:
                raise UsbipError(
                    Code.DEVICE_FAILED,
                    f"This machine's kernel did not take the connection: {error.strerror}.",
                ) from None
            # The kernel has its own hold on it. Ours would keep it open for ever.
            ours.close()
            return await usb.lend(device, speed, theirs.fileno())

    async def _usable(self, usb: RemoteUsb, device: Device) -> None:
        """Wait until drivers there have bound as far as they will; one may be missing there."""
        begun = monotonic()
        while True:
            now = await usb.loan(device.busid)
            self._show(now)
            if monotonic() - begun >= patience(device, now):
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    error = await asyncio.shield(self.ended)
                    raise error

    def _show(self, there: Device) -> None:
        nodes = nodes_of(there)
        attachment = self.attachment
        if nodes != attachment.device_nodes and isinstance(self.where, Lent):
            self.where = replace(self.where, nodes=tuple(nodes))
            attachment.device_nodes = nodes
            self.table.changed(attachment)

    async def _find_again(self) -> None:
        """The device that is meant now; raise :exc:`UsbipError` if it is not the approved one."""
        attachment = self.attachment

        def free(device: Device) -> bool:
            return self.table.lent(device.busid) in (None, attachment)

        pattern = Pattern.parse(attachment.pattern)
        device = await self._chooser.one(LocalDevices(self._usb), MACHINE, pattern, free)
        await check_approved(attachment, pattern, device, MACHINE, self._drivers)
        if not free(device):
            raise UsbipError(
                Code.ALREADY_ATTACHED, f"{device.busid} of this machine is exported already."
            )
        attachment.approved = attachment.approved or attachment.device
        attachment.device = device
        attachment.local_busid = device.busid

    def take_over(self, where: Where) -> bool:
        """See :meth:`Doing.take_over`."""
        if not isinstance(where, Lent) or not self._present(where.busid):
            return False
        attachment = self.attachment
        self.where = where
        attachment.busid_there, attachment.port = where.there, where.port
        attachment.device_nodes = list(where.nodes)
        return True

    def _present(self, busid: str) -> bool:
        """Whether usbip-host has the very device, and somebody uses it."""
        device = self._usb.device(busid)
        same = device is not None and device.devnum == self.attachment.device.devnum
        status = read_text(self._usb.path(busid) / "usbip_status")
        return same and status == IN_USE and self._here.holds(busid)

    def look(self) -> None:
        """See :meth:`Doing.look`."""
        device = self._usb.device(self.attachment.device.busid)
        if device is None or device.devnum != self.attachment.device.devnum:
            self.end(UsbipError(Code.DEVICE_FAILED, "The device was unplugged from this machine."))
        elif not device.exported:
            self.end(
                UsbipError(
                    Code.DEVICE_FAILED, "Another program took the device back on this machine."
                )
            )

    def look_there(self) -> None:
        """See :meth:`Doing.look_there`."""
        if self._looking:
            self._look_again = True
        elif self.session is not None:
            self._looking = True
            name = f"look at {self.attachment.device.busid} there"
            self._group.create_task(self._look_there(self.session), name=name)

    async def _look_there(self, session: Session) -> None:
        usb = RemoteUsb(session, self.attachment.remote)
        self._look_again = True
        try:
            while self._look_again and self.session is session:
                self._look_again = False
                found = await usb.loan(self.attachment.device.busid)
                if self.session is session and self.where is not None:
                    self._show(found)
        except UsbipError as error:
            # That it has left is told by its connection.
            log.debug("%s: %s", self.attachment.device.busid, error)
        finally:
            self._looking = False

    def appeared_here(self) -> bool:
        """See :meth:`Doing.appeared_here`."""
        seen, self._seen = self._seen, self._plugs()
        if self.failed is None:
            return bool(self._seen - seen)
        if self.failed in self._seen:
            return False
        self.failed = None
        return True

    def _plugs(self) -> frozenset[tuple[str, int]]:
        return frozenset((d.busid, d.devnum) for d in self._usb.devices())

    async def statistics(self) -> tuple[int, int]:
        """See :meth:`Doing.statistics`."""
        if self.session is None:
            raise UsbipError(Code.NOT_ATTACHED, "The device is not attached at the moment.")
        usb = RemoteUsb(self.session, self.attachment.remote)
        return await usb.loan_statistics(self.attachment.device.busid)

    async def undo(self, where: Where | None, session: Session | None) -> None:
        """The remote first: this machine's kernel must see the connection end before it unbinds."""
        attachment = self.attachment
        busid = attachment.device.busid
        # Without its session the agent there frees the port by itself.
        if session is not None and not session.gone:
            try:
                await RemoteUsb(session, attachment.remote).take_back(busid)
            except UsbipError as error:
                if not session.gone:
                    log.warning("%s on %s: %s", busid, attachment.remote, error)
        attachment.busid_there, attachment.port, attachment.device_nodes = "", 0, []
        self.table.changed(attachment)
        try:
            await self._here.release(busid, rebind=attachment.rebind)
        except UsbipError as error:
            log.warning("%s: giving it back to this machine failed: %s", busid, error)
        self._seen = self._plugs()
