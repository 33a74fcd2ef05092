# SPDX-License-Identifier: GPL-3.0-or-later
"""The exporting side: usbip-host, as drivers/usb/usbip/stub_main.c and stub_dev.c behave."""

from __future__ import annotations

import errno
import json
import socket
from dataclasses import dataclass
from typing import Any

from fakekernel.devices import FakeDevice, device_from_json
from fakekernel.machine import Machine, Plugged, fault
from fakekernel.tree import Folder
from fakekernel.wire import Wire, take_socket

MAX_NAMES = 16
MAX_NAME = 32

AVAILABLE, USED, ERROR = 1, 2, 3


@dataclass
class _Name:
    """A row of the kernel's table."""

    state: str = "added"  # other, added, bound, removed
    device: Plugged | None = None
    """What was bound under the name last: a pointer that holds no reference."""


class UsbipHost:
    """The driver, its files and its connections."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._names: dict[bytes, _Name] = {}
        self.status: dict[str, int] = {}
        self.wires: dict[str, Wire] = {}
        self.answers: dict[str, str] = {}
        """By bus id: ``lie``, ``stall`` or ``die`` instead of the true description."""
        self.lies: dict[str, FakeDevice] = {}
        self.echoing: dict[str, int] = {}
        machine.loaders["usbip_host"] = self._load

    def _load(self) -> None:
        folder = self._machine.add_driver("usbip-host")
        folder.control("match_busid", self._match, self._show_match)
        folder.control("rebind", self._rebind)
        self._machine.probes.append(self._probe)
        self._machine.on_unplug.append(self._disconnect)
        self._machine.on_unbind.append(self.note_unbind)

    @property
    def matched(self) -> list[str]:
        """The names in match_busid."""
        return [n.decode("utf-8", "backslashreplace") for n in self._names]

    def _show_match(self) -> bytes:
        return b"".join(n + b" " for n in self._names) + b"\n"

    def _match(self, data: bytes, _: int) -> None:
        name = data[4:].partition(b"\0")[0]
        self._machine.passing("match_busid", data.decode("utf-8", "backslashreplace"))
        with self._machine.lock:
            if len(data) < 5 or len(name) >= MAX_NAME:
                raise fault(errno.EINVAL)
            row = self._names.get(name)
            if data.startswith(b"add "):
                if row is None and len(self._names) >= MAX_NAMES:
                    raise fault(errno.ENOMEM)
                self._names.setdefault(name, _Name())  # whatever state it is in
            elif data.startswith(b"del "):
                if row is None:
                    raise fault(errno.ENODEV)
                if row.state == "other":
                    del self._names[name]
                elif row.state == "bound":
                    row.state = "removed"
            else:
                raise fault(errno.EINVAL)

    def _probe(self, device: Plugged) -> bool:
        row = self._names.get(device.busid.encode())
        if row is None or row.state in ("removed", "other"):
            return False
        if device.description.class_ == 9 or device.bus.virtual:
            return False
        row.state = "bound"
        row.device = device
        self.status[device.busid] = AVAILABLE
        folder: Folder = device.folder
        busid = device.busid
        folder.attribute("usbip_status", lambda: b"%d\n" % self.status.get(busid, 0))
        folder.control("usbip_sockfd", lambda data, pid: self._sockfd(device, data, pid))
        self._machine.set_driver(device, "usbip-host")
        return True

    def _disconnect(self, device: Plugged) -> None:
        """The driver leaves the device: it was unbound, or pulled out."""
        if device.driver != "usbip-host":
            return
        busid = device.busid
        device.folder.remove("usbip_status")
        device.folder.remove("usbip_sockfd")
        self.status.pop(busid, None)
        wire = self.wires.pop(busid, None)
        if wire is not None:
            wire.end()
        row = self._names.get(busid.encode())
        if row is None:
            self._machine.crashes.append(f"BUG: {busid} was bound without its name")
        elif row.state == "bound":
            row.state = "added"

    def note_unbind(self, device: Plugged) -> None:
        """Record what would crash a real kernel."""
        if device.driver == "usbip-host" and self.status.get(device.busid) == USED:
            self._machine.crashes.append(f"unbind of {device.busid} while it was in use")

    def _in_memory(self, device: Plugged) -> bool:
        """Whether the device is plugged in, or held by somebody who has its node open."""
        parent = device.busid.rpartition(".")[0]
        there = self._machine.devices.get(device.busid) is device
        above = device.bus.node if not parent else device.parent_node
        return there or bool(device.node.users and above is not None and above.users)

    def _rebind(self, data: bytes, _: int) -> None:
        machine = self._machine
        with machine.lock:
            row = self._names.get(data)
            if row is None:
                raise fault(errno.ENODEV)
            row.state = "other"
            device = row.device
            if device is None:
                machine.crashes.append(f"rebind of {data!r}, which was never bound")
                raise fault(errno.EFAULT)
            if not self._in_memory(device):
                machine.crashes.append(f"use after free: rebind of {data!r}, which is gone")
        machine.passing("rebind", data.decode("utf-8", "backslashreplace"))
        with machine.lock:
            if machine.devices.get(device.busid) is device:
                machine.probe(device)  # does nothing where it has a driver, even ours
            self._names.pop(data, None)

    @property
    def parked(self) -> list[str]:
        """Names that no write can safely take out: their device is gone, or there was none."""
        return [
            name.decode("utf-8", "backslashreplace")
            for name, row in self._names.items()
            if row.device is None or self._machine.devices.get(row.device.busid) is not row.device
        ]

    # --- connections ---------------------------------------------------------------------

    def _sockfd(self, device: Plugged, data: bytes, pid: int) -> None:
        busid = device.busid
        self._machine.passing("sockfd", busid)
        try:
            number = int(data.strip())
        except ValueError:
            raise fault(errno.EINVAL) from None
        if number == -1:
            with self._machine.lock:
                if self.status.get(busid) != USED:
                    raise fault(errno.EINVAL)
                wire = self.wires.get(busid)
            if wire is not None:
                wire.end()
            return
        try:
            sock = take_socket(pid, number)
        except OSError:
            raise fault(errno.EINVAL) from None
        if sock.type != socket.SOCK_STREAM:
            sock.close()
            raise fault(errno.EINVAL)
        with self._machine.lock:
            if self.status.get(busid) != AVAILABLE:
                sock.close()
                raise fault(errno.EINVAL)
            made = Wire(sock, lambda w: self._talk(device, w), lambda: self._ended(busid, made))
            self.status[busid] = USED
            self.wires[busid] = made
        made.start()

    def _ended(self, busid: str, wire: Wire) -> None:
        with self._machine.lock:
            if self.wires.get(busid) is not wire:
                # The device has gone first: there is nothing to reset any more.
                return
        try:
            self._machine.passing("reset", busid)
            after = AVAILABLE
        except OSError:
            after = ERROR
        with self._machine.lock:
            if self.wires.get(busid) is wire:
                del self.wires[busid]
                self.echoing.pop(busid, None)
                self.status[busid] = after

    def _talk(self, device: Plugged, wire: Wire) -> None:
        busid = device.busid
        while True:
            left = self.echoing.get(busid, 0)
            if left:
                data = wire.take_bytes(left)
                if not data:
                    return
                self.echoing[busid] = left - len(data)
                wire.send(data)
                continue
            line = wire.take_line()
            if line is None:
                return
            if line.startswith(b"echo "):
                self.echoing[busid] = int(line[5:])
            elif line == b"describe":
                self._describe(device, wire)

    def _describe(self, device: Plugged, wire: Wire) -> None:
        answer = self.answers.get(device.busid, "")
        if answer == "stall":
            return
        if answer == "die":
            wire.end()
            return
        told = self.lies[device.busid] if answer == "lie" else device.description
        wire.send(json.dumps(told.to_json()).encode() + b"\n")

    # --- what tests ask for --------------------------------------------------------------

    def set_answer(self, busid: str, answer: str, told: dict[str, Any] | None) -> None:
        """Let a device lie, stall or die when it is described."""
        with self._machine.lock:
            self.answers[busid] = answer
            if told is not None:
                self.lies[busid] = device_from_json(told)

    def reset(self) -> None:
        """Forget names and lies."""
        with self._machine.lock:
            self._names.clear()
            self.answers.clear()
            self.lies.clear()

    def set_status(self, busid: str, status: int) -> None:
        """Put a device into a state, such as 3 after a reset that failed."""
        with self._machine.lock:
            if busid not in self.status:
                raise fault(errno.ENODEV, f"{busid} is not exported")
            self.status[busid] = status
