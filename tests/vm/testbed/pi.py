# SPDX-License-Identifier: GPL-3.0-or-later
"""The machine that exports: its emulated USB devices, and what it should look like afterwards."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

from . import systems
from .usb import UsbMachine

# Name -> QEMU's driver and properties. Ports are those of the emulated xHCI controller: bus 1
# is its fast half, bus 2 its SuperSpeed half, so the stick in port 2 is 2-2.
PLUGGABLE: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {
        "keyboard": {"driver": "usb-kbd", "port": "1", "serial": "KBD0001"},
        "stick": {
            "driver": "usb-storage",
            "port": "2",
            "drive": "stick",
            "serial": "STICK0001",
            "removable": True,
        },
        "hub": {"driver": "usb-hub", "port": "3", "serial": "HUB0001"},
        "adapter": {
            "driver": "usb-serial",
            "port": "3.1",
            "chardev": "adapter",
            "always-plugged": True,
            "serial": "SERIAL0001",
        },
        "mouse": {"driver": "usb-mouse", "port": "4", "serial": "MOUSE0001"},
        "keyboard2": {"driver": "usb-kbd", "port": "3.2", "serial": "KBD0002"},
    }
)
BUSIDS: Mapping[str, str] = MappingProxyType(
    {
        "keyboard": "1-1",
        "stick": "2-2",
        "hub": "1-3",
        "adapter": "1-3.1",
        "mouse": "1-4",
        "keyboard2": "1-3.2",
    }
)
PLUGGED_AT_START = ("keyboard", "stick", "hub", "adapter")

CONNECTORS = ("perl", "python3", "bash")

# A hub with a hub in it, and what is plugged into both: QEMU's have eight ports.
_LEAVES = 12
_LEAF_KINDS = ("usb-kbd", "usb-mouse", "usb-tablet")
TREE_PATTERN = "LEAF"
LEAVES = tuple(f"1-4.{n + 1}" if n < 7 else f"1-4.8.{n - 6}" for n in range(_LEAVES))
"""Their bus ids."""
BLANK = "2-4"
"""The bus id of the stick with nothing on it."""


class Pi(UsbMachine):
    """A Debian with sshd and perl-base, and with USB devices."""

    name: ClassVar[str] = "pi"
    address: ClassVar[str] = systems.PI_ADDRESS
    number: ClassVar[int] = 1
    memory: ClassVar[int] = 512
    # QEMU's hub answers nothing for a while when it wakes up (error -110), attached or not.
    kernel_line: ClassVar[str] = "audit=0 lsm=capability usbcore.autosuspend=-1"

    def disk(self) -> Path:
        return self.images.pi

    def devices(self) -> list[str]:
        stick = self.folder / "stick.raw"
        shutil.copyfile(self.images.stick, stick)
        self._adapter_path.unlink(missing_ok=True)
        options = [
            "-device", "qemu-xhci,id=xhci,p2=8,p3=8",
            "-blockdev", f"driver=file,node-name=stick,filename={stick},cache.no-flush=on",
            "-chardev", f"socket,id=adapter,path={self._adapter_path},server=on,wait=off",
        ]  # fmt: skip
        for name in PLUGGED_AT_START:
            options += ["-device", self._device_option(name)]
        return options

    @staticmethod
    def _device_option(name: str) -> str:
        def text(value: object) -> str:
            return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)

        spec = PLUGGABLE[name]
        rest = "".join(f",{key}={text(value)}" for key, value in spec.items() if key != "driver")
        return f"{spec['driver']},id={name},bus=xhci.0{rest}"

    # Hands on the hardware.

    def plug(self, name: str, **changes: object) -> None:
        """Plug one of PLUGGABLE in, perhaps changed: another `port`, another `serial`."""
        with self.qmp() as qmp:
            options = {"bus": "xhci.0", **PLUGGABLE[name], **changes}
            qmp.command("device_add", id=name, **options)

    def unplug(self, name: str) -> None:
        """Pull a device out, without asking anybody."""
        with self.qmp() as qmp:
            qmp.command("device_del", id=name)
            qmp.wait("DEVICE_DELETED", device=name)

    def wait_plugged(self) -> None:
        """Wait until what is plugged in at the start has its drivers, and the stick its disk."""
        script = (
            'for d; do i=0; until [ -e "/sys/bus/usb/devices/$d:1.0/driver" ]; do'
            " i=$((i+1)); [ $i -lt 600 ] || exit 1; sleep 0.1; done; done"
        )
        self.shell(script, *(BUSIDS[name] for name in PLUGGED_AT_START), timeout=300)
        self.disk_of(BUSIDS["stick"])

    def plug_tree(self) -> None:
        """Plug in twelve devices under one hub (and a hub in it), all at once."""
        with self.qmp() as qmp:
            for name, port in (("tree", "4"), ("branch", "4.8")):
                options = {"driver": "usb-hub", "bus": "xhci.0", "port": port, "serial": name}
                qmp.command("device_add", id=name, **options)
            for number, busid in enumerate(LEAVES):
                qmp.command(
                    "device_add",
                    id=f"leaf{number}",
                    driver=_LEAF_KINDS[number % len(_LEAF_KINDS)],
                    bus="xhci.0",
                    port=busid.removeprefix("1-"),
                    serial=f"{TREE_PATTERN}{number:02}",
                )

    def leaves(self) -> list[str]:
        """Those of LEAVES that this machine's kernel has made ready, whoever uses them now."""
        script = 'cd /sys/bus/usb/devices; for d; do [ ! -e "$d/driver" ] || echo "$d"; done'
        return self.shell(script, *LEAVES).split()

    @contextmanager
    def blank_stick(self, begins_with: bytes = b"", megabytes: int = 64) -> Iterator[str]:
        """Plug in another stick, empty but for its first bytes; its node (`/dev/sdb`)."""
        with self.spare_stick("BLANK0001", "4", begins_with, megabytes):
            yield self.disk_of(BLANK)

    def press(self, *keys: str) -> None:
        """Press keys together on the keyboard (QEMU's names: a, shift, ret, …), and let go."""
        with self.qmp() as qmp:
            chord = [{"type": "qcode", "data": key} for key in keys]
            qmp.command("send-key", keys=chord)

    @property
    def _adapter_path(self) -> Path:
        return self.folder / "adapter"

    @contextmanager
    def adapter_line(self) -> Iterator[socket.socket]:
        """The far end of the serial adapter's line: what is written here arrives at its port."""
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(60)
            line.connect(str(self._adapter_path))
            yield line

    # What it is like.

    def agents(self) -> list[str]:
        """Command lines of agent processes that still run."""
        # One grep for all processes; it would find itself but for the bracket.
        found = self.shell("grep -a -h 'usbipssh[-]agent' /proc/[0-9]*/cmdline 2>/dev/null || :")
        return [line.replace("\0", " ") for line in found.splitlines()]

    def agents_left(self) -> list[str]:
        """Agents that still run and folders of theirs; empty once no daemon is connected."""
        found = [f"an agent runs: {line}" for line in self.agents()]
        folders = self.shell("ls -d /run/usbipssh.* /tmp/usbipssh.* 2>/dev/null || :").split()
        return found + [f"{folder} is still there" for folder in folders]

    # What it has.

    def authorize(self, public_key: str, user: str = "root") -> None:
        """Let whoever has this key log in as `user`."""
        home = "/root" if user == "root" else f"/home/{user}"
        self.shell(
            'umask 077; mkdir -p "$1/.ssh"; touch "$1/.ssh/authorized_keys"\n'
            'grep -qxF "$2" "$1/.ssh/authorized_keys" || echo "$2" >> "$1/.ssh/authorized_keys"\n'
            'chown -R "$3:" "$1/.ssh"',
            home,
            public_key.strip(),
            user,
        )

    def fingerprint(self, kind: str = "ed25519") -> str:
        """The SHA256 fingerprint of a host key (ed25519, ecdsa, rsa)."""
        line = self.run("ssh-keygen", "-lf", f"/etc/ssh/ssh_host_{kind}_key.pub")
        return line.split()[1]

    @contextmanager
    def only_connector(self, name: str) -> Iterator[None]:
        """Leave just one of CONNECTORS usable; python3 is there only inside `python3`."""
        hidden = [f"/usr/bin/{other}" for other in ("perl", "bash") if other != name]
        hide = 'for f do mv "$f" "$f.hidden"; done'
        show = 'for f do mv "$f.hidden" "$f"; done'
        if name == "python3":
            self.run("ln", "-s", systems.HIDDEN_PYTHON, "/usr/bin/python3")
        self.shell(hide, *hidden)
        try:
            yield
        finally:
            self.shell(show, *hidden)
            self.run("rm", "-f", "/usr/bin/python3")

    @contextmanager
    def udisks(self) -> Iterator[None]:
        """udisksd runs, and udisksctl is found, while the block runs."""
        program = f"{systems.HIDDEN_PROGRAMS}/udisksctl"
        self.shell(
            'rm /etc/systemd/system/udisks2.service; ln -s "$1" /usr/bin/udisksctl\n'
            "systemctl daemon-reload; systemctl start udisks2.service",
            program,
            timeout=120,
        )
        try:
            yield
        finally:
            self.shell(
                "systemctl stop udisks2.service; rm /usr/bin/udisksctl\n"
                "ln -s /dev/null /etc/systemd/system/udisks2.service; systemctl daemon-reload",
                timeout=120,
            )
