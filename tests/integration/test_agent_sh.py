# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent under the shells that remotes have, over a made-up kernel."""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fakekernel import (
    BLUETOOTH,
    HUB,
    KEYBOARD,
    NETWORK,
    SERIAL_ADAPTER,
    STICK,
    FakeDevice,
    FakeKernel,
)

from usbipsshd.session import script

AGENT = ("-c", script.travelling().decode(), "usbipssh-agent")
"""A shell's arguments: the agent as it is sent."""
SHELLS = ("dash", "bash", "busybox sh")
TOKEN = "0123456789abcdef" * 2
SECONDS = 30.0
EXPORT = (
    ("usb/unbind", "1-1"),
    ("usbip-host/match_busid", "add 1-1"),
    ("usbip-host/bind", "1-1"),
)
"""What usbip(8) writes to export 1-1, by files of the drivers' folder."""


class Agent:
    """An agent and what it says."""

    def __init__(
        self,
        shell: str,
        root: Path,
        silence: int | None = None,
        wrap: Sequence[str] = (),
        environment: dict[str, str] | None = None,
    ) -> None:
        arguments = [*AGENT, str(root)] + ([str(silence)] if silence else [])
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
        deadline = time.monotonic() + 5
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


@pytest.fixture(scope="module")
def kernel() -> Iterator[FakeKernel]:
    with FakeKernel(modules=("usbip-host",)) as one:
        yield one


@pytest.fixture
def pi(kernel: FakeKernel) -> FakeKernel:
    """The exporting machine, with nothing plugged in."""
    kernel.reset()
    return kernel


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def agent(shell: str, pi: FakeKernel) -> Iterator[Agent]:
    """An agent; afterwards nothing may be left of it or of what it did."""
    one = Agent(shell, pi.root)
    try:
        yield one
        one.end()
        pi.check_clean()
        for device in pi.state()["devices"].values():
            assert device["driver"] == "usb"
    finally:
        one.discard()


def connect(agent: Agent, busid: str, kind: str, folder: Path) -> socket.socket:
    """Have a connector connect; the end that ssh would forward. ``kind`` may end in ``/tcp``."""
    kind, _, way = kind.partition("/")
    if kind in ("bash", "busybox") or way:
        listener = socket.create_server(("127.0.0.1", 0))
        address = str(listener.getsockname()[1])
    else:
        listener = socket.socket(socket.AF_UNIX)
        address = str(folder / f"socket-{busid}")
        listener.bind(address)
        listener.listen()
    with listener:
        listener.settimeout(SECONDS)
        tag = agent.start(f"connect {busid} {kind} {address} {TOKEN}")
        end, _ = listener.accept()
        assert agent.answers([tag]) == [[b"ok"]]
    end.settimeout(SECONDS)
    assert end.recv(33, socket.MSG_WAITALL) == TOKEN.encode() + b"\n"
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


# --- listing -----------------------------------------------------------------------------


def test_hello_tells_of_the_remote(agent: Agent) -> None:
    words = agent.hello.decode().split(" ")
    assert words[:3] == ["hello", "1", "0"]
    assert words[3] == os.uname().release
    assert words[4] == "debian"
    # What this machine has, best first.
    names = ("perl", "python3", "socat", "ncat", "bash")
    assert words[5] == ",".join(name for name in names if shutil.which(name))
    assert len(words) == 6


def test_list_tells_everything_about_every_device(agent: Agent, pi: FakeKernel) -> None:
    pi.plug("1-1", HUB)
    pi.plug("1-1.3", KEYBOARD)
    pi.plug("2-1", STICK)
    pi.plug("2-2", NETWORK)
    answer = agent.ask("list")
    assert answer[-1] == b"ok"
    assert b"b 1 0000:00:14.0" in answer
    devices = parse(answer)
    assert sorted(devices) == ["1-1", "1-1.3", "2-1", "2-2"]
    keyboard = devices["1-1.3"]
    assert keyboard["idVendor"] == ["046d"]
    assert keyboard["manufacturer"] == ["Logitech"]
    assert keyboard["speed"] == ["1.5"]
    assert keyboard["driver"] == ["usb"]
    assert "serial" not in keyboard
    assert keyboard["0/driver"] == ["usbhid"]
    assert keyboard["0/bInterfaceClass"] == ["03"]
    assert keyboard["0/node"] == ["input/event0", "hidraw0"]
    assert sorted(keyboard["1/node"]) == ["hidraw1", "input/event1", "input/event2"]
    assert devices["2-1"]["0/node"] == ["sda", "sda1"]
    assert devices["2-2"]["0/node"] == ["net/eth0"]
    assert devices["1-1"]["bDeviceClass"] == ["09"]


def test_list_with_nothing_plugged_in(agent: Agent) -> None:
    assert agent.ask("list") == [b"b 1 0000:00:14.0", b"b 2 0000:00:14.0", b"ok"]


@pytest.mark.parametrize("shell", SHELLS)
def test_one_that_goes_while_it_is_described_is_not_there(shell: str, tmp_path: Path) -> None:
    # As it looks between two of the agent's reads: the folder is there, what is in it is not.
    folder = tmp_path / "bus/usb/devices/1-9"
    folder.mkdir(parents=True)
    (folder / "descriptors").write_bytes(bytes(18))
    agent = Agent(shell, tmp_path)
    try:
        assert agent.ask("describe 1-9") == [b"fail DeviceNotFound 1-9"]
        assert agent.ask("list") == [b"ok"]
    finally:
        agent.process.communicate(timeout=SECONDS)


