# SPDX-License-Identifier: GPL-3.0-or-later
"""Turns a session's socket into a device of this machine, if it is the one that was approved."""

from __future__ import annotations

import asyncio
import logging
import os
import re
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
from usbipsshd.vhci import ERROR, FREE, USED, Port, Vhci

log = logging.getLogger(__name__)

APPEAR_SECONDS = 15.0
"""For a device to enumerate; over a slow link each descriptor costs a round trip."""
BIND_SECONDS = 6.0
"""For its drivers to bind and its nodes to appear, once it is authorized."""
LOOK_SECONDS = 0.25
"""How often to look when no notice comes."""

_HAS_NODES = frozenset({0x03, 0x08})
_GENERIC = re.compile(r"sg\d+").fullmatch


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
        self._ports: dict[int, int] = {}
        self._approved: dict[int, bytes] = {}

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
        # Noted for as long as it is held, and a little longer.
        noted = self._taken_ports.noted((p.number for p in same_bus), approved.devid)
        with noted, self._hold.holding(bus, self._local_busids):
            port = self.vhci.attach(same_bus, fd, approved.devid, approved.speed)
            self._ports[port.number] = approved.devid
            imported = Imported(port.number, approved.devid, "")
            taken(imported)
            try:
                busid = await self._appeared(port, approved)
                imported = Imported(port.number, approved.devid, busid)
                self._hold.claim(busid)
                taken(imported)
                if self.usb.descriptors(busid) != approved.descriptors:
                    log.warning(
                        "%s on port %d is not the device that was approved", busid, port.number
                    )
                    raise UsbipError(
                        Code.DEVICE_CHANGED,
                        "The device that arrived is not the one that was approved; "
                        "it was let go before any driver saw it.",
                    )
                self._approved[port.number] = approved.descriptors
                if self._hold.blocked_by_policy(bus):
                    log.info("%s: this machine's USB authorization policy decides", busid)
                else:
                    self._authorize(busid)
                self._hold.pass_others(bus, self._local_busids())
                await self._usable(port, approved, busid)
            except BaseException:
                # While new devices are still held: no driver may see what was not approved.
                self.detach(imported)
                raise
        return imported

    def _authorize(self, busid: str) -> None:
        try:
            self._hold.authorize(busid)
        except OSError as error:
            raise UsbipError(
                Code.DEVICE_FAILED, f"This machine could not start the device: {error.strerror}."
            ) from None

    def _local_busids(self) -> set[str]:
        mine = (self.vhci.port(n) for n in self._ports)
        return {p.local_busid for p in mine if p is not None}

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
        """Wait until drivers have bound as far as they will.

        A driver that is missing here is no failure: the device may be used without one.
        """
        wanted = {i.number for i in approved.interfaces if i.nodes or i.class_ in _HAS_NODES}
        deadline = monotonic() + BIND_SECONDS
        while monotonic() < deadline:
            now = self.vhci.port(port.number)
            if now is None or now.state == FREE or now.local_busid != busid:
                raise self._vanished()
            if (error := self.changed(Imported(port.number, approved.devid, busid))) is not None:
                raise error
            device = self.usb.device(busid)
            interfaces = device.interfaces if device is not None else ()
            # A disk's generic node is there first, its own only once the disk was looked at.
            have = {i.number for i in interfaces if any(not _GENERIC(n) for n in i.nodes)}
            # What was told of the device may lack one: its driver was just being changed there.
            here = {i.number for i in interfaces if i.class_ in _HAS_NODES}
            if interfaces and wanted | here <= have:
                return
            await self._events.wait(LOOK_SECONDS)

    def take_over(self, imported: Imported) -> bool:
        """Own a port that an earlier process attached; whether the device is still there."""
        present = self.present(imported)
        if present:
            self._ports[imported.port] = imported.devid
        return present

    def detach(self, imported: Imported) -> None:
        """Free the port, unless it is no longer ours; the device is about to vanish from here."""
        self._approved.pop(imported.port, None)
        if self._ports.pop(imported.port, None) is None:
            return
        port = self.vhci.port(imported.port)
        if port is not None and (port.state == ERROR or _is(port, imported.devid)):
            if port.local_busid:
                # Its folder outlives its port for a moment, and must not be let through then.
                self._hold.claim(port.local_busid)
            self.vhci.detach(imported.port)

    def present(self, imported: Imported) -> bool:
        """Whether the device is still on its port."""
        port = self.vhci.port(imported.port)
        if port is None or not _is(port, imported.devid):
            return False
        known = imported.local_busid and port.state == USED
        return not known or port.local_busid == imported.local_busid

    def changed(self, imported: Imported) -> UsbipError | None:
        """DeviceChanged when the device has become another one since it was authorized.

        The kernel asks for the device descriptor again as it authorizes (usb_authorize_device in
        drivers/usb/core/hub.c), and for all of them after a reset; what says something else
        then is started anew, on the same port.
        """
        approved = self._approved.get(imported.port)
        now = self.usb.descriptors(imported.local_busid) if imported.local_busid else b""
        if approved is None or not now or now == approved:
            return None
        log.warning("%s became another device: it is let go", imported.local_busid)
        return UsbipError(
            Code.DEVICE_CHANGED,
            "The device became another one than was approved while it was attached; it was let go.",
        )

    async def gone(self, imported: Imported, seconds: float) -> None:
        """Wait until the port is free again and the device gone, ``seconds`` at most."""
        busid = imported.local_busid
        try:
            async with asyncio.timeout(seconds):
                while self.present(imported) or (busid and self.usb.path(busid).exists()):
                    await self._events.wait(LOOK_SECONDS)
            self._hold.forget(busid)
        except TimeoutError:
            log.warning("port %d is slow to come free", imported.port)

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
        device = self.usb.device(busid)
        found = {n for i in device.interfaces for n in i.nodes} if device is not None else set()
        return sorted("/dev/" + n for n in found if not n.startswith("net/"))
