# SPDX-License-Identifier: GPL-3.0-or-later
"""A private system bus with the project's real policy, and the real polkitd on it.

Both daemons run in mount namespaces of their own, where the folders that polkitd reads and the
list of users are ours: the machine itself is not changed. Needs root. ::

    with system_bus(users={"alice": 61001}) as bus, polkitd(bus, rules="…") as polkit:
        bus.busctl(61001, "call", "org.usbipssh1", …)
"""

from __future__ import annotations

import asyncio
import os
import select
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from usbipsshd.bus.wire import library

CHECKOUT = Path(__file__).resolve().parents[2]
USERS = {"alice": 61001, "bob": 61002}
LIMIT = 90.0
"""Seconds that anything here may take."""

_PolkitPolicy = "/usr/share/dbus-1/system.d/org.freedesktop.PolicyKit1.conf"

# As /usr/share/dbus-1/system.conf, but for where it listens and which services it knows.
_CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path={socket}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <deny own="*"/>
    <deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus" send_interface="org.freedesktop.DBus"/>
    <allow send_destination="org.freedesktop.DBus"
           send_interface="org.freedesktop.DBus.Introspectable"/>
    <allow send_destination="org.freedesktop.DBus"
           send_interface="org.freedesktop.DBus.Properties"/>
  </policy>
  <policy user="root">
    <allow own="org.freedesktop.systemd1"/>
    <allow own="org.freedesktop.login1"/>
    <allow send_destination="org.freedesktop.systemd1"/>
    <allow send_destination="org.freedesktop.login1"/>
  </policy>
  {includes}
  {answers}
</busconfig>
"""


# For a bus that lets everybody answer whatever they were not asked.
_ANY_ANSWER = """<policy context="mandatory">
  <allow send_requested_reply="false" send_type="method_return"/>
  <allow send_requested_reply="false" send_type="error"/>
  <allow receive_requested_reply="false" receive_type="method_return"/>
  <allow receive_requested_reply="false" receive_type="error"/>
