# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent as a test has it: started under a shell, asked, and looked after to its end."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fakekernel import SERIAL_ADAPTER, STICK, FakeDevice, FakeKernel

from usbipsshd.session import script

AGENT = ("-c", script.travelling().decode(), "usbipssh-agent")
"""A shell's arguments: the agent as it is sent."""
SHELLS = ("dash", "bash", "busybox sh")
TOKEN = "0123456789abcdef" * 2
SECONDS = 60.0
PATIENCE = 90
"""Seconds without a request until an agent ends, where a test is not about that: it sends no ping,
and may be held up by a machine that is busy."""
SILENCE = 8
"""The same where a test is about that."""
CONNECTORS = ("perl", "python3", "socat", "ncat", "bash", "busybox")


class Agent:
    """An agent and what it says."""

    def __init__(
        self,
        shell: str,
        root: Path,
        silence: int = PATIENCE,
        wrap: Sequence[str] = (),
        environment: dict[str, str] | None = None,
    ) -> None:
        arguments = [*AGENT, str(root), str(silence)]
        self.process = subprocess.Popen(
            [*wrap, *shell.split(), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
        self._buffer = b""
        self._tag = 0
        self.hello = self.line()

    def line(self) -> bytes:
        """The next line, without its newline."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + SECONDS
        while b"\n" not in self._buffer:
            left = max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select([self.process.stdout], [], [], left)
            assert ready, f"no answer; so far {self._buffer!r}"
            data = os.read(self.process.stdout.fileno(), 65536)
            assert data, f"the agent ended; so far {self._buffer!r}"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def send(self, text: str) -> None:
        """Write to the agent as it is."""
        self.send_bytes(text.encode())

    def send_bytes(self, data: bytes) -> None:
        """Write to the agent as it is."""
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def start(self, request: str) -> str:
        """Send a request; its tag."""
        self._tag += 1
        self.send(f"{self._tag} {request}\n")
        return str(self._tag)

    def ask(self, request: str) -> list[bytes]:
        """Send a request; all lines of its answer, without the tag."""
        return self.answers([self.start(request)])[0]

    def answers(self, tags: Sequence[str]) -> list[list[bytes]]:
        """The answers to several requests under way."""
        found: dict[str, list[bytes]] = {tag: [] for tag in tags}
        left = set(tags)
        while left:
            tag, _, rest = self.line().partition(b" ")
            found[tag.decode()].append(rest)
            if rest == b"ok" or rest.startswith(b"fail "):
                left.remove(tag.decode())
        return [found[tag] for tag in tags]

    def fails(self, request: str) -> str:
        """The code and detail that a request fails with."""
        last = self.ask(request)[-1].decode()
        assert last.startswith("fail "), last
        return last.removeprefix("fail ")

    def bind(self, pi: FakeKernel, busid: str, device: FakeDevice, unmount: int = 1) -> Path:
        """Export a device; the folder."""
        answer = self.ask(bind_request(pi, busid, device, unmount))
        assert answer[-1] == b"ok", answer
        return Path(answer[0].removeprefix(b"dir ").decode())

    def living(self) -> list[str]:
        """The processes of the agent's session that still run."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                name, _, rest = stat.read_text(errors="replace").rpartition(")")
                fields = rest.split()
                if fields[0] not in "ZX" and int(fields[3]) == self.process.pid:
                    found.append(name)
        return found

    def end(self) -> None:
        """Close its input and wait until it and all that it started are gone."""
        if self.process.stdin is not None and not self.process.stdin.closed:
            self.process.stdin.close()
        self.wait_gone()

    def close(self) -> None:
        """End it and drop what is left of it."""
        try:
            self.end()
        finally:
            self.discard()

    def wait_gone(self, seconds: float = SECONDS) -> None:
        """Wait until nothing of it runs; what it wrote to standard error must be nothing."""
        self.process.wait(seconds)
        deadline = time.monotonic() + SECONDS
        while self.living():
            assert time.monotonic() < deadline, self.living()
            time.sleep(0.01)
        assert self.process.stderr is not None
        assert self.process.stderr.read() == b""

    def discard(self) -> None:
        """After a test: kill what may be left of its session."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


def bind_request(pi: FakeKernel, busid: str, device: FakeDevice, unmount: int = 1) -> str:
    told = pi.state()["devices"][busid]
    ids = f"{device.vendor_id:04x} {device.product_id:04x} {told['busnum']} {told['devnum']}"
    return f"bind {busid} {ids} {unmount}"


def write_to_drivers(pi: FakeKernel, *writes: str) -> None:
    """Write as another program would: each ``FILE TEXT``, FILE below the drivers' folder."""
    for write in writes:
        file, _, text = write.partition(" ")
        (pi.root / "bus/usb/drivers" / file).write_text(text)


def export_as_usbip_does(pi: FakeKernel, busid: str) -> None:
    """What usbip(8) writes to export a device."""
    write_to_drivers(
        pi, f"usb/unbind {busid}", f"usbip-host/match_busid add {busid}", f"usbip-host/bind {busid}"
    )


def reached(agent: Agent, request: str, kind: str, place: Path) -> tuple[str, socket.socket]:
    """Send a request that has a connector connect, to ``place`` if it can.

    Its tag, and the end that ssh would forward. ``kind`` may end in ``/tcp``.
    """
    kind, _, way = kind.partition("/")
    if kind in ("bash", "busybox") or way:
        listener = socket.create_server(("127.0.0.1", 0))
        address = str(listener.getsockname()[1])
    else:
        listener = socket.socket(socket.AF_UNIX)
        address = str(place)
        listener.bind(address)
        listener.listen()
    with listener:
        listener.settimeout(SECONDS)
        tag = agent.start(f"{request} {kind} {address} {TOKEN}")
        end, _ = listener.accept()
    end.settimeout(SECONDS)
    assert end.recv(33, socket.MSG_WAITALL) == TOKEN.encode() + b"\n"
    return tag, end


def connect(agent: Agent, busid: str, kind: str, folder: Path) -> socket.socket:
    """Have an exported device connected; the other end."""
    tag, end = reached(agent, f"connect {busid}", kind, folder / f"socket-{busid}")
    assert agent.answers([tag]) == [[b"ok"]]
    return end


def parse(lines: Sequence[bytes]) -> dict[str, dict[str, list[str]]]:
    """Devices of a listing: attributes and nodes of device and interfaces, by bus id."""
    devices: dict[str, dict[str, list[str]]] = {}
    prefix, now = "", {}
    for line in lines:
        kind, _, rest = line.decode("utf-8", "surrogateescape").partition(" ")
        name, _, value = rest.partition(" ")
        if kind == "d":
            now = devices.setdefault(rest, {})
            prefix = ""
        elif kind == "i":
            prefix = f"{int(prefix[:-1] or -1) + 1}/"
        elif kind == "a":
            now.setdefault(prefix + name, []).append(value)
        elif kind == "n":
            now.setdefault(prefix + "node", []).append(rest)
        elif kind == "x":
            now.setdefault("x", []).append(rest)
    return devices


def export_two(agent: Agent, pi: FakeKernel) -> tuple[Path, socket.socket]:
    pi.plug("1-1", SERIAL_ADAPTER)
    pi.plug("2-1", STICK)
    folder = agent.bind(pi, "1-1", SERIAL_ADAPTER)
    agent.bind(pi, "2-1", STICK)
    return folder, connect(agent, "1-1", "perl", folder)


def check_given_back(pi: FakeKernel, folder: Path) -> None:
    pi.check_clean()
    assert {d["driver"] for d in pi.state()["devices"].values()} == {"usb"}
    assert not folder.exists()


def without(names: Sequence[str]) -> tuple[str, ...]:
    """A prefix that hides programs in a mount namespace of its own."""
    hide = "; ".join(
        f"for f in /usr/bin/{n} /bin/{n} /usr/local/bin/{n}; do "
        '[ ! -e "$f" ] || mount --bind /dev/null "$f"; done'
        for n in names
    )
    return ("unshare", "-m", "sh", "-c", f'{hide}; exec "$@"', "sh")


def in_every_shell(body: Callable[[Agent, FakeKernel], None]) -> None:
    """Run a slow test under all shells side by side; the agents end after SILENCE."""
    with contextlib.ExitStack() as stack, ThreadPoolExecutor() as pool:
        kernels = [stack.enter_context(FakeKernel(modules=("usbip-host",))) for _ in SHELLS]
        agents = [Agent(s, k.root, silence=SILENCE) for s, k in zip(SHELLS, kernels, strict=True)]
        try:
            list(pool.map(body, agents, kernels))
        finally:
            for agent in agents:
                agent.discard()
