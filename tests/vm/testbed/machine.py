# SPDX-License-Identifier: GPL-3.0-or-later
"""One virtual machine: its QEMU process, console and ssh connection."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from .host import TestbedError
from .images import Images
from .qmp import Qmp
from .ssh import Ssh
from .sysfs import SNAPSHOT_SCRIPT

BOOT_SECONDS = 240.0

# What a kernel writes when something went badly wrong in it.
TROUBLE = re.compile(
    r"BUG:|Oops|Call Trace|use-after-free|general protection fault|WARNING: CPU"
    r"|Kernel panic|unable to handle|refcount_t:|list_(?:add|del) corruption|blocked for more than"
)

KERNEL_LINE = (
    "console=ttyS0 quiet net.ifnames=0 mitigations=off no_timer_check tsc=reliable"
    " random.trust_cpu=on rcupdate.rcu_expedited=1 fsck.mode=skip"
    " systemd.show_status=no"
)


class Machine:
    """A virtual machine whose files (console log, monitor socket) are in `folder`."""

    name: ClassVar[str]
    address: ClassVar[str]
    number: ClassVar[int]
    memory: ClassVar[int]
    kernel_line: ClassVar[str] = ""
    """More for the kernel's command line."""

    def __init__(self, folder: Path, images: Images) -> None:
        self.folder = folder
        self.images = images
        self.console = folder / f"{self.name}.console"
        self.monitor = folder / f"{self.name}.qmp"
        self._note = folder / f"{self.name}.json"
        self._process: subprocess.Popen[bytes] | None = None
        self._ssh: Ssh | None = None

    # What the kinds of machines add.

    def disk(self) -> Path:
        """The image to boot from; changes to it are thrown away."""
        raise NotImplementedError

    def devices(self) -> Sequence[str]:
        """More QEMU options."""
        return ()

    # Life.

    def start(self, accelerator: Sequence[str], *, tied: bool) -> None:
        """Start QEMU. `tied`: it dies with this process, however that ends."""
        here, other = self.folder / f"link{self.number}", self.folder / f"link{3 - self.number}"
        here.unlink(missing_ok=True)
        command = [
            "qemu-system-x86_64", "-name", f"usbipsshd-{self.name}",
            "-nodefaults", "-no-user-config", "-display", "none",
            "-machine", "pc,usb=off,i8042=off",
            *accelerator, "-smp", "1", "-m", str(self.memory),
            "-kernel", str(self.images.kernel.image), "-initrd", str(self.images.kernel.initrd),
            "-append", f"{KERNEL_LINE} testbed.link={self.address}/24 {self.kernel_line}",
            "-drive", f"file={self.disk()},if=virtio,format=raw,snapshot=on,cache=unsafe",
            "-netdev", "user,id=host,restrict=on,ipv6=off,hostfwd=tcp:127.0.0.1:0-10.0.2.15:22",
            "-device", f"virtio-net-pci,netdev=host,mac=52:54:00:55:01:0{self.number},romfile=",
            "-netdev", f"dgram,id=link,local.type=unix,local.path={here}"
            f",remote.type=unix,remote.path={other}",
            "-device", f"virtio-net-pci,netdev=link,mac=52:54:00:55:02:0{self.number},romfile=",
            "-device", "virtio-rng-pci",
            "-chardev", f"file,id=console,path={self.console},append=on",
            "-serial", "chardev:console",
            "-qmp", f"unix:{self.monitor},server=on,wait=off",
            *self.devices(),
        ]  # fmt: skip
        if tied:
            command = ["setpriv", "--pdeathsig", "KILL", *command]
        with (self.folder / f"{self.name}.qemu").open("wb") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        try:
            port = self._forwarded_port()
        except TestbedError as error:
            text = (self.folder / f"{self.name}.qemu").read_text(errors="replace")
            raise TestbedError(f"{self.name} did not start: {error}\n{text}") from error
        self._note.write_text(json.dumps({"pid": self._process.pid, "port": port}))

    def _forwarded_port(self) -> int:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if self._process is not None and self._process.poll() is not None:
                break
            try:
                with self.qmp() as qmp:
                    found = re.search(
                        r"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)",
                        qmp.monitor("info usernet"),
                    )
            except (FileNotFoundError, ConnectionRefusedError):
                time.sleep(0.05)
                continue
            if found:
                return int(found.group(1))
            break
        raise TestbedError("no forwarded port")

    def ready(self) -> None:
        """Wait until commands can be run."""
        try:
            self.ssh.connect(time.monotonic() + BOOT_SECONDS)
        except TestbedError as error:
            raise TestbedError(
                f"{error}; its console ends:\n{self.console_text()[-3000:]}"
            ) from error

    def running(self) -> bool:
        """Is there a QEMU process for this machine?"""
        try:
            pid = int(json.loads(self._note.read_text())["pid"])
            return str(self.monitor) in Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:
            return False

    def stop(self) -> None:
        """Switch the machine off, as if its cable were pulled."""
        if self.running():
            self.ssh.disconnect()
            pid = int(json.loads(self._note.read_text())["pid"])
            handle = os.pidfd_open(pid)
            try:
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                if self._process is None:
                    os.set_blocking(handle, False)
            finally:
                os.close(handle)
        if self._process is not None:
            self._process.wait(timeout=60)
            self._process = None
        self._note.unlink(missing_ok=True)
        self.monitor.unlink(missing_ok=True)
        self._ssh = None

    # Doors into it.

    @property
    def ssh(self) -> Ssh:
        """Root's commands on this machine."""
        if self._ssh is None:
            port = int(json.loads(self._note.read_text())["port"])
            control = self.folder / f"{self.name}.ssh"
            self._ssh = Ssh(self.name, port, self.images.key, control)
        return self._ssh

    def qmp(self) -> Qmp:
        """A connection to the monitor; close it soon."""
        return Qmp(self.monitor)

    def link(self, up: bool) -> None:
        """Pull the cable of the private link, or plug it in again."""
        with self.qmp() as qmp:
            qmp.command("set_link", name="link", up=up)

    def run(self, *words: str, data: bytes | str | None = None, timeout: float = 60) -> str:
        """Run a command as root; return its output. Raises CommandFailed."""
        return self.ssh.run(*words, data=data, timeout=timeout)

    def shell(self, script: str, *arguments: str, timeout: float = 60) -> str:
        """Run a shell script as root; return its output. Raises CommandFailed."""
        return self.ssh.shell(script, *arguments, timeout=timeout)

    def snapshot(self) -> str:
        """The USB part of sysfs as text: `path<TAB>value` for files, `path -> target` for links."""
        return self.run("perl", "-", data=SNAPSHOT_SCRIPT, timeout=120)

    # The console.

    def console_text(self) -> str:
        """All that the kernel wrote to the console so far."""
        if not self.console.exists():
            return ""
        return self.console.read_text(errors="replace").replace("\r", "")

    def console_caught_up(self, seconds: float = 60) -> str:
        """Wait until what the kernel has said by now has arrived; all that is there then."""
        mark = f"testbed: {uuid.uuid4().hex}"
        self.shell('echo "<3>$1" >/dev/kmsg', mark)
        deadline = time.monotonic() + seconds
        while mark not in (text := self.console_text()):
            if time.monotonic() > deadline:
                raise TestbedError(f"{self.name}'s console does not show what its kernel says")
            time.sleep(0.1)
        return text

    def trouble(self, since: int = 0) -> list[str]:
        """Lines of the console log, from character `since` on, that tell of a broken kernel."""
        return [line for line in self.console_text()[since:].splitlines() if TROUBLE.search(line)]