</policy>"""


@dataclass
class SystemBus:
    """A running private bus."""

    folder: Path
    socket: Path
    pid: int
    mounts: list[tuple[Path, str]] = field(default_factory=list)

    @property
    def address(self) -> str:
        """For DBUS_SYSTEM_BUS_ADDRESS."""
        return f"unix:path={self.socket}"

    def spawn(self, argv: list[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start a program in a mount namespace where this bus's users and polkit folders are."""
        binds = [f"mount --bind '{ours}' '{theirs}'" for ours, theirs in self.mounts]
        script = " && ".join([*binds, 'exec "$@"'])
        return subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh", *argv],
            env={"PATH": os.environ["PATH"], "DBUS_SYSTEM_BUS_ADDRESS": self.address},
            stdin=subprocess.DEVNULL,
            **options,
        )

    def run_as(
        self, uid: int, *argv: str, timeout: float = LIMIT, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program as ``uid``, without groups, and return what it did."""
        return subprocess.run(
            ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", *argv],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            cwd="/",
            env={
                "PATH": os.environ["PATH"],
                "DBUS_SYSTEM_BUS_ADDRESS": self.address,
                "LC_ALL": "C.UTF-8",
                **(env or {}),
            },
        )

    def busctl(
        self, uid: int, *args: str, interactive: bool = False, timeout: float = LIMIT
    ) -> subprocess.CompletedProcess[str]:
        """Run busctl on this bus as ``uid``."""
        allow = "yes" if interactive else "no"
        return self.run_as(
            uid,
            "busctl",
            f"--address={self.address}",
            f"--allow-interactive-authorization={allow}",
            f"--timeout={timeout:.0f}",
            *args,
            timeout=timeout + 5,
        )

    def connect(self, uid: int = 0) -> Any:
        """A client of the library's own, from this process, that the bus takes for ``uid``'s.

        To be used inside a running loop; ``await client.connect()`` is still to do.
        """
        os.seteuid(uid)
        try:
            # The bus takes the credentials of the moment when the socket is connected.
            return library("aio").MessageBus(
                bus_address=self.address, auth=_auth(uid), negotiate_unix_fd=True
            )
        finally:
            os.seteuid(0)


def _auth(uid: int) -> Any:
    auth = library("auth").AuthExternal()

    def start(negotiate_unix_fd: bool = False) -> str:
        auth.negotiate_unix_fd = negotiate_unix_fd
        return f"AUTH EXTERNAL {str(uid).encode().hex()}"

    auth._authentication_start = start
    return auth


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(LIMIT)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(LIMIT)


def _read_line(fd: int) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([fd], [], [], LIMIT)
        data = os.read(fd, 1) if ready else b""
        if not data:
            raise RuntimeError("the program ended, or said nothing")
        line += data
    return line


@contextmanager
def system_bus(
    users: Mapping[str, int] | None = None,
    groups: Mapping[str, tuple[str, ...]] | None = None,
    *,
    any_answer: bool = False,
) -> Iterator[SystemBus]:
    """A dbus-daemon of type system that loads dbus/org.usbipssh1.conf and polkit's policy.

    ``users`` are known to it and to polkitd by name, ``groups`` have them as members. A
    dbus-daemon hangs up on a uid that it does not know, so who calls must be among them.
    ``any_answer``: the bus passes on answers that nobody asked for, as a real one does not.
    """
    folder = Path(tempfile.mkdtemp(prefix="usbipsshd-bus-"))
    folder.chmod(0o755)
    bus = SystemBus(folder, folder / "socket", 0)
    try:
        _accounts(bus, USERS if users is None else users, groups or {})
        includes = [CHECKOUT / "dbus/org.usbipssh1.conf", Path(_PolkitPolicy)]
        for number, include in enumerate(includes):
            shutil.copy(include, folder / f"{number}.conf")
        text = _CONFIG.format(
            socket=bus.socket,
            answers=_ANY_ANSWER if any_answer else "",
            includes="".join(
                f"<include>{folder}/{number}.conf</include>" for number in range(len(includes))
            ),
        )
        config = folder / "bus.conf"
        config.write_text(text)
        read, write = os.pipe()
        process = bus.spawn(
            [
                "dbus-daemon",
                f"--config-file={config}",
                "--nofork",
                "--nopidfile",
                "--nosyslog",
                f"--print-address={write}",
            ],
            pass_fds=[write],
        )
        os.close(write)
        try:
            _read_line(read)
            bus.pid = process.pid
            yield bus
        finally:
            os.close(read)
            _stop(process)
    finally:
        shutil.rmtree(folder)


def _accounts(
    bus: SystemBus, users: Mapping[str, int], groups: Mapping[str, tuple[str, ...]]
) -> None:
    passwd = Path("/etc/passwd").read_text()
    group = Path("/etc/group").read_text()
    for name, uid in users.items():
        passwd += f"{name}:x:{uid}:{uid}::/nonexistent:/usr/sbin/nologin\n"
        group += f"{name}:x:{uid}:\n"
    for number, (name, members) in enumerate(groups.items()):
        group += f"{name}:x:{61900 + number}:{','.join(members)}\n"
    for name, text in (("passwd", passwd), ("group", group)):
        file = bus.folder / name
        file.write_text(text)
        file.chmod(0o644)
        bus.mounts.append((file, f"/etc/{name}"))


@dataclass
class Polkit:
    """A running polkitd."""

    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        """End it; twice is once."""
        _stop(self.process)

    def freeze(self) -> None:
        """Make it answer nothing more."""
        os.kill(self.process.pid, 19)

    def thaw(self) -> None:
        """Undo :meth:`freeze`."""
        os.kill(self.process.pid, 18)


@contextmanager
def polkitd(bus: SystemBus, rules: str = "") -> Iterator[Polkit]:
    """The real polkitd with polkit/org.usbipssh1.policy, and ``rules`` as the only rules."""
    place = bus.folder / f"polkit-{uuid.uuid4().hex[:8]}"
    actions, ours, empty = place / "actions", place / "rules.d", place / "empty"
    for made in (place, actions, ours, empty):
        made.mkdir(mode=0o755)
    shutil.copy(CHECKOUT / "polkit/org.usbipssh1.policy", actions)
    (ours / "50-test.rules").write_text(rules)
    for file in (*actions.iterdir(), *ours.iterdir()):
        file.chmod(0o644)
    mounts = bus.mounts
    bus.mounts = [
        *mounts,
        (actions, "/usr/share/polkit-1/actions"),
        (ours, "/etc/polkit-1/rules.d"),
        (empty, "/usr/share/polkit-1/rules.d"),
    ]
    try:
        with _log(place / "log") as log:
            process = bus.spawn(["/usr/lib/polkit-1/polkitd"], stdout=log, stderr=log)
    finally:
        bus.mounts = mounts
    polkit = Polkit(process)
    try:
        asyncio.run(wait_for_name(bus, "org.freedesktop.PolicyKit1"))
        yield polkit
    finally:
        if process.poll() is None:
            polkit.thaw()
        polkit.stop()


@contextmanager
def _log(path: Path) -> Iterator[Any]:
    with path.open("wb") as file:
        yield file


async def wait_for_name(bus: SystemBus, name: str) -> None:
    """Wait until ``name`` has an owner."""
    client = bus.connect()
    here = asyncio.Event()

    def seen(message: Any) -> None:
        if message.member == "NameOwnerChanged" and message.body[0] == name and message.body[2]:
            here.set()

    client.add_message_handler(seen)
    await client.connect()
    try:
        rule = (
            f"type='signal',sender='org.freedesktop.DBus',member='NameOwnerChanged',arg0='{name}'"
        )
        await bus_call(client, "AddMatch", "s", rule)
        if not (await bus_call(client, "NameHasOwner", "s", name)).body[0]:
            async with asyncio.timeout(LIMIT):
                await here.wait()
    finally:
        client.disconnect()
        await client.wait_for_disconnect()


async def bus_call(client: Any, member: str, signature: str = "", *args: object) -> Any:
    """Call the bus itself from a library client."""
    return await client_call(
        client,
        "org.freedesktop.DBus",
        "/org/freedesktop/DBus",
        "org.freedesktop.DBus",
        member,
        signature,
        *args,
    )


async def client_call(  # noqa: PLR0917
    client: Any,
    destination: str,
    path: str,
    interface: str | None,
    member: str,
    signature: str = "",
    *args: object,
    flags: int = 0,
    fds: tuple[int, ...] = (),
) -> Any:
    """Call from a library client and return the answer, an error or not."""
    message = library("message").Message(
        destination=destination,
        path=path,
        interface=interface,
        member=member,
        signature=signature,
        body=list(args),
        flags=library("constants").MessageFlag(flags),
        unix_fds=list(fds),
    )
    async with asyncio.timeout(LIMIT):
        return await client.call(message)


def _start_time(pid: int) -> int:
    # Field 22 of proc_pid_stat(5), counted after the name, which may hold anything.
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


@dataclass
class Agent:
    """A polkit authentication agent for callers in this process.

    ``decide`` is called for each question with the action and its message. True and False answer
    it; None leaves it open until it is withdrawn.
    """

    bus: SystemBus
    uid: int
    decide: Callable[[str, str], bool | None]
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Action and message of every question."""
    open: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once a question has been put."""
    withdrawn: asyncio.Event = field(default_factory=asyncio.Event)
    client: Any = None
    _waiting: dict[str, Any] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    _PATH = "/org/usbipssh1/test/agent"

    async def __aenter__(self) -> Agent:
        self.client = self.bus.connect()
        self.client.add_message_handler(self._on_message)
        await self.client.connect()
        variant = library("signature").Variant
        pid = os.getpid()
        subject = [
            "unix-process",
            {
                "pid": variant("u", pid),
                "start-time": variant("t", _start_time(pid)),
                "uid": variant("i", self.uid),
            },
        ]
        await self._polkit(
            "RegisterAuthenticationAgent", "(sa{sv})ss", subject, "C.UTF-8", self._PATH
        )
        return self

    async def __aexit__(self, *exc: object) -> None:
        try:
            await asyncio.gather(*self._tasks)
        finally:
            self.client.disconnect()
            await self.client.wait_for_disconnect()

    async def _polkit(self, member: str, signature: str, *args: object) -> None:
        answer = await client_call(
            self.client,
            "org.freedesktop.PolicyKit1",
            "/org/freedesktop/PolicyKit1/Authority",
            "org.freedesktop.PolicyKit1.Authority",
            member,
            signature,
            *args,
        )
        if answer.error_name:
            raise RuntimeError(f"{member}: {answer.error_name}: {answer.body}")

    def _on_message(self, message: Any) -> Any:
        if message.interface != "org.freedesktop.PolicyKit1.AuthenticationAgent":
            return None
        made = library("message").Message
        if message.member == "CancelAuthentication":
            self.withdrawn.set()
            begun = self._waiting.pop(message.body[0], None)
            if begun is not None:
                self.client.send(made.new_error(begun, "org.freedesktop.DBus.Error.Failed", "no"))
            return made.new_method_return(message)
        action, text, _icon, _details, cookie, identities = message.body
        self.asked.append((action, text))
        self.open.set()
        decision = self.decide(action, text)
        if decision is None:
            self._waiting[cookie] = message
        else:
            task = asyncio.get_running_loop().create_task(
                self._answer(message, cookie, identities, decision)
            )
            self._tasks.add(task)
        return True

    async def _answer(self, message: Any, cookie: str, identities: Any, yes: bool) -> None:
        made = library("message").Message
        if yes:
            # What polkit's helper says, as root, once the password was right. The uid is that of
            # the agent, not of who is asked.
            await self._polkit(
                "AuthenticationAgentResponse2", "us(sa{sv})", os.getuid(), cookie, identities[0]
            )
        self.client.send(made.new_method_return(message))
