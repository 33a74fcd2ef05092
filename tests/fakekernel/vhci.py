# SPDX-License-Identifier: GPL-3.0-or-later
"""The importing side: vhci_hcd, as drivers/usb/usbip/vhci_sysfs.c behaves."""

from __future__ import annotations

import errno
import json
import socket
from dataclasses import dataclass
from typing import Any

from fakekernel.devices import FakeDevice, device_from_json
from fakekernel.machine import Bus, Machine, Plugged, fault
from fakekernel.wire import Wire, take_socket

FREE, ASSIGNED, USED, ERROR = 4, 5, 6, 7
SPEEDS = {1: "1.5", 2: "12", 3: "480", 5: "5000", 6: "10000"}


@dataclass
class Port:
    """One port of a virtual hub."""

    number: int
    hub: str
    bus: Bus
    rhport: int
    status: int = FREE
    speed: int = 0
    devid: int = 0
    sockfd: int = 0
    wire: Wire | None = None
    device: Plugged | None = None

    @property
    def local_busid(self) -> str:
        """The bus id of what is in it; ``0-0`` until it is in use."""
        return f"{self.bus.number}-{self.rhport + 1}" if self.status == USED else "0-0"


class Vhci:
    """All controllers and their files.

    ``layout`` is ``hub`` (4.13 and later: a hub column, high and super speed apart) or
    ``old`` (before: one pool).
    """

    def __init__(
        self, machine: Machine, layout: str = "hub", controllers: int = 2, ports: int = 8
    ) -> None:
        self._machine = machine
        self._layout = layout
        self._controllers = controllers
        self._per_hub = ports
        self.ports: list[Port] = []
        machine.loaders["vhci_hcd"] = self._load

    def _load(self) -> None:
        name = "vhci_hcd.0" if self._layout == "hub" else "vhci_hcd"
        base = f"/devices/platform/{name}"
        folder = self._machine.root.folder(base)
        number = max(self._machine.buses) + 1
        for controller in range(self._controllers):
            serial = f"vhci_hcd.{controller}"
            where = base if controller == 0 else f"/devices/platform/vhci_hcd.{controller}"
            first = len(self.ports)
            hubs = [("hs", "480"), ("ss", "5000")] if self._layout == "hub" else [("hs", "480")]
            for hub, speed in hubs:
                bus = self._machine.add_bus(number, where, speed, serial, virtual=True)
                number += 1
                for rhport in range(self._per_hub):
                    self.ports.append(Port(len(self.ports), hub, bus, rhport))
            last = len(self.ports)
            folder.attribute(
                "status" if controller == 0 else f"status.{controller}",
                lambda first=first, last=last: self._show(first, last),  # type: ignore[misc]
            )
        folder.attribute("nports", str(len(self.ports)))
        folder.control("attach", self._attach)
        folder.control("detach", self._detach)

    def _show(self, first: int, last: int) -> bytes:
        if self._layout == "hub":
            lines = ["hub port sta spd dev      sockfd local_busid"]
        else:
            lines = ["port sta spd dev      socket           local_busid"]
        for port in self.ports[first:last]:
            used = port.status == USED
            speed, devid = (port.speed, port.devid) if used else (0, 0)
            row = f"{port.number:04d} {port.status:03d} {speed:03d} {devid:08x} "
            if self._layout == "hub":
                row = f"{port.hub}  {row}{port.sockfd if used else 0:06d} "
            else:
                row += ("ffff8800c5a7bb80" if used else "0000000000000000") + " "
            lines.append(row + port.local_busid)
        return ("\n".join(lines) + "\n").encode()

    def _attach(self, data: bytes, pid: int) -> None:
        self._machine.passing("attach")
        try:
            number, sockfd, devid, speed = (int(n) for n in data.split()[:4])
        except ValueError:
            raise fault(errno.EINVAL) from None
        if not 0 <= number < len(self.ports) or speed not in SPEEDS:
            raise fault(errno.EINVAL)
        port = self.ports[number]
        if self._layout == "hub" and (port.hub == "ss") != (speed >= 5):
            raise fault(errno.EINVAL)
        try:
            sock = take_socket(pid, sockfd)
        except OSError:
            raise fault(errno.EINVAL) from None
        if sock.type != socket.SOCK_STREAM:
            sock.close()
            raise fault(errno.EINVAL)
        with self._machine.lock:
            if port.status != FREE:
                sock.close()
                raise fault(errno.EBUSY if self._layout == "hub" else errno.EINVAL)
            wire = Wire(sock, lambda w: self._arrived(port, w), lambda: self._ended(port, wire))
            port.status, port.wire = ASSIGNED, wire
            port.speed, port.devid, port.sockfd = speed, devid, sockfd
        wire.start()
        try:
            wire.send(b"describe\n")
        except OSError:
            wire.end()

    def _arrived(self, port: Port, wire: Wire) -> None:
        if port.device is not None:
            return
        line = wire.take_line()
        if line is None:
            return
        try:
            description = device_from_json(json.loads(line))
            self._machine.passing("enumerate")
        except (ValueError, TypeError, KeyError, OSError):
            wire.end()
            return
        with self._machine.lock:
            if port.wire is wire and not wire.closed:
                port.status = USED
                port.device = self._machine.plug(port.local_busid, self._as_seen(port, description))

    def _as_seen(self, port: Port, description: FakeDevice) -> FakeDevice:
        """The speed is the one that attach was told."""
        return description.but(speed=SPEEDS[port.speed], dev={})

    def _ended(self, port: Port, wire: Wire) -> None:
        self._machine.log.append(f"port {port.number} ended")
        with self._machine.lock:
            if port.wire is not wire:
                return
            if port.device is not None and port.device.busid in self._machine.devices:
                self._machine.unplug(port.device.busid)
            port.wire = port.device = None
            port.status, port.speed, port.devid, port.sockfd = FREE, 0, 0, 0

    def _detach(self, data: bytes, _: int) -> None:
        self._machine.passing("detach")
        try:
            number = int(data.strip())
        except ValueError:
            raise fault(errno.EINVAL) from None
        with self._machine.lock:
            if not 0 <= number < len(self.ports) or self.ports[number].wire is None:
                raise fault(errno.EINVAL)
            wire = self.ports[number].wire
        if wire is not None:
            wire.end()

    # --- what tests ask for --------------------------------------------------------------

    def transfer(self, number: int, size: int, seconds: float = 30.0) -> int:
        """Send ``size`` bytes through a port to the device and back; return how many came right."""
        wire = self.ports[number].wire
        if wire is None:
            raise fault(errno.ENOTCONN, f"port {number} is free")
        payload = bytes(i * 31 % 251 for i in range(4096))
        data = (payload * (size // 4096 + 1))[:size]
        wire.send(b"echo %d\n" % size + data)
        back = wire.wait_bytes(size, seconds)
        if back != data:
            raise fault(errno.EIO, "what came back is not what was sent")
        return len(back)

    def reset(self) -> None:
        """End every connection."""
        for port in self.ports:
            if port.wire is not None:
                port.wire.end()

    def told(self) -> list[dict[str, Any]]:
        """The ports that are not free."""
        return [
            {
                "port": p.number,
                "hub": p.hub,
                "status": p.status,
                "speed": p.speed,
                "devid": p.devid,
                "busid": p.local_busid,
                "pending": p.wire is not None,
            }
            for p in self.ports
            if p.status != FREE
        ]