def test_describe_gives_the_descriptors(agent: Agent, pi: FakeKernel) -> None:
    pi.plug("1-1", BLUETOOTH)
    pi.plug("2-1", STICK)
    device = parse(agent.ask("describe 1-1"))
    assert list(device) == ["1-1"]
    assert bytes.fromhex("".join(device["1-1"]["x"])) == BLUETOOTH.descriptors
    assert agent.fails("describe 1-9") == "DeviceNotFound 1-9"


def test_long_descriptors_come_in_pieces(agent: Agent, pi: FakeKernel) -> None:
    raw = KEYBOARD.descriptors + bytes(range(2, 250)) * 12
    pi.plug("1-1", KEYBOARD.but(raw_descriptors=raw.hex()))
    pieces = parse(agent.ask("describe 1-1"))["1-1"]["x"]
    assert bytes.fromhex("".join(pieces)) == raw
    assert len(pieces) > 1
    assert all(len(p) <= 2000 for p in pieces)


NAMES = [
    "plain",
    r"back\slash \n \t \\ \040 \c \x41",
    "100%s %d %n %%",
    "$(touch /tmp/x) `id` ${HOME} ; rm -rf / & | > <",
    "* ? [a-z] ~ ! #",
    "'quote \"double\" it's",
    "Łódź 日本語 \U0001f50c",
    "\x01\x1b[31mred\x7f\x07",
    "  spaces  and\ttab ",
    "-n -e -- --help",
    "\udcff\udc80\udc81\udc88 broken \udcc3",
    "".join(chr(0xDC00 + c) for c in range(0x80, 0x100)),
    "x" * 126,
    "\uffff" * 126,
    "9 ok",
]


def test_names_come_as_they_are(agent: Agent, pi: FakeKernel) -> None:
    for number, name in enumerate(NAMES, 1):
        pi.plug(f"1-{number}", KEYBOARD.but(product=name, manufacturer=name, serial=name))
    devices = parse(agent.ask("list"))
    for number, name in enumerate(NAMES, 1):
        device = devices[f"1-{number}"]
        for attribute in ("product", "manufacturer", "serial"):
            assert device[attribute] == [name]


def test_a_name_with_a_newline_can_not_forge_a_line(agent: Agent, pi: FakeKernel) -> None:
    pi.plug("1-1", KEYBOARD.but(product="first\n1 ok\n1 d 6-6"))
    devices = parse(agent.ask("list"))
    assert list(devices) == ["1-1"]
    assert devices["1-1"]["product"] == ["first"]


def test_an_endless_name_is_left_out(agent: Agent, pi: FakeKernel) -> None:
    pi.plug("1-1", KEYBOARD.but(product="y" * 4000))
    device = parse(agent.ask("list"))["1-1"]
    assert "product" not in device
    assert device["manufacturer"] == ["Logitech"]


def test_what_is_written_is_whole_lines(shell: str, pi: FakeKernel) -> None:
    """Each write(2) ends in a newline and is short enough to stay whole on a pipe."""
    for port in range(1, 13):
        pi.plug(f"1-{port}", KEYBOARD.but(product="日本語" * 40, serial="é" * 120))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        process = subprocess.Popen(
            [*shell.split(), *AGENT, str(pi.root)],
            stdin=subprocess.PIPE,
            stdout=theirs.fileno(),
        )
        theirs.close()
        assert process.stdin is not None
        process.stdin.write(b"1 list\n2 describe 1-1\n3 list\n")
        process.stdin.flush()
        ours.settimeout(SECONDS)
        ended = 0
        while ended < 3:
            packet = ours.recv(65536)
            assert packet.endswith(b"\n")
            assert len(packet) <= 4096
            ended += len(re.findall(rb"^\d+ ok$", packet, re.MULTILINE))
        process.stdin.close()
        assert process.wait(SECONDS) == 0


# --- exporting ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        "perl",
        "python3",
        "socat",
        "ncat",
        "bash",
        "busybox",
        "perl/tcp",
        "python3/tcp",
        "socat/tcp",
        "ncat/tcp",
    ],
)
def test_export_and_give_back(agent: Agent, pi: FakeKernel, kind: str) -> None:
    pi.plug("1-1", HUB)
    pi.plug("1-1.2", SERIAL_ADAPTER)
    folder = agent.bind(pi, "1-1.2", SERIAL_ADAPTER)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert folder.parent == Path("/run")
    device = pi.state()["devices"]["1-1.2"]
    assert (device["driver"], device["usbip_status"]) == ("usbip-host", 1)
    with connect(agent, "1-1.2", kind, folder) as end:
        assert pi.state()["devices"]["1-1.2"]["usbip_status"] == 2
        assert [p.name for p in folder.iterdir()] == ["held"]
        end.sendall(b"describe\n")
        assert b"FT232R" in end.recv(4096)
        listed = parse(agent.ask("list"))["1-1.2"]
        assert listed["driver"] == ["usbip-host"]
        assert listed["usbip_status"] == ["2"]
        assert agent.ask("release 1-1.2 1") == [b"ok"]
        assert end.recv(4096) == b""
    state = pi.state()
    assert state["devices"]["1-1.2"]["nodes"] == ["ttyUSB0"]
    assert state["matched"] == []
    assert not any("\n" in entry for entry in state["log"])


def test_every_kernel_write_is_in_the_safe_order(agent: Agent, pi: FakeKernel) -> None:
    pi.plug("1-1", SERIAL_ADAPTER)
    folder = agent.bind(pi, "1-1", SERIAL_ADAPTER)
    with connect(agent, "1-1", "perl", folder):
        agent.ask("release 1-1 1")
    assert pi.state()["log"] == [
        "unbind 1-1",
        "match_busid add 1-1",
        "bind 1-1",
        "sockfd 1-1",
        "sockfd 1-1",
        "reset 1-1",
        "unbind 1-1",
        "rebind 1-1",
    ]


