# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything at once, without a virtual machine: bus, polkit, daemon, sshd, agent, two kernels."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fakekernel import FakeKernel
from integration.busfixtures import Polkit, SystemBus, polkitd, system_bus, wait_for_name
from integration.calls import Answer, Pending, busctl_line, finished
from integration.fakesystemd import FakeSystemd
from integration.sessions import SESSION_UID, readable_tree
from integration.sshd import Sshd, sshd

NAME = "org.usbipssh1"
ROOT = "/org/usbipssh1"
MANAGER = "org.usbipssh1.Manager"
ATTACHMENT = "org.usbipssh1.Attachment"
REMOTE = "org.usbipssh1.Remote"
ERROR = "org.usbipssh1.Error."
STANDARD = "org.freedesktop.DBus.Error."
STANDARD_PROPERTIES = "org.freedesktop.DBus.Properties"
STANDARD_CODES = frozenset(
    {
        "AccessDenied", "InteractiveAuthorizationRequired", "InvalidArgs", "UnknownObject",
        "LimitsExceeded", "NotSupported", "UnknownMethod", "UnknownInterface", "UnknownProperty",
        "PropertyReadOnly",
    }
)  # fmt: skip

Pids = list[int]
Names = list[str]
Tasks = list[tuple[str, Names]]
"""Under other names, for World has a list of its own."""

LONG = 60.0
"""Seconds of a made-up kernel's delay that the test itself ends, once it has done something."""

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


