# SPDX-License-Identifier: GPL-3.0-or-later
"""What both machines' kernels have of USB and USB/IP, and a stick to plug into either."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from .machine import Machine


@dataclass(frozen=True)
class Port:
    """One line of a vhci `status` file (Linux 4.13 and later)."""

    hub: str
    number: int
    state: int
    speed: int
    device: int
    descriptor: int
    busid: str


class UsbMachine(Machine):
    """A machine that may export and import."""

    # Hands on the hardware.

    @contextmanager
    def spare_stick(
        self, serial: str, port: str, begins_with: bytes = b"", megabytes: int = 64
    ) -> Iterator[None]:
        """Plug in a stick of its own, empty but for its first bytes; pulled out in the end."""
        file = self.folder / f"{serial}.raw"
        with file.open("wb") as out:
            out.write(begins_with)
            out.truncate(megabytes << 20)
        with self.qmp() as qmp:
            disk = {"driver": "file", "node_name": serial, "filename": str(file)}
            qmp.command("blockdev-add", **disk)
        self.plug_spare(serial, port)
        try:
            yield
        finally:
            with self.qmp() as qmp:
                if serial in qmp.monitor("info qtree"):
                    qmp.command("device_del", id=serial)
                    qmp.wait("DEVICE_DELETED", device=serial)
                qmp.command("blockdev-del", node_name=serial)
            file.unlink()
            # It has left the port; the kernel takes a moment to see that.
            self.shell(
                'i=0; while grep -qsx "$1" /sys/bus/usb/devices/*/serial; do'
                " i=$((i+1)); [ $i -lt 600 ] || exit 1; sleep 0.1; done",
                serial,
                timeout=120,
            )

    def plug_spare(self, serial: str, port: str) -> None:
        """Plug the stick in (again)."""
        with self.qmp() as qmp:
            options = {"driver": "usb-storage", "bus": "xhci.0", "port": port, "removable": True}
            qmp.command("device_add", id=serial, drive=serial, serial=serial, **options)

    def pull_spare(self, serial: str) -> None:
        """Pull the stick out, without asking anybody."""
        with self.qmp() as qmp:
            qmp.command("device_del", id=serial)
            qmp.wait("DEVICE_DELETED", device=serial)

    def disk_of(self, busid: str, seconds: int = 60, parts: int = 0) -> str:
        """Wait for the disk of a stick of this machine's, and its first partitions; its node.

        Its node is there before it can be opened. The kernel tells udev of it after that, and udev
        notes it in its database.
        """
        script = (
            "i=0; while :; do\n"
            'for disk in /sys/bus/usb/devices/"$1":*/host*/target*/*/block/sd*; do\n'
            "node=/dev/${disk##*/}; there=1\n"
            'for part in "" $2; do [ -b "$node$part" ] || there=; done\n'
            '[ -z "$there" ] || [ -e "/run/udev/data/b$(cat "$disk/dev")" ] || there=\n'
            '[ -z "$there" ] || { echo "$node"; exit; }\n'
            "done\n"
            f"i=$((i+1)); [ $i -lt {seconds * 10} ] || exit 1; sleep 0.1; done"
        )
        numbers = " ".join(str(number + 1) for number in range(parts))
        return self.shell(script, busid, numbers, timeout=seconds + 30).strip()

    # What its kernel shows.

    def driver(self, busid: str) -> str:
        """The driver of a device (usb, usbip-host), empty without one."""
        path = f"/sys/bus/usb/devices/{busid}/driver"
        return self.shell('[ ! -e "$1" ] || basename "$(readlink "$1")"', path).strip()

    def wait_driver(self, busid: str, driver: str, seconds: int = 60) -> None:
        """Wait until a device has this driver (empty: until it has none or is gone)."""
        script = (
            'i=0; until l=$(readlink "$1") || l=; [ "${l##*/}" = "$2" ]; do'
            f" i=$((i+1)); [ $i -lt {seconds * 10} ] || exit 1; sleep 0.1; done"
        )
        path = f"/sys/bus/usb/devices/{busid}/driver"
        self.shell(script, path, driver, timeout=seconds + 30)

    def interface_drivers(self, busid: str) -> dict[str, str]:
        """The drivers of a device's interfaces: `1-1:1.0` -> `usbhid`."""
        script = (
            'for d in /sys/bus/usb/devices/"$1":*; do [ ! -e "$d/driver" ] ||'
            ' echo "${d##*/} $(basename "$(readlink "$d/driver")")"; done'
        )
        return dict(line.split() for line in self.shell(script, busid).splitlines())

    def usbip_status(self, busid: str) -> int | None:
        """1 available, 2 in use, 3 error; None when usbip-host does not have it."""
        path = f"/sys/bus/usb/devices/{busid}/usbip_status"
        text = self.shell('cat "$1" 2>/dev/null || :', path).strip()
        return int(text) if text else None

    def exported(self) -> list[str]:
        """The devices that usbip-host has."""
        script = "ls /sys/bus/usb/drivers/usbip-host 2>/dev/null || :"
        return [name for name in self.shell(script).split() if re.match(r"\d+-[\d.]+$", name)]

    def matched(self) -> list[str]:
        """The names in match_busid."""
        return self.shell(
            "cat /sys/bus/usb/drivers/usbip-host/match_busid 2>/dev/null || :"
        ).split()

    def exports_left(self) -> list[str]:
        """What usbip-host still holds, in words; empty when all is well."""
        found = [f"{busid} is bound to usbip-host" for busid in self.exported()]
        found += [f"match_busid still names {name}" for name in self.matched()]
        return found

    def ports(self) -> list[Port]:
        """All ports of vhci; empty while the module is not loaded."""
        script = "cat /sys/devices/platform/vhci_hcd.0/status* 2>/dev/null || :"
        found = []
        for line in self.shell(script).splitlines():
            fields = line.split()
            if len(fields) == 7 and fields[0] in ("hs", "ss"):
                port, state, speed = (int(field) for field in fields[1:4])
                device, descriptor = int(fields[4], 16), int(fields[5])
                found.append(Port(fields[0], port, state, speed, device, descriptor, fields[6]))
        return found

    def taken_ports(self) -> list[Port]:
        """The ports that are not free (state 4)."""
        return [port for port in self.ports() if port.state != 4]

    def ports_left(self) -> list[str]:
        """The vhci ports that are taken, in words; empty when all is well."""
        return [f"vhci port {port.number} is taken: {port}" for port in self.taken_ports()]