def test_released_without_a_driver(agent: Agent, pi: FakeKernel) -> None:
    pi.plug("1-1", SERIAL_ADAPTER)
    agent.bind(pi, "1-1", SERIAL_ADAPTER)
    assert agent.ask("release 1-1 0") == [b"ok"]
    state = pi.state()
    assert state["devices"]["1-1"]["driver"] == ""
    assert state["matched"] == []
    assert agent.ask("release 1-1 1") == [b"ok"]


def test_twelve_devices_at_once(agent: Agent, pi: FakeKernel) -> None:
    busids = [f"1-{port}" for port in range(1, 13)]
    for busid in busids:
        pi.plug(busid, SERIAL_ADAPTER)
    requests = [bind_request(pi, busid, SERIAL_ADAPTER) for busid in busids]
    answers = agent.answers([agent.start(r) for r in requests])
    assert [a[-1] for a in answers] == [b"ok"] * 12
    folder = Path(answers[0][0].removeprefix(b"dir ").decode())
    assert len({a[0] for a in answers}) == 1
    with contextlib.ExitStack() as stack:
        for busid in busids:
            stack.enter_context(connect(agent, busid, "perl", folder))
        assert len(pi.state()["connected"]) == 12
        agent.end()
    pi.check_clean()
    assert not folder.exists()


def test_the_seventeenth_device_is_too_many(agent: Agent, pi: FakeKernel) -> None:
    for port in range(1, 18):
        pi.plug(f"1-{port}", SERIAL_ADAPTER)
    for port in range(1, 17):
        agent.bind(pi, f"1-{port}", SERIAL_ADAPTER)
    failure = agent.fails(bind_request(pi, "1-17", SERIAL_ADAPTER))
    assert failure.startswith("LimitsExceeded ")
    assert pi.state()["devices"]["1-17"]["driver"] == "usb"


def test_a_device_of_a_slow_kernel_delays_no_other_request(agent: Agent, pi: FakeKernel) -> None:
    pi.plug("1-1", SERIAL_ADAPTER)
    pi.delay("bind 1-1", 0.7)
    slow = agent.start(bind_request(pi, "1-1", SERIAL_ADAPTER))
    quick = agent.start("list")
    order: list[str] = []
    while len(order) < 2:
        tag, _, rest = agent.line().partition(b" ")
        if rest == b"ok":
            order.append(tag.decode())
    assert order == [quick, slow]


# --- what can go wrong -------------------------------------------------------------------


def test_a_device_that_is_not_there(agent: Agent) -> None:
    assert agent.fails("bind 1-1 0403 6001 1 2 1") == "DeviceNotFound 1-1"


@pytest.mark.parametrize(
    "ids", ["0403 6002 1 2", "0404 6001 1 2", "0403 6001 1 3", "0403 6001 2 2"]
)
def test_another_device_than_meant(agent: Agent, pi: FakeKernel, ids: str) -> None:
    pi.plug("1-1", SERIAL_ADAPTER)
    assert agent.fails(f"bind 1-1 {ids} 1") == "DeviceChanged 1-1"
    assert pi.state()["log"] == []


def test_a_hub_is_refused(agent: Agent, pi: FakeKernel) -> None:
    pi.plug("1-1", HUB)
    assert agent.fails(bind_request(pi, "1-1", HUB)) == "DeviceFailed it is a hub"
    assert pi.state()["log"] == []


def test_a_remote_device_is_not_exported_again(shell: str) -> None:
    with FakeKernel() as pi:
        pi.plug("3-1", SERIAL_ADAPTER)
        agent = Agent(shell, pi.root)
        try:
            failure = agent.fails(bind_request(pi, "3-1", SERIAL_ADAPTER))
            assert failure == "DeviceFailed it is itself a remote device"
            assert b"b 3 vhci_hcd.0" in agent.ask("list")
            agent.end()
        finally:
            agent.discard()


def test_a_device_in_use_elsewhere(agent: Agent, shell: str, pi: FakeKernel) -> None:
    pi.plug("1-1", SERIAL_ADAPTER)
    folder = agent.bind(pi, "1-1", SERIAL_ADAPTER)
    with connect(agent, "1-1", "perl", folder) as end:
        other = Agent(shell, pi.root)
        try:
            failure = other.fails(bind_request(pi, "1-1", SERIAL_ADAPTER))
            assert failure.startswith("DeviceBusy ")
            other.end()
        finally:
            other.discard()
        end.sendall(b"describe\n")
        assert end.recv(10)


@pytest.mark.parametrize("status", [1, 3])
def test_a_stale_export_is_taken_over(agent: Agent, pi: FakeKernel, status: int) -> None:
    pi.plug("1-1", SERIAL_ADAPTER)
    for file, text in EXPORT:
        (pi.root / "bus/usb/drivers" / file).write_text(text)
    pi.set_usbip_status("1-1", status)
    agent.bind(pi, "1-1", SERIAL_ADAPTER)
    assert pi.state()["devices"]["1-1"]["usbip_status"] == 1


def test_unbind_gives_back_what_anybody_exported(agent: Agent, pi: FakeKernel) -> None:
    pi.plug("1-1", SERIAL_ADAPTER)
    assert agent.ask("unbind 1-1") == [b"ok"]
    assert pi.state()["log"] == []
    for file, text in EXPORT:
        (pi.root / "bus/usb/drivers" / file).write_text(text)
    assert agent.ask("unbind 1-1") == [b"ok"]
    pi.check_clean()
    assert pi.state()["devices"]["1-1"]["driver"] == "usb"
    assert agent.fails("unbind 1-2") == "DeviceNotFound 1-2"