@dataclass
class World:
    """One machine that imports, one that exports, and the daemon between them."""

    bus: SystemBus
    desk: FakeKernel
    pi: FakeKernel
    ssh: Sshd
    folder: Path
    tree: Path
    polkit: Polkit
    daemon: subprocess.Popen[bytes] | None = None
    environment: dict[str, str] = field(default_factory=dict)
    systemd: FakeSystemd | None = None
    run_folders: list[Path] = field(default_factory=list)
    """What is /run on the machines of :mod:`integration.otherremotes`."""

    def spawn_daemon(self) -> subprocess.Popen[bytes]:
        """Start a daemon; it may not have come far."""
        program = Path(__file__).with_name("daemon_under_test.py")
        arguments = [
            "--sys", self.desk.root, "--control", self.desk.control,
            "--agent-sysfs", self.pi.root, "--folder", self.folder,
            "--tree", self.tree, "--session-user", str(SESSION_UID),
        ]  # fmt: skip
        kept: list[int] = []
        if self.systemd is not None:
            arguments += self.systemd.arguments()
            kept = list(self.systemd.stored.values())
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
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
                pass_fds=kept,
            )

    def start_daemon(self) -> None:
        """Start the daemon and wait for its name."""
        self.daemon = self.spawn_daemon()
        asyncio.run(wait_for_name(self.bus, NAME))

    def stop_daemon(self, number: int = signal.SIGTERM) -> int:
        """Stop it; its exit status."""
        assert self.daemon is not None
        self.daemon.send_signal(number)
        status = self.daemon.wait(120)
        self.daemon = None
        return status

    def driver(self, path: str, *patterns: str) -> None:
        """Tell the importing machine's kernel tables of a module and what it knows.

        ``path`` as in modules.dep; patterns as in modules.alias, without ``usb:``.
        """
        folder = self.folder / "modules" / os.uname().release
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "modules.dep").open("a") as file:
            file.write(f"{path}:\n")
        module = Path(path).name.split(".")[0]
        with (folder / "modules.alias").open("a") as file:
            file.writelines(f"alias usb:{pattern} {module}\n" for pattern in patterns)

    def log(self) -> str:
        """What the daemon and its sessions wrote."""
        return (self.folder / "log").read_text(errors="replace")

    def journal(self) -> list[dict[str, str]]:
        """What the daemon wrote with journald's fields."""
        path = self.folder / "journal"
        text = path.read_text() if path.exists() else ""
        # The last line may be half written.
        return [json.loads(line) for line in text.splitlines(keepends=True) if line[-1] == "\n"]

    def begin(
        self,
        uid: int,
        member: str,
        *args: str,
        path: str = ROOT,
        interface: str = MANAGER,
        interactive: bool = False,
    ) -> Pending:
        """Start a call as ``uid`` with busctl, a process of its own, and don't wait for it."""
        line = busctl_line(
            self.bus.address, uid, "call", NAME, path, interface, member, *args,
            interactive=interactive,
        )  # fmt: skip
        return Pending(line)

    def ask(
        self, uid: int, member: str, *args: str, path: str = ROOT, interface: str = MANAGER
    ) -> Answer:
        """Call and return what comes, an error or not."""
        return self.begin(uid, member, *args, path=path, interface=interface).answer()

    def call(
        self, uid: int, member: str, *args: str, path: str = ROOT, interface: str = MANAGER
    ) -> Any:
        """Call and return what it returns, unwrapped; raise :exc:`integration.calls.CallError`."""
        return self.ask(uid, member, *args, path=path, interface=interface).value()

    def error(
        self, uid: int, member: str, *args: str, path: str = ROOT, interface: str = MANAGER
    ) -> tuple[str, str]:
        """Call and return name and message of the error that must come."""
        answer = self.ask(uid, member, *args, path=path, interface=interface)
        assert answer.error, f"no error but {answer.data}"
        return answer.error, answer.message

    def refused(
        self,
        code: str,
        uid: int,
        member: str,
        *args: str,
        says: str = "",
        path: str = ROOT,
        interface: str = MANAGER,
    ) -> str:
        """Call; the error ``code`` must come, with a message fit for people that has ``says``."""
        answer = self.ask(uid, member, *args, path=path, interface=interface)
        return check_refusal(answer, code, says)

    def get(self, path: str, interface: str, name: str) -> Any:
        """A property."""
        line = busctl_line(self.bus.address, 0, "get-property", NAME, path, interface, name)
        return finished(line).value()

    def get_all(self, path: str, interface: str) -> dict[str, Any]:
        """All properties of an interface, as anybody may read them."""
        values: dict[str, Any] = self.call(
            BOB, "GetAll", "s", interface, path=path, interface=STANDARD_PROPERTIES
        )
        return values

    def objects(self) -> list[str]:
        """All object paths that the ObjectManager knows."""
        manager = "org.freedesktop.DBus.ObjectManager"
        return sorted(self.call(BOB, "GetManagedObjects", interface=manager))

    def attachments(self) -> list[str]:
        """The attachments' paths."""
        return [p for p in self.objects() if p.startswith(f"{ROOT}/attachment/")]

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
        """Attach; the attachment's path. ``options`` as busctl takes them."""
        count = str(len(options) // 3)
        path: str = self.call(uid, "Attach", "ssa{sv}", remote, pattern, count, *options)
        return path

    def detach_all(self) -> None:
        """Detach everything, hubs too, whoever attached it; starts a daemon where there is none."""
        if self.daemon is None:
            self.start_daemon()
        self.call(0, "Detach", "sa{sv}", "all", "0")

    def unplug_all(self) -> None:
        """Pull out what is plugged in on pi."""
        for busid in self.pi.state()["devices"]:
            if not busid.startswith("usb") and busid in self.pi.state()["devices"]:
                self.pi.unplug(busid)

    def check_clean(self, seconds: float = 60, *, held: bool = False) -> None:
        """Nothing is left of anything, on either machine; waits ``seconds`` for that.

        With ``held`` a daemon was killed, and what comes to its buses waits for the next one.
        """
        # A name is taken out a moment after its device was given back.
        for kernel in (self.pi, self.desk):
            kernel.wait(
                lambda s: (
                    not s["bound"] and not s["connected"] and set(s["matched"]) <= set(s["parked"])
                ),
                seconds,
            )
            kernel.wait(lambda s: not s["ports"])
        for kernel in (self.desk, self.pi):
            kernel.check_clean()
        if not held:
            self.desk.wait(lambda s: set(map(int, s["authorized_default"].values())) == {1})
        self.pi.wait(lambda s: {d["driver"] for d in s["devices"].values()} <= {"usb"})

    def check_nothing_left_there(self) -> None:
        """Once the sessions have ended, no agent, no folder of one and no socket is left there."""
        for pid in self.sessions():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not self.agents(), "an agent is left")
        for folder in self.run_folders:
            left = [str(p) for p in folder.glob("usbipssh.*")]
            assert not left, left

    def agents(self) -> Pids:
        """Pids of the agents on the exporting machine."""
        return [
            pid
            for pid, words in command_lines()
            if b"usbipssh-agent" in words and os.fsencode(self.pi.root) in words
        ]

    def sessions(self) -> Pids:
        """Pids of the daemon's session processes."""
        return [
            pid
            for pid, words in command_lines()
            if b"usbipsshd.session" in words
            and os.fsencode(self.pi.root) in words
            and not words[0].endswith(b"setpriv")
        ]

    def tasks(self) -> Names:
        """Names of the daemon's tasks that run now."""
        return [name for name, _ in self._tasks()]

    def within(self, task: str, function: str) -> bool:
        """Whether a task of that name is in a function: ``Class.method``."""
        return any(name == task and function in inside for name, inside in self._tasks())

    def _tasks(self) -> Tasks:
        assert self.daemon is not None
        fifo = self.folder / "tasks"
        if not fifo.exists():
            os.mkfifo(fifo)
        fd = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        try:
            self.daemon.send_signal(signal.SIGUSR1)
            told = b""
            while True:
                assert select.select([fd], [], [], 60)[0], "the daemon does not tell"
                if not (data := os.read(fd, 65536)):
                    break
                told += data
        finally:
            os.close(fd)
        return [(name, inside) for name, inside in json.loads(told)]

    def resident(self) -> int:
        """KiB of memory that the daemon has."""
        assert self.daemon is not None
        lines = Path(f"/proc/{self.daemon.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

    def descriptors(self) -> int:
        """How many files the daemon has open."""
        assert self.daemon is not None
        return len(list(Path(f"/proc/{self.daemon.pid}/fd").iterdir()))


def command_lines() -> list[tuple[int, list[bytes]]]:
    """Pid and arguments of every process."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found.append((int(folder.name), (folder / "cmdline").read_bytes().split(b"\0")))
    return found


def wait_until(condition: Callable[[], object], what: str, seconds: float = 60) -> None:
    """Wait for something that sends no event."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def check_refusal(answer: Answer, code: str, says: str = "") -> str:
    """The answer is this error, and its message is one sentence for a person; the message."""
    prefix = STANDARD if code in STANDARD_CODES else ERROR
    assert answer.error == prefix + code, (answer.error, answer.message, answer.data)
    message = answer.message
    assert says in message, message
    assert message.endswith("."), message
    assert 10 < len(message) < 400, message
    assert message.isprintable(), message
    # A path, a traceback, a Python value: nothing of the inside.
    assert not re.search(r"(^|[\s'\"(])/[a-z]|Traceback|\w+Error\b|\bNone\b|<[a-z]", message), (
        message
    )
    return message


@contextlib.contextmanager
def world(
    *,
    rules: str = RULES,
    ssh_options: Sequence[str] = (),
    desk: FakeKernel | None = None,
    pi: FakeKernel | None = None,
    with_systemd: bool = False,
    more_users: Mapping[str, int] | None = None,
    any_answer: bool = False,
) -> Iterator[World]:
    """Start everything; what was started is stopped, and the log shown if the test failed.

    ``more_users`` may call, beside Alice, Bob and Carol.
    ``any_answer``: see :func:`system_bus`.
    ``with_systemd``: sessions are started, and outlive the daemon, as under systemd.
    """
    users = {"alice": ALICE, "bob": BOB, "carol": CAROL, **(more_users or {})}
    with contextlib.ExitStack() as stack:
        bus = stack.enter_context(
            system_bus(users=users, groups={"lab": ("carol",)}, any_answer=any_answer)
        )
        polkit = stack.enter_context(polkitd(bus, rules))
        desk_kernel = stack.enter_context(desk or FakeKernel())
        pi_kernel = stack.enter_context(pi or FakeKernel())
        server = stack.enter_context(sshd(options=ssh_options))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="usbipsshd-test-")))
        folder.chmod(0o755)
        (folder / "known_hosts").write_text("")
        made = World(bus, desk_kernel, pi_kernel, server, folder, readable_tree(), polkit)
        if with_systemd:
            systemd = FakeSystemd(folder, desk_kernel.root, pi_kernel.root, made.tree, SESSION_UID)
            made.systemd = stack.enter_context(systemd.running())
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
