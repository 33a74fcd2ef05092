# SPDX-License-Identifier: GPL-3.0-or-later
"""Turns a session's socket into a device of this machine, if it is the one that was approved."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import monotonic

from usbipsshd.device import Device
from usbipsshd.errors import Code, UsbipError
from usbipsshd.hold import Hold
from usbipsshd.localusb import LocalUsb, read_text
from usbipsshd.sysfs import write
from usbipsshd.takenports import TakenPorts
from usbipsshd.udev import Events
from usbipsshd.usable import UDEV_SECONDS, nodes_of, patience
from usbipsshd.vhci import ERROR, FREE, USED, Port, Vhci

log = logging.getLogger(__name__)

APPEAR_SECONDS = 15.0
"""For a device to enumerate; over a slow link each descriptor costs a round trip."""
LOOK_SECONDS = 0.25
"""How often to look when no notice comes."""

_ARRIVED = (
    "The device that arrived is not the one that was approved; "
    "it was let go before any driver saw it."
)
_BECAME = "The device became another one than was approved while it was attached; it was let go."


@dataclass(slots=True)
class _Mine:
    """A port that is ours, until its device has gone."""

    devid: int
    bus: str
    """The root hub's name (``usb4``)."""
    busid: str
    """What is plugged in there is called so."""
    approved: bytes = b""
    """The descriptors that were approved; empty before they were compared, and at the end."""
    devnum: str = ""
    """The number of the device that was authorized: a reset may make a new one of it."""
    leaving: bool = False
    """Whether it was detached."""


@dataclass(frozen=True, slots=True)
class Imported:
    """A device on a port of vhci."""

    port: int
    devid: int
    local_busid: str


def check_socket(fd: int) -> None:
    """Raise :exc:`UsbipError` unless ``fd`` is what vhci may have: a connected stream socket."""
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            raise OSError
        with socket.socket(fileno=os.dup(fd)) as sock:
            listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM or listening:
                raise OSError
            sock.getpeername()
    except OSError:
        raise UsbipError(
            Code.FAILED, "The session handed over something that is no connection; see the log."
        ) from None


def _is(port: Port, devid: int) -> bool:
    """Whether a port has, or may be getting, the device: which one it is shows only in USED."""
    return port.state not in (FREE, ERROR) and (port.state != USED or port.devid == devid)


