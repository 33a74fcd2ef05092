# SPDX-License-Identifier: GPL-3.0-or-later
"""What tests hold: a made-up machine running in a process of its own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any

from fakekernel.devices import FakeDevice

_TESTS = Path(__file__).resolve().parent.parent
_START_SECONDS = 60.0


def _python() -> str:
    """A Python that has FUSE: this one, or the system's."""
    here = find_spec("fusepy") or find_spec("fuse")
    return sys.executable if here else "/usr/bin/python3"


class FakeKernelError(Exception):
    """The made-up kernel refused what a test asked."""


class EventStream:
    """Events as dictionaries: ``action``, ``devpath`` (below /sys), ``subsystem`` and, where
    they apply, ``devtype``, ``devname``, ``busid``. ``fileno`` allows waiting in a loop."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._file = sock.makefile("rb")

    def fileno(self) -> int:
        """The socket; more than one event can be waiting behind it."""
        return self._socket.fileno()

    def next(self, seconds: float = 30) -> dict[str, Any]:
        """The next event; TimeoutError."""
        self._socket.settimeout(seconds)
        line = self._file.readline()
        if not line:
            raise FakeKernelError("the made-up kernel is gone")
        event: dict[str, Any] = json.loads(line)
        return event

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            try:
                yield self.next(3600)
            except (FakeKernelError, OSError):
                return

    def close(self) -> None:
        """Stop listening."""
        self._file.close()
        self._socket.close()


class FakeKernel:
    """A machine: context manager; ``root`` is its /sys, ``control`` its control socket.

    ``status`` is the layout of vhci's status files (``hub`` or ``old``), ``modules`` those
    loaded from the start (``usbip-host``, ``vhci-hcd``), ``missing`` those not installed.
    The tree brings a ``bin/modprobe`` of its own, which loads the others.
    """

    def __init__(
        self,
        status: str = "hub",
        controllers: int = 2,
        ports: int = 8,
        modules: Sequence[str] = ("usbip-host", "vhci-hcd"),
        missing: Sequence[str] = (),
    ) -> None:
        self._arguments = ["--status", status, "--controllers", str(controllers)]
        self._arguments += ["--ports", str(ports)]
        for module in modules:
            self._arguments += ["--module", module]
        for module in missing:
            self._arguments += ["--missing", module]
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self.root = Path()
        self.control = Path()

    def __enter__(self) -> FakeKernel:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start it and wait until it is mounted."""
        self._folder = tempfile.TemporaryDirectory(prefix="fakekernel.")
        base = Path(self._folder.name)
        base.chmod(0o755)
        self.root = base / "sys"
        self.root.mkdir()
        self.control = base / "control"
        environment = {**os.environ, "PYTHONPATH": str(_TESTS)}
        self._process = subprocess.Popen(
            [_python(), "-m", "fakekernel", *self._arguments, self.root, self.control],
            env=environment,
            stdin=subprocess.PIPE,
        )
        deadline = time.monotonic() + _START_SECONDS
        while not (self.root / "bus").exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise FakeKernelError("the made-up kernel did not start; is FUSE there?")
            time.sleep(0.02)
        self._socket = self._connect()

    def stop(self) -> None:
        """End it, unmount, and remove its folder."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            self._process.terminate()
            if self._process.stdin is not None:
                self._process.stdin.close()
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        if self._folder is not None:
            if os.path.ismount(self.root) or not os.access(self.root, os.R_OK):
                subprocess.run(["umount", "-l", self.root], check=False, capture_output=True)
            self._folder.cleanup()
            self._folder = None

    def _connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(40)
        sock.connect(str(self.control))
        return sock

    def ask(self, op: str, **fields: Any) -> Any:
        """Send one request and return its answer; :exc:`FakeKernelError`."""
        if self._socket is None:
            raise FakeKernelError("not running")
        self._socket.sendall(json.dumps({"op": op, **fields}).encode() + b"\n")
        line = b""
        while not line.endswith(b"\n"):
            data = self._socket.recv(1 << 20)
            if not data:
                raise FakeKernelError("the made-up kernel is gone")
            line += data
        answer = json.loads(line)
        if "error" in answer:
            raise FakeKernelError(answer["error"])
        return answer["ok"]

    def plug(self, busid: str, device: FakeDevice) -> None:
        """Plug a device into a port. Bus 1 is high speed, bus 2 super speed."""
        self.ask("plug", busid=busid, device=device.to_json())

    def unplug(self, busid: str) -> None:
        """Pull a device out."""
        self.ask("unplug", busid=busid)

    def reset(self) -> None:
        """As after a start: nothing plugged in, no port taken, nothing set to fail. (Modules
        stay loaded.) So that many tests can share one kernel."""
        self.ask("reset")
        self.wait(lambda state: not state["ports"])

    def fail(self, operation: str, code: str = "EIO", times: int = 1) -> None:
        """Let the next uses of an operation fail; -1 for ever, 0 to stop that.

        Operations: ``match_busid``, ``bind``, ``unbind``, ``probe``, ``rebind``, ``sockfd``,
        ``reset`` (leaves usbip_status at 3), ``attach``, ``detach``, ``enumerate``,
        ``authorize``, ``modprobe``; most can be followed by a bus id (``bind 1-1``).
        """
        self.ask("fail", operation=operation, code=code, times=times)

    def delay(self, operation: str, seconds: float) -> None:
        """Let an operation (see :meth:`fail`) take so long from now on; 0 also ends those under
        way. A test that must do something meanwhile says long, and ends it itself."""
        self.ask("delay", operation=operation, seconds=seconds)

    def answer(self, busid: str, how: str, told: FakeDevice | None = None) -> None:
        """Let an exported device ``lie`` (``told``), ``stall`` or ``die`` when the other kernel
        asks what it is; ``""`` makes it honest again."""
        self.ask("answer", busid=busid, answer=how, told=told.to_json() if told else None)

    def set_usbip_status(self, busid: str, status: int) -> None:
        """Put an exported device into a state, such as 3."""
        self.ask("status", busid=busid, status=status)

    def end_connection(self, busid: str) -> None:
        """Let the exporting kernel end a connection by itself."""
        self.ask("end", busid=busid)

    def transfer(self, port: int, size: int) -> int:
        """Send bytes from an importing port to the device and back; returns how many."""
        return int(self.ask("transfer", port=port, size=size))

    def state(self) -> dict[str, Any]:
        """Everything: ``devices`` by bus id (driver, authorized, configured, usbip_status,
        nodes, …), ``matched``, ``parked`` (names that can't be taken out of it any more),
        ``bound``, ``connected``, ``ports`` that are not free,
        ``crashes``, ``log``, ``modules``, ``authorized_default`` by bus number."""
        state: dict[str, Any] = self.ask("state")
        return state

    def wait(
        self, condition: Callable[[dict[str, Any]], bool], seconds: float = 60
    ) -> dict[str, Any]:
        """Wait until the state is as wanted and return it; TimeoutError."""
        deadline = time.monotonic() + seconds
        while True:
            state = self.state()
            if condition(state):
                return state
            if time.monotonic() > deadline:
                raise TimeoutError(f"still {state}")
            time.sleep(0.02)

    def events(self) -> EventStream:
        """All events from now on."""
        sock = self._connect()
        sock.sendall(b'{"op": "subscribe"}\n')
        stream = EventStream(sock)
        stream.next()
        return stream

    def check_clean(self) -> None:
        """Raise AssertionError where a device is still exported, a port taken, or worse.

        Names whose device was pulled out while it was bound, or never bound, may be left.
        """
        state = self.state()
        state["matched"] = [name for name in state["matched"] if name not in state["parked"]]
        for name in ("crashes", "matched", "bound", "connected", "ports"):
            assert state[name] == [], f"{name}: {state[name]}"