@pytest.mark.parametrize("operation", ["bind", "match_busid"])
def test_what_fails_midway_is_undone(agent: Agent, pi: FakeKernel, operation: str) -> None:
    pi.plug("1-1", SERIAL_ADAPTER)
    pi.fail(operation, "EIO")
    failure = agent.fails(bind_request(pi, "1-1", SERIAL_ADAPTER))
    assert failure.startswith("DeviceFailed usbip-host does not take")
    state = pi.state()
    assert state["devices"]["1-1"]["driver"] == "usb"
    assert state["devices"]["1-1"]["nodes"] == ["ttyUSB0"]
    # usbip-host never had it, so the kernel's pointer is not one to follow; a later export is.
    assert state["matched"] == state["parked"] == (["1-1"] if operation == "bind" else [])
    assert not [entry for entry in state["log"] if entry.startswith("rebind")]
    agent.bind(pi, "1-1", SERIAL_ADAPTER)
    assert agent.ask("release 1-1 1") == [b"ok"]
    assert pi.state()["matched"] == []


def test_a_driver_that_does_not_let_go(agent: Agent, pi: FakeKernel) -> None:
    pi.plug("1-1", SERIAL_ADAPTER)
    pi.fail("unbind", "EBUSY")
    assert agent.fails(bind_request(pi, "1-1", SERIAL_ADAPTER)).startswith("DeviceFailed ")


def test_a_device_pulled_out_while_it_is_bound(shell: str, pi: FakeKernel) -> None:
    pi.plug("1-1", SERIAL_ADAPTER)
    agent = Agent(shell, pi.root)
    try:
        pi.delay("bind", 0.7)
        tag = agent.start(bind_request(pi, "1-1", SERIAL_ADAPTER))
        pi.wait(lambda s: "bind 1-1" in s["log"])
        pi.unplug("1-1")
        assert agent.answers([tag])[0][-1].startswith(b"fail DeviceNotFound ")
        # Nobody knows whether the kernel's pointer is good, so the name stays until the next time.
        assert pi.state()["parked"] == ["1-1"]
        pi.plug("1-1", SERIAL_ADAPTER)
        agent.bind(pi, "1-1", SERIAL_ADAPTER)
        agent.end()
    finally:
        agent.discard()
    pi.check_clean()
    assert pi.state()["matched"] == []
    assert pi.state()["devices"]["1-1"]["driver"] == "usb"


@pytest.mark.parametrize("back", ["", "at once", "with its hub"])
def test_a_device_pulled_out_while_in_use(agent: Agent, pi: FakeKernel, back: str) -> None:
    """Its name is taken out all the same, and with its memory still there."""
    pi.plug("1-1", HUB)
    pi.plug("1-1.2", SERIAL_ADAPTER)
    folder = agent.bind(pi, "1-1.2", SERIAL_ADAPTER)
    with connect(agent, "1-1.2", "perl", folder):
        pi.unplug("1-1" if back == "with its hub" else "1-1.2")
        if back == "at once":
            pi.plug("1-1.2", STICK)
        assert agent.ask("release 1-1.2 1") == [b"ok"]
    assert pi.state()["matched"] == []
    assert pi.state()["crashes"] == []
    assert list(folder.glob("held/[0-9]*")) == []


def test_a_name_worn_out_by_another_program(agent: Agent, pi: FakeKernel) -> None:
    """Its "del" came while the device was bound; unbound by hand, that port is lost."""
    pi.plug("1-1", SERIAL_ADAPTER)
    for file, text in (*EXPORT, ("usbip-host/match_busid", "del 1-1")):
        (pi.root / "bus/usb/drivers" / file).write_text(text)
    assert agent.ask("unbind 1-1") == [b"ok"]
    assert pi.state()["matched"] == []
    for file, text in (
        *EXPORT, ("usbip-host/match_busid", "del 1-1"), ("usbip-host/unbind", "1-1"),
    ):  # fmt: skip
        (pi.root / "bus/usb/drivers" / file).write_text(text)
    failure = agent.fails(bind_request(pi, "1-1", SERIAL_ADAPTER))
    assert failure == "DeviceFailed usbip-host takes nothing in that port before a restart there"
    assert pi.state()["devices"]["1-1"]["driver"] == "usb"
    (pi.root / "bus/usb/drivers/usbip-host/rebind").write_text("1-1")


def test_the_same_device_many_times(agent: Agent, pi: FakeKernel) -> None:
    pi.plug("1-1", SERIAL_ADAPTER)
    for _ in range(20):
        agent.bind(pi, "1-1", SERIAL_ADAPTER)
        assert pi.state()["bound"] == ["1-1"]
        assert agent.ask("release 1-1 1") == [b"ok"]
        assert pi.state()["matched"] == []


def test_a_device_left_in_error_state_is_given_back(agent: Agent, pi: FakeKernel) -> None:
    pi.plug("1-1", SERIAL_ADAPTER)
    folder = agent.bind(pi, "1-1", SERIAL_ADAPTER)
    pi.fail("reset")
    connect(agent, "1-1", "perl", folder).close()
    pi.wait(lambda s: s["devices"]["1-1"]["usbip_status"] == 3)
    assert agent.ask("release 1-1 1") == [b"ok"]
    assert pi.state()["devices"]["1-1"]["driver"] == "usb"


def test_a_connection_that_ends_slowly_is_waited_for(agent: Agent, pi: FakeKernel) -> None:
    pi.plug("1-1", SERIAL_ADAPTER)
    folder = agent.bind(pi, "1-1", SERIAL_ADAPTER)
    pi.delay("reset", 0.5)
    with connect(agent, "1-1", "perl", folder):
        assert agent.ask("release 1-1 1") == [b"ok"]
    assert pi.state()["crashes"] == []


