# SPDX-License-Identifier: GPL-3.0-or-later
"""The importing kernel: vhci_hcd's ports, and the files that attach and detach.

Formats: drivers/usb/usbip/vhci_sysfs.c. Every call here is one short read or
write of sysfs; waiting is the caller's.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from usbipsshd.device import is_busid
from usbipsshd.errors import Code, UsbipError
from usbipsshd.localusb import read_text
from usbipsshd.sysfs import write

FREE = 4
ASSIGNED = 5
USED = 6
ERROR = 7

_SPEED_CODES = {1.5: 1, 12.0: 2, 480.0: 3, 5000.0: 5, 10000.0: 5, 20000.0: 5}
"""enum usb_device_speed. Faster than 5000 is sent as 5: 6 came with Linux 6.12."""

_ATTACH_TRIES = 8


@dataclass(frozen=True, slots=True)
class Port:
    """One port of vhci as its status file shows it."""

    number: int
    """Global over all controllers."""
    super_speed: bool
    state: int
    devid: int
    """busnum << 16 | devnum at the exporter; shown, as all that follows, in state USED only."""
    local_busid: str
    """Empty until the device has an address here."""
    controller: int


def speed_code(speed: float) -> int:
    """The number vhci wants for a speed in Mbit/s; raise :exc:`UsbipError` for an unknown one."""
    try:
        return _SPEED_CODES[speed]
    except KeyError:
        raise UsbipError(
            Code.DEVICE_FAILED, f"The device's speed of {speed:g} Mbit/s is not known here."
        ) from None


def parse_status(text: str, controller: int = 0) -> list[Port]:
    """The ports in one status file; lines that make no sense are left out.

    Since Linux 4.13 a line is ``hub port sta spd dev sockfd local_busid``; before, ``hub`` is
    missing, every port is high speed, and a used line has one column less than the header says.
    """
    ports: list[Port] = []
    for line in text.splitlines()[1:]:
        words = line.split()
        hub = words.pop(0) if words and words[0] in ("hs", "ss") else "hs"
        if len(words) < 5 or not all(word.isalnum() for word in words[:4]):
            continue
        try:
            number, state = int(words[0]), int(words[1])
            devid = int(words[3], 16) if state == USED else 0
        except ValueError:
            continue
        busid = words[-1] if is_busid(words[-1]) else ""
        ports.append(Port(number, hub == "ss", state, devid, busid, controller))
    return ports


class Vhci:
    """vhci_hcd below ``sys``, which may be a made-up tree."""

    def __init__(self, sys: Path) -> None:
        self._platform = sys / "devices/platform"
        self._state = sys / "module/vhci_hcd/initstate"

    @property
    def loading(self) -> bool:
        """Whether the module is being loaded (or unloaded) just now.

        Whoever reads ``status`` then can take the kernel down: its controllers have their files
        before they have their data (6.1: a null pointer in status_show_vhci, vhci_sysfs.c).
        """
        return read_text(self._state) not in ("", "live")

    @property
    def folder(self) -> Path | None:
        """The folder with ``attach`` and ``detach``, or None where the module is not loaded."""
        if self.loading:
            return None
        for name in ("vhci_hcd.0", "vhci_hcd"):
            if (self._platform / name / "attach").exists():
                return self._platform / name
        return None

    @property
    def available(self) -> bool:
        """Whether the module is loaded."""
        return self.folder is not None

    def _the_folder(self) -> Path:
        folder = self.folder
        if folder is None:
            raise UsbipError(
                Code.MODULE_UNAVAILABLE,
                "This machine's kernel has no vhci-hcd module loaded; load it with: "
                "modprobe vhci-hcd",
            )
        return folder

    def ports(self) -> list[Port]:
        """Every port of every controller; empty where the module is not loaded."""
        folder = self.folder
        if folder is None:
            return []
        found = parse_status(read_text(folder / "status"))
        controller = 1
        while (more := folder / f"status.{controller}").exists():
            found += parse_status(read_text(more), controller)
            controller += 1
        return found

    def port(self, number: int) -> Port | None:
        """One port, or None if there is no such port (any more)."""
        return next((p for p in self.ports() if p.number == number), None)

    def free(self) -> dict[str, int]:
        """How many ports are free, for ``hs`` and ``ss`` devices."""
        free = [p for p in self.ports() if p.state == FREE]
        fast = sum(p.super_speed for p in free)
        return {"hs": len(free) - fast, "ss": fast}

    def candidates(self, speed: float) -> list[Port]:
        """Free ports for a device of ``speed`` Mbit/s; raise :exc:`UsbipError` if there is none."""
        self._the_folder()
        fast = speed_code(speed) >= 5
        found = [p for p in self.ports() if p.state == FREE and p.super_speed == fast]
        if not found:
            kind = "USB 3" if fast else "USB 2"
            raise UsbipError(
                Code.NO_FREE_PORT,
                f"Every virtual {kind} port of this machine is taken; detach something first.",
            )
        return found

    def bus(self, port: Port) -> Path | None:
        """The root hub's folder of the bus that ``port`` is on (``…/usbN``)."""
        folder = self._platform / f"vhci_hcd.{port.controller}"
        if not folder.is_dir():
            folder = self._platform / "vhci_hcd"
        for hub in sorted(folder.glob("usb*")):
            try:
                fast = float(read_text(hub / "speed")) >= 5000
            except ValueError:
                continue
            if fast == port.super_speed:
                return hub
        return None

    def busid(self, port: Port) -> str:
        """What is plugged into ``port`` is called so, whether or not there is anything yet."""
        bus = self.bus(port)
        pool = [
            p.number
            for p in self.ports()
            if (p.controller, p.super_speed) == (port.controller, port.super_speed)
        ]
        if bus is None or port.number not in pool:
            return ""
        return f"{bus.name.removeprefix('usb')}-{pool.index(port.number) + 1}"

    def attach(self, ports: Iterable[Port], fd: int, devid: int, speed: float) -> Port:
        """Give the kernel socket ``fd`` on the first of ``ports`` that is still free.

        ``fd`` must be this process's; the kernel keeps its own reference. The
        device appears later. Raises :exc:`UsbipError` (NoFreePort, DeviceFailed).
        """
        folder = self._the_folder()
        code = speed_code(speed)
        for port in list(ports)[:_ATTACH_TRIES]:
            try:
                write(folder / "attach", f"{port.number} {fd} {devid} {code}")
            except OSError as error:
                # EBUSY, or EINVAL before 4.17: somebody else took the port meanwhile.
                if error.errno in (errno.EBUSY, errno.EINVAL) and self._taken(port):
                    continue
                raise UsbipError(
                    Code.DEVICE_FAILED,
                    f"This machine's kernel refused the device: {error.strerror}.",
                ) from None
            return port
        raise UsbipError(
            Code.NO_FREE_PORT, "Other programs keep taking this machine's virtual ports; try again."
        )

    def _taken(self, port: Port) -> bool:
        now = self.port(port.number)
        return now is not None and now.state != FREE

    def detach(self, number: int) -> bool:
        """Detach a port; whether there was anything to detach."""
        folder = self.folder
        if folder is None:
            return False
        try:
            write(folder / "detach", str(number))
        except OSError:
            return False
        return True
