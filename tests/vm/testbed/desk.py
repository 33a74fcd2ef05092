# SPDX-License-Identifier: GPL-3.0-or-later
"""The machine that imports: the daemon and its callers, and the kernel's view of the ports."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from . import systems
from .host import CHECKOUT, TestbedError
from .ssh import CommandFailed
from .usb import UsbMachine

BUS_NAME = "org.usbipssh1"
ROOT = "/org/usbipssh1"
PYTHON_FOLDER = "/usr/lib/python3/dist-packages"


class CallFailed(TestbedError):
    """A D-Bus call was answered with an error."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name
        self.message = message


class Desk(UsbMachine):
    """A Debian with the project's package, and alice (allowed), bob (forbidden) and carol."""

    name: ClassVar[str] = "desk"
    address: ClassVar[str] = systems.DESK_ADDRESS
    number: ClassVar[int] = 2
    memory: ClassVar[int] = 768
    # AppArmor tells what it denies through the kernel's audit lines, without anybody auditing.
    kernel_line: ClassVar[str] = "lsm=capability,apparmor"

    def disk(self) -> Path:
        return self.images.desk

    def devices(self) -> list[str]:
        """A USB controller of its own, with a device that is nobody else's business."""
        return [
            "-device", "qemu-xhci,id=xhci",
            "-device", "usb-mouse,id=mouse,bus=xhci.0,port=1,serial=MOUSE0002",
        ]  # fmt: skip

    # D-Bus.

    def bus(self, user: str, *words: str, interactive: bool = False, timeout: float = 60) -> Any:
        """busctl as `user`; its answer's data. Raises CallFailed with the error's name.

        `words` is what follows busctl's options, such as `call SERVICE OBJECT …`.
        """
        asked = "yes" if interactive else "no"
        command = [
            "busctl", "--system", "--json=short", f"--timeout={timeout:g}",
            f"--allow-interactive-authorization={asked}", *words,
        ]  # fmt: skip
        # sd-bus tells an error's name only in its debug messages.
        tuned = ["env", "SYSTEMD_LOG_LEVEL=debug", "SYSTEMD_LOG_TARGET=console", *command]
        if user != "root":
            tuned = ["runuser", "-u", user, "--", *tuned]
        done = self.ssh.attempt(*tuned, timeout=timeout + 30)
        if done.code == 0:
            return json.loads(done.out)["data"] if done.out.strip() else None
        name = re.findall(r"error-name=(\S+)\s+error-message=(.*)$", done.err, re.MULTILINE)
        named = [(kind, text) for kind, text in name if kind != "n/a"]
        if not named:
            raise CommandFailed("desk", " ".join(command), done.code, done.out, done.err)
        raise CallFailed(*named[-1])

    def busctl(
        self,
        user: str,
        member: str,
        signature: str = "",
        *arguments: object,
        path: str = ROOT,
        interface: str = f"{BUS_NAME}.Manager",
        interactive: bool = False,
        timeout: float = 60,
    ) -> Any:
        """Call a method of the daemon as `user`, arguments as busctl writes them.

        Returns the list of what the method returned.
        """
        words = ["call", "--", BUS_NAME, path, interface, member]
        words += [signature, *map(_word, arguments)] if signature else []
        return self.bus(user, *words, interactive=interactive, timeout=timeout)

    def manager(
        self,
        user: str,
        member: str,
        *strings: str,
        options: dict[str, tuple[str, object]] | None = None,
        interactive: bool = False,
        timeout: float = 60,
    ) -> Any:
        """Call a Manager method whose arguments are strings and options `{name: (type, value)}`."""
        given = options or {}
        words: list[object] = [*strings, len(given)]
        for name, (kind, value) in given.items():
            words += [name, kind, value]
        signature = "s" * len(strings) + "a{sv}"
        return self.busctl(
            user, member, signature, *words, interactive=interactive, timeout=timeout
        )

    def list_remote(self, user: str, remote: str, pattern: str = "") -> list[dict[str, Any]]:
        """ListRemote's devices, values plain."""
        (devices,) = self.manager(user, "ListRemote", remote, pattern)
        return [plain(device) for device in devices]

    def list_local(self, user: str, pattern: str = "") -> list[dict[str, Any]]:
        """ListLocal's devices, values plain."""
        (devices,) = self.manager(user, "ListLocal", pattern)
        return [plain(device) for device in devices]

    def properties(self, path: str, interface: str, user: str = "root") -> dict[str, Any]:
        """All properties of an object, values plain."""
        words = ["call", BUS_NAME, path, "org.freedesktop.DBus.Properties", "GetAll", "s"]
        (table,) = self.bus(user, *words, interface)
        values: dict[str, Any] = plain(table)
        return values

    def objects(self, user: str = "root") -> dict[str, dict[str, dict[str, Any]]]:
        """All objects of the daemon: path -> interface -> property -> plain value."""
        words = ["call", BUS_NAME, ROOT, "org.freedesktop.DBus.ObjectManager"]
        (table,) = self.bus(user, *words, "GetManagedObjects")
        return {
            path: {name: plain(values) for name, values in interfaces.items()}
            for path, interfaces in table.items()
        }

    def trust(self, name: str, address: str, fingerprint: str, *, sudo: bool = False) -> None:
        """Add a remote, anew if it is there already, and pin its host key, as root."""
        if f"{ROOT}/remote/{name}" in self.objects():
            self.manager("root", "RemoveRemote", name)
        options: dict[str, tuple[str, object]] = {"address": ("s", address)}
        if sudo:
            options["sudo"] = ("b", "true")
        self.manager("root", "AddRemote", name, options=options)
        self.manager("root", "TrustHostKey", name, fingerprint)

    def attach(self, user: str, pattern: str, remote: str = "pi", **options: bool) -> str:
        """Attach a device; the attachment's object path."""
        given: dict[str, tuple[str, object]] = {k: ("b", v) for k, v in options.items()}
        (path,) = self.manager(user, "Attach", remote, pattern, options=given, timeout=120)
        return str(path)

    def attach_all(self, user: str, pattern: str, remote: str = "pi") -> str:
        """Attach every device that matches; the hub's object path."""
        (path,) = self.manager(user, "AttachAll", remote, pattern, timeout=120)
        return str(path)

    def attachment(self, path: str) -> dict[str, Any]:
        """An attachment's properties."""
        return self.properties(path, f"{BUS_NAME}.Attachment")

    def node(self, path: str, begins: str = "/dev/sd", seconds: float = 60) -> str:
        """Wait for an attachment's node that begins so, on the remote for an export; return it.

        Attach waits for it, too, but not for ever: on a slow machine it may come after that.
        """
        deadline = time.monotonic() + seconds
        while True:
            nodes: list[str] = self.attachment(path)["DeviceNodes"]
            if found := [node for node in nodes if node.startswith(begins)]:
                return found[0]
            if time.monotonic() > deadline:
                raise TestbedError(f"{path} has no {begins}… within {seconds:.0f} s: {nodes}")
            time.sleep(0.2)

    def detach(self, user: str, target: str) -> int:
        """Detach; how many there were."""
        (count,) = self.manager(user, "Detach", target, timeout=120)
        return int(count)

    # The kernel.

    def usb_tree(self) -> str:
        """What `lsusb -t` shows."""
        return self.run("lsusb", "-t")

    def wait_gone(self, path: str, seconds: int = 60) -> None:
        """Wait until a file of /dev or /sys is no longer there."""
        self._wait('[ ! -e "$1" ]', path, seconds)

    def wait_there(self, path: str, seconds: int = 60) -> None:
        """Wait until a file of /dev or /sys is there."""
        self._wait('[ -e "$1" ]', path, seconds)

    def _wait(self, test: str, path: str, seconds: int) -> None:
        step = f"i=$((i+1)); [ $i -lt {seconds * 10} ] || exit 1; sleep 0.1"
        loop = f"i=0; until {test}; do {step}; done"
        self.shell(loop, path, timeout=seconds + 30)

    # Using what was attached.

    @contextmanager
    def mounted(self, node: str, *, write: bool = False) -> Iterator[str]:
        """Mount a block device; the folder where it is."""
        folder = "/run/testbed-mount"
        self.run("mkdir", "-p", folder)
        self.run("mount", "-o", "rw" if write else "ro", node, folder)
        try:
            yield folder
        finally:
            self.run("umount", folder, timeout=120)

    def checksums(self, folder: str) -> dict[str, str]:
        """SHA-256 of the files in a folder, by name, read from the device and not from memory."""
        script = 'cd "$1" && find . -type f -printf "%P\\0" | sort -z | xargs -0 -r sha256sum'
        self.run("sh", "-c", "echo 3 > /proc/sys/vm/drop_caches")
        out = self.shell(script, folder, timeout=300)
        return {line[66:]: line[:64] for line in out.splitlines()}

    # The daemon.

    def deploy(self) -> None:
        """Replace the daemon's Python files by the checkout's and stop it; a call starts it anew.

        Attachments that it holds are given back first, as on any stop.
        """
        files = subprocess.run(
            ["tar", "-c", "-h", "--exclude=__pycache__", "-C", str(CHECKOUT), "usbipsshd"],
            capture_output=True,
            check=True,
            timeout=60,
        ).stdout
        script = (
            "systemctl stop usbipsshd.service 2>/dev/null || :\n"
            'rm -rf "$1/usbipsshd" && tar -x --no-same-owner -C "$1"'
        )
        self.run("sh", "-c", script, "sh", PYTHON_FOLDER, data=files, timeout=120)

    def stop_daemon(self) -> None:
        """Stop the daemon and what belongs to it; the next call starts it again."""
        self.shell(
            "! systemctl cat usbipsshd.service >/dev/null 2>&1 ||"
            " systemctl stop usbipsshd.service 'usbipssh-session*' 'usbipssh-here*'\n"
            # Tests stop and start it more often than a sound machine does.
            "systemctl reset-failed usbipsshd.service 2>/dev/null || :",
            timeout=120,
        )

    def journal(self, unit: str = "usbipsshd") -> str:
        """What a unit has logged since this machine booted, all of it."""
        # journald may not have written yet what it was sent.
        self.run("journalctl", "--sync")
        return self.run("journalctl", "--no-pager", "-o", "cat", "-u", f"{unit}*", timeout=60)

    @contextmanager
    def confined(self) -> Iterator[None]:
        """The package's AppArmor profiles are loaded and enforced meanwhile."""
        profiles = "/etc/apparmor.d/usbipsshd"
        self.run("apparmor_parser", "-r", profiles, timeout=180)
        self.stop_daemon()
        try:
            yield
        finally:
            self.stop_daemon()
            self.run("apparmor_parser", "-R", profiles, timeout=180)

    def denied(self, since: int = 0) -> list[str]:
        """What AppArmor has denied since the console had so many characters, in short."""
        lines = self.console_caught_up()[since:].splitlines()
        return [_brief(line) for line in lines if 'apparmor="DENIED"' in line]


def _brief(denial: str) -> str:
    """Profile, program, what, to what and how, of a line of the kernel's audit."""
    wanted = ("profile", "comm", "operation", "capname", "name", "requested_mask")
    found = dict(re.findall(r'(\w+)="([^"]*)"', denial))
    return " ".join(found[word] for word in wanted if word in found)


def _word(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def plain(value: Any) -> Any:
    """busctl's JSON without the variants' `{"type": …, "data": …}`."""
    if isinstance(value, dict):
        if value.keys() == {"type", "data"}:
            return plain(value["data"])
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return value
