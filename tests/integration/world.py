# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything at once, without a virtual machine: bus, polkit, daemon, sshd, agent, two kernels."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fakekernel import FakeKernel
from integration.busfixtures import SystemBus, polkitd, system_bus, wait_for_name
from integration.sessions import SESSION_UID, readable_tree
from integration.sshd import Sshd, sshd

NAME = "org.usbipssh1"
ROOT = "/org/usbipssh1"
MANAGER = "org.usbipssh1.Manager"
ATTACHMENT = "org.usbipssh1.Attachment"
REMOTE = "org.usbipssh1.Remote"
ERROR = "org.usbipssh1.Error."
STANDARD = "org.freedesktop.DBus.Error."

ALICE, BOB, CAROL = 61001, 61002, 61003
"""Alice may do everything, Bob nothing, Carol would be asked."""

RULES = """
polkit.addRule(function(action, subject) {
    if (action.id.indexOf("org.usbipssh1.") != 0) return polkit.Result.NOT_HANDLED;
    if (subject.user == "alice") return polkit.Result.YES;
    if (subject.user == "bob") return polkit.Result.NO;
    return polkit.Result.NOT_HANDLED;
});
"""


class CallError(Exception):
    """An error answer."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text


@dataclass
class World:
    """One machine that imports, one that exports, and the daemon between them."""

    bus: SystemBus
    desk: FakeKernel
    pi: FakeKernel
    ssh: Sshd
    folder: Path
    tree: Path
    daemon: subprocess.Popen[bytes] | None = None
    environment: dict[str, str] = field(default_factory=dict)

    def start_daemon(self) -> None:
        """Start it and wait for its name."""
        log = (self.folder / "log").open("ab")
        program = Path(__file__).with_name("daemon_under_test.py")
        arguments = [
            "--sys", self.desk.root, "--control", self.desk.control,
            "--agent-sysfs", self.pi.root, "--folder", self.folder,
            "--tree", self.tree, "--session-user", str(SESSION_UID),
        ]  # fmt: skip
        with log:
            self.daemon = subprocess.Popen(
                [sys.executable, program, *(str(a) for a in arguments)],
                env={
                    **os.environ,
                    **self.environment,
                    "DBUS_SYSTEM_BUS_ADDRESS": self.bus.address,
                    "PYTHONPATH": str(self.tree),
                },
                stdin=subprocess.DEVNULL,
                stderr=log,
                cwd="/",
            )
        asyncio.run(wait_for_name(self.bus, NAME))

    def stop_daemon(self, number: int = signal.SIGTERM) -> int:
        """Stop it; its exit status."""
        assert self.daemon is not None
        self.daemon.send_signal(number)
        status = self.daemon.wait(60)
        self.daemon = None
        return status

    def log(self) -> str:
        """What the daemon and its sessions wrote."""
        return (self.folder / "log").read_text(errors="replace")

    def try_call(
        self, uid: int, path: str, interface: str, member: str, *args: str, timeout: float = 40
    ) -> subprocess.CompletedProcess[str]:
        """Call with busctl as ``uid``, whatever comes of it."""
        return self.bus.busctl(
            uid, "--json=short", "call", NAME, path, interface, member, *args, timeout=timeout
        )

    def call(
        self, uid: int, member: str, *args: str, path: str = ROOT, interface: str = MANAGER
    ) -> Any:
        """Call and return what it returns, unwrapped; raise :exc:`CallError`."""
        done = self.try_call(uid, path, interface, member, *args)
        if done.returncode:
            raise CallError(done.stderr.strip())
        data = json.loads(done.stdout)["data"] if done.stdout.strip() else []
        return plain(data[0]) if data else None

    def error(
        self, uid: int, member: str, *args: str, path: str = ROOT, interface: str = MANAGER
    ) -> tuple[str, str]:
        """Call and return name and message of the error that must come; by gdbus, which names it."""
        done = self.bus.run_as(
            uid, sys.executable, str(self.tree / "name_error.py"), self.bus.address, path,
            interface, member, *args, timeout=45,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        name, message = json.loads(done.stdout)
        return name, message

    def get(self, path: str, interface: str, name: str) -> Any:
        """A property."""
        done = self.bus.busctl(0, "--json=short", "get-property", NAME, path, interface, name)
        if done.returncode:
            raise CallError(done.stderr.strip())
        return json.loads(done.stdout)["data"]

    def objects(self) -> list[str]:
        """All object paths that the ObjectManager knows."""
        done = self.try_call(
            0, ROOT, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects"
        )
        return sorted(json.loads(done.stdout)["data"][0])

    def add_remote(self, name: str = "pi", *, trust: bool = True, key: bool = True) -> None:
        """List the exporting machine as ``name``, let it know our key, trust its own."""
        address = f"root@127.0.0.1:{self.ssh.port}"
        self.call(0, "AddRemote", "sa{sv}", name, "1", "address", "s", address)
        if key:
            self.authorize()
        if trust:
            self.call(0, "TrustHostKey", "ssa{sv}", name, self.fingerprint(), "0")

    def authorize(self) -> None:
        """Let the daemon log in at the exporting machine."""
        with (self.ssh.folder / "authorized_keys").open("a") as file:
            file.write(self.get(ROOT, MANAGER, "PublicKey") + "\n")

    def fingerprint(self) -> str:
        """The host key's fingerprint, as a person reads it at the machine."""
        out = subprocess.check_output(
            ["ssh-keygen", "-l", "-f", self.ssh.folder / "host_ed25519.pub"], text=True
        )
        return out.split()[1]

    def list(self, uid: int = ALICE, pattern: str = "", remote: str = "pi") -> list[dict[str, Any]]:
        """ListRemote."""
        found: list[dict[str, Any]] = self.call(uid, "ListRemote", "ssa{sv}", remote, pattern, "0")
        return found

    def attach(self, pattern: str, uid: int = ALICE, remote: str = "pi", *options: str) -> str:
        """Attach; the attachment's path."""
        count = str(len(options) // 3)
        path: str = self.call(uid, "Attach", "ssa{sv}", remote, pattern, count, *options)
        return path

    def check_clean(self) -> None:
        """Nothing is left of anything, on either machine."""
        self.pi.wait(lambda s: not s["bound"] and not s["connected"])
        self.desk.wait(lambda s: not s["ports"])
        for kernel in (self.desk, self.pi):
            kernel.check_clean()
        for number, value in self.desk.state()["authorized_default"].items():
            assert int(value) == 1, f"bus {number} is still held"

    def sessions(self) -> list[int]:
        """Pids of the daemon's session processes."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (folder / "cmdline").read_bytes().split(b"\0")
                if b"usbipsshd.session" in words and str(self.pi.root).encode() in words:
                    if b"setpriv" not in words[0]:
                        found.append(int(folder.name))
        return found


def plain(value: Any) -> Any:
    """busctl's JSON without the types of variants."""
    if isinstance(value, dict):
        if set(value) == {"type", "data"}:
            return plain(value["data"])
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [plain(v) for v in value]
    return value


@contextlib.contextmanager
def world(
    *,
    rules: str = RULES,
    ssh_options: Sequence[str] = (),
    desk: FakeKernel | None = None,
    pi: FakeKernel | None = None,
) -> Iterator[World]:
    """Start everything; what was started is stopped, and the log shown if the test failed."""
    users = {"alice": ALICE, "bob": BOB, "carol": CAROL}
    with contextlib.ExitStack() as stack:
        bus = stack.enter_context(system_bus(users=users, groups={"lab": ("carol",)}))
        stack.enter_context(polkitd(bus, rules))
        desk_kernel = stack.enter_context(desk or FakeKernel())
        pi_kernel = stack.enter_context(pi or FakeKernel())
        server = stack.enter_context(sshd(options=ssh_options))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="usbipsshd-test-")))
        folder.chmod(0o755)
        (folder / "known_hosts").write_text("")
        made = World(bus, desk_kernel, pi_kernel, server, folder, readable_tree())
        try:
            made.start_daemon()
            yield made
            if made.daemon is not None:
                assert made.stop_daemon() == 0
            made.check_clean()
        except BaseException:
            sys.stderr.write(made.log())
            raise
        finally:
            if made.daemon is not None:
                made.daemon.kill()
                made.daemon.wait()
            if made.tree != Path(__file__).parents[2]:
                shutil.rmtree(made.tree, ignore_errors=True)