def test_no_driver_takes_it_back(agent: Agent, pi: FakeKernel) -> None:
    pi.plug("1-1", SERIAL_ADAPTER)
    agent.bind(pi, "1-1", SERIAL_ADAPTER)
    for operation in ("rebind", "probe", "bind"):
        pi.fail(operation)
    assert agent.fails("release 1-1 1") == "DeviceFailed no driver took it back"
    assert agent.ask("release 1-1 1") == [b"ok"]


def test_no_socket_to_connect_to(agent: Agent, pi: FakeKernel) -> None:
    pi.plug("1-1", SERIAL_ADAPTER)
    folder = agent.bind(pi, "1-1", SERIAL_ADAPTER)
    for kind in ("perl", "python3"):
        failure = agent.fails(f"connect 1-1 {kind} {folder}/none {TOKEN}")
        assert failure == f"DeviceFailed {kind} could not hand over a connection"
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        failure = agent.fails(f"connect 1-1 bash {port} {TOKEN}")
    assert failure == "DeviceFailed bash could not hand over a connection"


def test_the_kernel_refuses_the_socket(agent: Agent, pi: FakeKernel) -> None:
    pi.plug("1-1", SERIAL_ADAPTER)
    folder = agent.bind(pi, "1-1", SERIAL_ADAPTER)
    pi.fail("sockfd", "EINVAL")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "s"))
        listener.listen()
        failure = agent.fails(f"connect 1-1 perl {folder}/s {TOKEN}")
    assert failure == "DeviceFailed perl could not hand over a connection"
    assert not (folder / "s").exists()


def test_connect_wants_an_export_of_its_own(agent: Agent, pi: FakeKernel) -> None:
    pi.plug("1-1", SERIAL_ADAPTER)
    assert agent.fails(f"connect 1-1 perl /run/s {TOKEN}").startswith("NotAttached ")


@pytest.mark.parametrize(
    "place", ["/nonexistent/x", "{}/../x", "{}/held", "{}/held/1-1", "{}/held/life", "{}", "x"]
)
def test_connect_stays_in_its_folder(agent: Agent, pi: FakeKernel, place: str) -> None:
    pi.plug("1-1", SERIAL_ADAPTER)
    folder = agent.bind(pi, "1-1", SERIAL_ADAPTER)
    assert agent.fails(f"connect 1-1 perl {place.format(folder)} {TOKEN}").startswith("InvalidArgs")
    assert (folder / "held/1-1").exists()


def test_the_module_is_loaded(shell: str) -> None:
    with FakeKernel(modules=()) as pi:
        pi.plug("1-1", SERIAL_ADAPTER)
        agent = Agent(shell, pi.root)
        try:
            agent.bind(pi, "1-1", SERIAL_ADAPTER)
            assert pi.state()["modules"] == ["usbip_host"]
            agent.end()
            pi.check_clean()
        finally:
            agent.discard()


def test_the_module_is_missing(shell: str) -> None:
    with FakeKernel(modules=(), missing=("usbip-host",)) as pi:
        pi.plug("1-1", SERIAL_ADAPTER)
        agent = Agent(shell, pi.root)
        try:
            failure = agent.fails(bind_request(pi, "1-1", SERIAL_ADAPTER))
            assert failure == "ModuleUnavailable usbip-host"
            assert pi.state()["devices"]["1-1"]["driver"] == "usb"
            agent.end()
        finally:
            agent.discard()


def test_without_root_it_lists_and_refuses_the_rest(shell: str, pi: FakeKernel) -> None:
    pi.plug("1-1", SERIAL_ADAPTER)
    wrap = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    agent = Agent(shell, pi.root, wrap=wrap)
    try:
        assert agent.hello.split()[2] == b"65534"
        assert parse(agent.ask("list"))["1-1"]["product"] == ["FT232R USB UART"]
        for request in (bind_request(pi, "1-1", SERIAL_ADAPTER), "release 1-1 1"):
            assert agent.fails(request) == "NotPermittedThere uid 65534"
        agent.end()
    finally:
        agent.discard()
    pi.check_clean()


def _without(names: Sequence[str]) -> tuple[str, ...]:
    """A prefix that hides programs in a mount namespace of its own."""
    hide = "; ".join(
        f"for f in /usr/bin/{n} /bin/{n} /usr/local/bin/{n}; do "
        '[ ! -e "$f" ] || mount --bind /dev/null "$f"; done'
        for n in names
    )
    return ("unshare", "-m", "sh", "-c", f'{hide}; exec "$@"', "sh")


CONNECTORS = ("perl", "python3", "socat", "ncat", "bash", "busybox")


@pytest.mark.parametrize("there", [*CONNECTORS, ""])
def test_connectors_that_are_there(pi: FakeKernel, there: str) -> None:
    pi.plug("1-1", SERIAL_ADAPTER)
    hidden = [n for n in CONNECTORS if n != there]
    agent = Agent("dash", pi.root, wrap=_without(hidden))
    try:
        assert agent.hello.split()[5].decode() == (there or "none")
        if there:
            folder = agent.bind(pi, "1-1", SERIAL_ADAPTER)
            connect(agent, "1-1", there, folder).close()
        else:
            failure = agent.fails(bind_request(pi, "1-1", SERIAL_ADAPTER))
            assert failure == "RemoteUnsupported nothing that connects"
        agent.end()
    finally:
        agent.discard()
    pi.check_clean()


# --- file systems ------------------------------------------------------------------------