class Importer:
    """Attaches to and detaches from this machine's vhci."""

    def __init__(
        self,
        vhci: Vhci,
        usb: LocalUsb,
        hold: Hold,
        events: Events,
        modprobe: Callable[[str], Awaitable[bool]],
        *,
        taken_ports: TakenPorts,
    ) -> None:
        self.vhci = vhci
        self.usb = usb
        self._hold = hold
        self._events = events
        self._modprobe = modprobe
        self._taken_ports = taken_ports
        self._ports: dict[int, _Mine] = {}

    async def prepare(self, speed: float) -> None:
        """Make sure that a device of ``speed`` Mbit/s could be attached.

        Raises :exc:`UsbipError` (ModuleUnavailable, NoFreePort, DeviceFailed).
        """
        if not self.vhci.available and not (
            await self._modprobe("vhci-hcd") and self.vhci.available
        ):
            raise UsbipError(
                Code.MODULE_UNAVAILABLE,
                f"This machine has no kernel module vhci-hcd for {os.uname().release}; install "
                "the kernel's modules package (Ubuntu: linux-modules-extra, Fedora: "
                "kernel-modules-extra).",
            )
        self.vhci.candidates(speed)

    async def attach(
        self, fd: int, approved: Device, taken: Callable[[Imported], None]
    ) -> Imported:
        """Attach the device behind socket ``fd`` and wait until it is usable here.

        ``taken`` is called as soon as a port is: the caller then owns it and ends it with
        :meth:`detach`; when this raises it was detached. Its drivers bind only if its
        descriptors are those of ``approved``. Raises :exc:`UsbipError` (DeviceChanged,
        DeviceFailed, NoFreePort, TimedOut).
        """
        check_socket(fd)
        ports = self.vhci.candidates(approved.speed)
        bus = self.vhci.bus(ports[0])
        if bus is None:
            raise UsbipError(Code.DEVICE_FAILED, "This machine's virtual USB bus has no root hub.")
        same_bus = [p for p in ports if p.controller == ports[0].controller]
        try:
            self._hold.hold(bus.name)
            with self._taken_ports.taking((p.number for p in same_bus), approved.devid):
                port = self.vhci.attach(same_bus, fd, approved.devid, approved.speed)
                mine = self._own(port, approved.devid)
        except BaseException:
            self.settle()
            raise
        imported = Imported(port.number, approved.devid, "")
        taken(imported)
        try:
            busid = await self._appeared(port, approved)
            imported = Imported(port.number, approved.devid, busid)
            taken(imported)
            mine.approved = approved.descriptors
            if (error := self.changed(imported)) is not None:
                raise error
            self.settle()
            await self._usable(port, approved, busid)
        except BaseException:
            self.detach(imported)
            raise
        return imported

    def _own(self, port: Port, devid: int) -> _Mine:
        bus = self.vhci.bus(port)
        mine = _Mine(devid, bus.name if bus is not None else "", self.vhci.busid(port))
        self._ports[port.number] = mine
        self._taken_ports.own(port.number, devid)
        return mine

    def recover(self) -> None:
        """Know what was an earlier process's, and hold it; see :meth:`give_up_rest`."""
        self._hold.recover()
        for number, devid in self._taken_ports.recover().items():
            port = self.vhci.port(number)
            if port is None or not (port.state == ERROR or _is(port, devid)):
                self._taken_ports.forget(number)
                continue
            self._own(port, devid)
            with contextlib.suppress(UsbipError):
                self._hold.hold(self._ports[number].bus)

    def give_up_rest(self) -> None:
        """Detach what :meth:`recover` found and nobody has taken over; then :meth:`settle`."""
        for number, mine in self._ports.items():
            if not mine.approved and not mine.leaving:
                log.warning("port %d was being taken when usbipsshd ended: freed", number)
                self.detach(Imported(number, mine.devid, ""))
        self.settle()

    def all_left(self) -> bool:
        """:meth:`settle` where there is nobody to detach anything; whether nothing of ours is left.

        Ports that :meth:`recover` found are ours until their devices have gone by themselves.
        """
        for mine in self._ports.values():
            mine.leaving = True
        self.settle()
        return not self._ports

    def settle(self) -> None:
        """Let go of ports and buses that are ours no more, and let other programs' devices through.

        To be called whenever something has changed on this machine.
        """
        there = {p.number: p for p in self.vhci.ports()} if self._ports else {}
        for number, mine in list(self._ports.items()):
            if mine.leaving and self._has_left(there.get(number), mine):
                del self._ports[number]
                self._taken_ports.forget(number)
        ours: dict[str, set[str]] = {}
        for number, mine in self._ports.items():
            ours.setdefault(mine.bus, set()).add(mine.busid)
            if (port := there.get(number)) is not None and port.local_busid:
                ours[mine.bus].add(port.local_busid)
        self._hold.settle(ours)

    def _has_left(self, port: Port | None, mine: _Mine) -> bool:
        if port is not None and (port.state == ERROR or _is(port, mine.devid)):
            return False
        # A device's folder outlives its port for a moment, and must not be let through then.
        another = port is not None and port.state == USED
        return another or not self.usb.path(mine.busid).exists()

    def _authorize(self, mine: _Mine, busid: str) -> bool:
        """Start what is there, unless it was started already; whether it is what was approved."""
        devnum = read_text(self.usb.path(busid) / "devnum")
        if devnum == mine.devnum:
            return True
        if self._hold.blocked_by_policy(mine.bus):
            log.info("%s: this machine's USB authorization policy decides", busid)
        else:
            try:
                if not self._hold.authorize(busid, mine.approved):
                    return False
            except FileNotFoundError:
                # It has just gone; whether another one came, the next notice tells.
                return True
            except OSError as error:
                raise UsbipError(
                    Code.DEVICE_FAILED,
                    f"This machine could not start the device: {error.strerror}.",
                ) from None
        mine.devnum = devnum
        return True

    async def _appeared(self, port: Port, approved: Device) -> str:
        """Wait until the device has enumerated; return its bus id here."""
        deadline = monotonic() + APPEAR_SECONDS
        while monotonic() < deadline:
            now = self.vhci.port(port.number)
            if now is None or not _is(now, approved.devid):
                raise self._vanished()
            busid = now.local_busid
            if busid and self.usb.descriptors(busid) and self.usb.device(busid) is not None:
                return busid
            await self._events.wait(LOOK_SECONDS)
        raise UsbipError(
            Code.TIMED_OUT,
            "The device did not answer this machine in time; unplug it, plug it in again, "
            "and try again.",
        )

    @staticmethod
    def _vanished() -> UsbipError:
        return UsbipError(
            Code.DEVICE_FAILED,
            "The device went away while this machine was starting it; try again.",
        )

    async def _usable(self, port: Port, approved: Device, busid: str) -> None:
        """Wait until drivers have bound as far as they will, and udev is done with the nodes.

        A driver that is missing here is no failure: the device may be used without one.
        """
        begun = monotonic()
        while True:
            now = self.vhci.port(port.number)
            if now is None or now.state == FREE or now.local_busid != busid:
                raise self._vanished()
            if (error := self.changed(Imported(port.number, approved.devid, busid))) is not None:
                raise error
            seconds = patience(approved, self.usb.device(busid))
            if not seconds and not self.usb.known_to_udev(busid):
                seconds = UDEV_SECONDS
            if monotonic() - begun >= seconds:
                return
            await self._events.wait(LOOK_SECONDS)

    def take_over(self, imported: Imported, approved: Device) -> bool:
        """Own a port that an earlier process attached; whether the device is still there."""
        port = self.vhci.port(imported.port)
        if port is None or not self.present(imported):
            return False
        mine = self._own(port, imported.devid)
        mine.approved = approved.descriptors
        folder = self.usb.path(imported.local_busid)
        if read_text(folder / "authorized") == "1":
            mine.devnum = read_text(folder / "devnum")
        try:
            self._hold.hold(mine.bus)
        except UsbipError as error:
            log.warning("%s: %s", mine.bus, error.message)
        return True

    def detach(self, imported: Imported) -> None:
        """Free the port, unless it is no longer ours; the device is about to vanish from here."""
        mine = self._ports.get(imported.port)
        if mine is None or mine.leaving:
            return
        mine.leaving, mine.approved = True, b""
        port = self.vhci.port(imported.port)
        if port is not None and (port.state == ERROR or _is(port, imported.devid)):
            self.vhci.detach(imported.port)

    def present(self, imported: Imported) -> bool:
        """Whether the device is still on its port."""
        port = self.vhci.port(imported.port)
        if port is None or not _is(port, imported.devid):
            return False
        known = imported.local_busid and port.state == USED
        return not known or port.local_busid == imported.local_busid

    def changed(self, imported: Imported) -> UsbipError | None:
        """DeviceChanged when there is another device on the port than was approved.

        The kernel asks for all descriptors again at each reset (usb_reset_and_verify_device in
        drivers/usb/core/hub.c); a device that says something else then, or does not answer, is a
        new one, on the same port, held like any other. One that is the same is started again.
        """
        mine = self._ports.get(imported.port)
        busid = imported.local_busid
        now = self.usb.descriptors(busid) if busid else b""
        if mine is None or not mine.approved or not now:
            return None
        try:
            if now == mine.approved and self._authorize(mine, busid):
                return None
        except UsbipError as error:
            return error
        log.warning("%s on port %d is not the device that was approved", busid, imported.port)
        return UsbipError(Code.DEVICE_CHANGED, _BECAME if mine.devnum else _ARRIVED)

    async def gone(self, imported: Imported, seconds: float) -> None:
        """Wait until the port is free again and the device gone, ``seconds`` at most."""
        busid = imported.local_busid
        try:
            async with asyncio.timeout(seconds):
                while self.present(imported) or (busid and self.usb.path(busid).exists()):
                    await self._events.wait(LOOK_SECONDS)
        except TimeoutError:
            log.warning("port %d is slow to come free", imported.port)
        self.settle()

    def keep_awake(self, busid: str) -> None:
        """Keep the device from being suspended here, which udev may have asked for.

        USB/IP carries no remote wakeup: a keyboard that was put to sleep would stay dead
        (hwdb's 60-autosuspend.hwdb lists many; udev's rule sets it after each "add").
        """
        control = self.usb.path(busid) / "power/control"
        if read_text(control) == "auto":
            try:
                write(control, "on")
            except OSError as error:
                log.debug("%s: cannot be kept awake: %s", busid, error)

    def nodes(self, busid: str) -> list[str]:
        """The device's nodes now, as paths (``/dev/sda``); network interfaces have none."""
        return nodes_of(self.usb.device(busid))