@contextlib.contextmanager
def mounted(place: Path) -> Iterator[FakeDevice]:
    """A stick one of whose partitions is mounted there; really a tmpfs with its device number."""
    place.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
    try:
        dev = place.stat().st_dev
        yield STICK.but(dev={"sd?1": f"{os.major(dev)}:{os.minor(dev)}"})
    finally:
        subprocess.run(["umount", "-l", place], check=False, capture_output=True)


@pytest.mark.parametrize("name", ["plain", r"a b\c	d#e%s", "--help", "ünï"])
def test_file_systems_are_unmounted(
    agent: Agent, pi: FakeKernel, tmp_path: Path, name: str
) -> None:
    with mounted(tmp_path / name) as stick:
        pi.plug("2-1", stick)
        assert agent.fails(bind_request(pi, "2-1", stick, 0)).startswith("DeviceBusy ")
        assert pi.state()["log"] == []
        assert (tmp_path / name).is_mount()
        agent.bind(pi, "2-1", stick)
        assert not (tmp_path / name).is_mount()


def test_a_file_system_in_use_stays(agent: Agent, pi: FakeKernel, tmp_path: Path) -> None:
    with mounted(tmp_path / "used") as stick:
        pi.plug("2-1", stick)
        with (tmp_path / "used/file").open("w"):
            failure = agent.fails(bind_request(pi, "2-1", stick))
        name = Path("/proc/self/comm").read_text().strip()
        assert failure == f"DeviceBusy {name} (process {os.getpid()}) uses {tmp_path / 'used'}"
        assert (tmp_path / "used").is_mount()
        assert pi.state()["log"] == []


# --- nonsense ----------------------------------------------------------------------------


NONSENSE = [
    "",
    "frob",
    "list 1-1",
    "describe",
    "describe ../../etc",
    "describe 1-1/../1-2",
    "describe usb1",
    "describe 1-1:1.0",
    "describe 0-1",
    "describe 1-0",
    "describe 1-1.",
    "describe 1.1-1",
    "describe 1-1.01",
    "describe 1-1-1",
    "describe *",
    "describe 1-1.1.1.1.1.1.1.1.1.1.1.1.1.1.1.1.1.1.1.1.1",
    "describe $(touch${IFS}MARK)",
    "describe `touch MARK`",
    "describe 1-1;touch MARK",
    "describe 1-1 && touch MARK",
    "describe  1-1",
    "describe 1-1 ",
    "bind 1-1",
    "bind 1-1 0403 6001 1 2",
    "bind 1-1 0403 6001 1 2 2",
    "bind 1-1 403 6001 1 2 1",
    "bind 1-1 040G 6001 1 2 1",
    "bind 1-1 0403 6001 x 2 1",
    "bind 1-1 0403 6001 1 99999999999999999999 1",
    "bind -rf 0403 6001 1 2 1",
    "bind 1-1 0403 6001 1 2 1 extra",
    "connect 1-1 sh /run/x " + TOKEN,
    "connect 1-1 perl /run/x short",
    "connect 1-1 perl /run/x " + TOKEN.upper(),
    "connect 1-1 perl /run/x',system('touch',MARK) " + TOKEN,
    "release 1-1",
    "release 1-1 yes",
    "release ../1-1 1",
    "unbind all",
    "eval touch MARK",
    "finish",
    "release_all",
    "x" * 20000,
    "list\x01",
    "líst",
]


def test_nonsense_is_refused(agent: Agent, pi: FakeKernel, tmp_path: Path) -> None:
    pi.plug("1-1", SERIAL_ADAPTER)
    mark = tmp_path / "mark"
    for request in NONSENSE:
        failure = agent.fails(request.replace("MARK", str(mark)))
        assert failure == "InvalidArgs request", request
        assert not mark.exists(), request
    assert pi.state()["log"] == []
    assert agent.ask("list")[-1] == b"ok"


def test_lines_without_a_tag_are_passed_over(agent: Agent) -> None:
    for text in (
        "list",
        "ping ping",
        "-1 list",
        "x list",
        "1",
        "",
        " ",
        "\x01",
        "12345678901 list",
    ):
        agent.send(text + "\n")
    agent.send("ping\n")
    before = []
    tag = agent.start("list").encode()
    while (line := agent.line()) != tag + b" ok":
        before.append(line)
    refused = [b for b in before if not re.match(rb"1 b ", b)]
    assert refused == [b"1 fail InvalidArgs request", b"pong"]


def test_a_request_cut_short_is_not_carried_out(shell: str, pi: FakeKernel) -> None:
    pi.plug("1-1", SERIAL_ADAPTER)
    agent = Agent(shell, pi.root)
    try:
        agent.send("1 " + bind_request(pi, "1-1", SERIAL_ADAPTER))
        agent.end()
        assert pi.state()["log"] == []
    finally:
        agent.discard()


# --- the end -----------------------------------------------------------------------------


def _export(agent: Agent, pi: FakeKernel) -> tuple[Path, socket.socket]:
    pi.plug("1-1", SERIAL_ADAPTER)
    pi.plug("2-1", STICK)
    folder = agent.bind(pi, "1-1", SERIAL_ADAPTER)
    agent.bind(pi, "2-1", STICK)
    return folder, connect(agent, "1-1", "perl", folder)


def _check_given_back(pi: FakeKernel, folder: Path) -> None:
    pi.check_clean()
    assert {d["driver"] for d in pi.state()["devices"].values()} == {"usb"}
    assert not folder.exists()


def test_end_of_input_gives_everything_back(agent: Agent, pi: FakeKernel) -> None:
    folder, end = _export(agent, pi)
    with end:
        agent.end()
    _check_given_back(pi, folder)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_gives_everything_back(
    agent: Agent, pi: FakeKernel, number: signal.Signals
) -> None:
    folder, end = _export(agent, pi)
    with end:
        os.kill(agent.process.pid, number)
        agent.wait_gone()
    _check_given_back(pi, folder)


def test_a_signal_to_all_of_it_gives_everything_back(agent: Agent, pi: FakeKernel) -> None:
    folder, end = _export(agent, pi)
    with end:
        os.killpg(agent.process.pid, signal.SIGTERM)
        os.killpg(agent.process.pid, signal.SIGTERM)
        agent.wait_gone(10)
    _check_given_back(pi, folder)


def test_the_peer_is_killed(shell: str, pi: FakeKernel) -> None:
    """Whoever held the pipes is gone at once, with nobody left to read an answer."""
    pi.plug("1-1", SERIAL_ADAPTER)
    program = (
        "import subprocess, sys, time\n"
        "p = subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "p.stdin.write(sys.argv[1].encode() + b'\\n'); p.stdin.flush()\n"
        "while not p.stdout.readline().endswith(b' ok\\n'): pass\n"
        "print(p.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    request = "1 " + bind_request(pi, "1-1", SERIAL_ADAPTER)
    peer = subprocess.Popen(
        ["/usr/bin/python3", "-c", program, request, *shell.split(), *AGENT, str(pi.root)],
        stdout=subprocess.PIPE,
    )
    assert peer.stdout is not None
    pid = int(peer.stdout.readline())
    gone = os.pidfd_open(pid)
    assert pi.state()["bound"] == ["1-1"]
    peer.kill()
    peer.wait()
    peer.stdout.close()
    ready, _, _ = select.select([gone], [], [], SECONDS)
    os.close(gone)
    assert ready
    pi.check_clean()
    assert pi.state()["devices"]["1-1"]["driver"] == "usb"


def test_end_of_input_waits_for_what_is_under_way(agent: Agent, pi: FakeKernel) -> None:
    pi.plug("1-1", SERIAL_ADAPTER)
    pi.delay("bind", 0.5)
    agent.start(bind_request(pi, "1-1", SERIAL_ADAPTER))
    pi.wait(lambda s: "bind 1-1" in s["log"])
    agent.end()
    pi.check_clean()
    assert pi.state()["devices"]["1-1"]["driver"] == "usb"


@pytest.mark.parametrize("requests", [[], ["list"], ["list", "list", "list"]])
def test_it_ends_at_once(shell: str, pi: FakeKernel, requests: list[str]) -> None:
    """Nothing to give back: no timer may hold it up, whichever moment the end comes at."""
    for _ in range(5):
        agent = Agent(shell, pi.root)
        try:
            for request in requests:
                agent.start(request)
            before = time.monotonic()
            agent.end()
            assert time.monotonic() - before < 5
        finally:
            agent.discard()


def _in_every_shell(body: Callable[[Agent, FakeKernel], None]) -> None:
    """Run a slow test under all shells side by side; the agents end after a second's silence."""
    with contextlib.ExitStack() as stack, ThreadPoolExecutor() as pool:
        kernels = [stack.enter_context(FakeKernel(modules=("usbip-host",))) for _ in SHELLS]
        agents = [Agent(s, k.root, silence=1) for s, k in zip(SHELLS, kernels, strict=True)]
        try:
            list(pool.map(body, agents, kernels))
        finally:
            for agent in agents:
                agent.discard()


def test_silence_gives_everything_back() -> None:
    def body(agent: Agent, pi: FakeKernel) -> None:
        folder, end = _export(agent, pi)
        with end:
            for _ in range(6):
                time.sleep(0.3)
                agent.send("ping\n")
            assert pi.state()["bound"] == ["1-1", "2-1"]
            agent.wait_gone(15)
        _check_given_back(pi, folder)

    _in_every_shell(body)


def test_an_agent_that_is_killed_is_cleaned_up_after() -> None:
    def body(agent: Agent, pi: FakeKernel) -> None:
        folder, end = _export(agent, pi)
        with end:
            agent.process.kill()
            agent.wait_gone(15)
        _check_given_back(pi, folder)

    _in_every_shell(body)


def test_a_stopped_agent_is_cleaned_up_after() -> None:
    """A shell that doesn't act on a signal, as older ones in read."""

    def body(agent: Agent, pi: FakeKernel) -> None:
        folder, end = _export(agent, pi)
        with end:
            agent.process.send_signal(signal.SIGSTOP)
            agent.wait_gone(20)
        _check_given_back(pi, folder)

    _in_every_shell(body)


def _kill(agent: Agent, spared: str = "") -> None:
    """SIGKILL to the whole session but processes whose command ends so."""
    victims = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            session = int(stat.read_text(errors="replace").rpartition(")")[2].split()[3])
            keeps = all((stat.parent / "fd" / n).is_symlink() for n in ("3", "4"))
            if session == agent.process.pid and not (spared and keeps):
                victims.append(int(stat.parent.name))
    # All at once: a keeper that sees the others die begins to give back, and is not to be killed
    # in the middle of that.
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
    agent.process.wait()


def test_what_is_left_when_all_but_a_keeper_are_killed(shell: str, pi: FakeKernel) -> None:
    agent = Agent(shell, pi.root)
    try:
        folder, end = _export(agent, pi)
        with end:
            _kill(agent, spared="keepers")
            pi.wait(lambda s: not s["bound"])
        agent.wait_gone()
        _check_given_back(pi, folder)
        assert pi.state()["matched"] == []
    finally:
        agent.discard()


def test_a_fresh_agent_finds_what_a_killed_one_left(shell: str, pi: FakeKernel) -> None:
    pi.plug("1-7", KEYBOARD)
    pi.plug("1-8", KEYBOARD)
    for file, text in EXPORT:
        (pi.root / "bus/usb/drivers" / file).write_text(text.replace("1-1", "1-7"))
    killed, living, fresh = (Agent(shell, pi.root) for _ in range(3))
    try:
        folder, end = _export(killed, pi)
        living.bind(pi, "1-8", KEYBOARD)
        with end:
            _kill(killed)
            assert pi.state()["bound"] == ["1-1", "1-7", "1-8", "2-1"]
            fresh.end()
            assert folder.exists(), "it was started too early to see anything"
            fresh = Agent(shell, pi.root)
            assert fresh.ask("list")[-1] == b"ok"
            pi.wait(lambda s: s["bound"] == ["1-7", "1-8"])
            fresh.bind(pi, "1-1", SERIAL_ADAPTER)
        fresh.end()
        living.end()
        assert not folder.exists()
        assert list(Path("/run").glob(f"usbipssh.*.{folder.suffix[1:]}")) == []
        state = pi.state()
        assert state["bound"] == state["matched"] == ["1-7"], "another program's"
        assert state["crashes"] == []
    finally:
        for agent in (killed, living, fresh):
            agent.discard()


def test_a_device_wanted_at_once_that_a_killed_agent_left(shell: str, pi: FakeKernel) -> None:
    killed = Agent(shell, pi.root)
    try:
        _, end = _export(killed, pi)
        with end:
            _kill(killed)
            fresh = Agent(shell, pi.root)
            try:
                fresh.bind(pi, "1-1", SERIAL_ADAPTER)
                fresh.end()
            finally:
                fresh.discard()
        pi.check_clean()
    finally:
        killed.discard()


def test_folders_that_are_not_ours_stay(agent: Agent, pi: FakeKernel) -> None:
    pi.plug("1-1", SERIAL_ADAPTER)
    for file, text in EXPORT:
        (pi.root / "bus/usb/drivers" / file).write_text(text)
    folder = Path(tempfile.mkdtemp(prefix="usbipssh.", dir="/run"))
    try:
        (folder / "held").mkdir()
        (folder / "held/1-1").write_text("-")
        (folder / "held/agent").write_text(f"{2**22 + 5} 17 {pi.root}")
        os.chown(folder, 61005, 61005)
        with contextlib.closing(Agent("dash", pi.root)) as fresh:
            assert fresh.ask("list")[-1] == b"ok"
        assert folder.exists()
        assert pi.state()["bound"] == ["1-1"]
    finally:
        shutil.rmtree(folder)
    assert agent.ask("unbind 1-1") == [b"ok"]


# --- what comes and goes -----------------------------------------------------------------


def test_it_tells_when_something_comes_or_goes(agent: Agent, pi: FakeKernel) -> None:
    tag = agent.start("watch")
    assert agent.fails("watch") == "InvalidArgs watching already"
    pi.plug("1-1", SERIAL_ADAPTER)
    assert agent.line() == f"{tag} changed".encode()
    pi.unplug("1-1")
    assert agent.line() == f"{tag} changed".encode()


@pytest.mark.parametrize("there", ["perl", "python3"])
def test_it_listens_to_the_kernel_where_it_can(there: str) -> None:
    """At the start it tells of what may have come before."""
    hidden = [name for name in ("perl", "python3", "udevadm") if name != there]
    process = subprocess.Popen(
        [*_without(hidden), "dash", *AGENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"7 watch\n")
        process.stdin.flush()
        assert process.stdout.readline().startswith(b"hello 1 ")
        assert process.stdout.readline() == b"7 changed\n"
        process.stdin.close()
        assert process.wait(SECONDS) == 0


def test_it_watches_no_longer_than_it_lives(shell: str, pi: FakeKernel) -> None:
    agent = Agent(shell, pi.root, silence=1)
    try:
        agent.start("watch")
        agent.ask("list")
        agent.process.kill()
        agent.wait_gone()
    finally:
        agent.discard()


def test_with_sudo_the_folder_belongs_to_the_user(shell: str, pi: FakeKernel) -> None:
    pi.plug("1-1", SERIAL_ADAPTER)
    environment = {"SUDO_UID": "61003", "SUDO_GID": "61004"}
    agent = Agent(shell, pi.root, environment=environment)
    try:
        folder = agent.bind(pi, "1-1", SERIAL_ADAPTER)
        told = folder.stat()
        assert (told.st_uid, told.st_gid, told.st_mode & 0o777) == (61003, 61004, 0o700)
        assert (folder / "held").stat().st_uid == 0
        agent.end()
        assert not folder.exists()
    finally:
        agent.discard()


def test_many_requests_leave_no_children_behind(agent: Agent) -> None:
    for _ in range(10):
        tags = [agent.start("unbind 1-1") for _ in range(10)]
        agent.answers(tags)
    children = Path(f"/proc/{agent.process.pid}/task/{agent.process.pid}/children")
    assert len(children.read_text().split()) < 30


def test_it_is_read_from_where_the_requests_come(pi: FakeKernel) -> None:
    """As the session has it started."""
    pi.plug("1-1", SERIAL_ADAPTER)
    text = script.travelling().decode()
    for shell in SHELLS:
        result = subprocess.run(
            [*shell.split(), "-c", f'eval "$(dd bs=1 count={len(text)} 2>/dev/null)"',
             "usbipssh-agent", str(pi.root)],
            input=text + "1 list\n2 describe 1-1\n",
            capture_output=True, text=True, timeout=SECONDS, check=True,
        )  # fmt: skip
        assert result.stderr == ""
        assert re.search(r"^1 ok$", result.stdout, re.MULTILINE)
        assert re.search(r"^2 ok$", result.stdout, re.MULTILINE)
