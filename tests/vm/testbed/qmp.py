# SPDX-License-Identifier: GPL-3.0-or-later
"""A client for QEMU's machine protocol (docs/interop/qmp-spec.txt in QEMU's sources)."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .host import TestbedError


class Qmp:
    """One connection to a machine's monitor. QEMU talks to one client at a time."""

    def __init__(self, path: Path, timeout: float = 60) -> None:
        self._timeout = timeout
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout)
        self._socket.connect(str(path))
        self._file = self._socket.makefile("rb")
        self._events: list[dict[str, Any]] = []
        self._read()
        self.command("qmp_capabilities")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()
        self._socket.close()

    def _read(self) -> dict[str, Any]:
        line = self._file.readline()
        if not line:
            raise TestbedError("the virtual machine closed its monitor")
        message: dict[str, Any] = json.loads(line)
        return message

    def command(self, name: str, /, **arguments: object) -> Any:
        """Run a command (underscores in argument names stand for hyphens); return its answer."""
        named = {key.replace("_", "-"): value for key, value in arguments.items()}
        request = json.dumps({"execute": name, "arguments": named})
        self._socket.sendall(request.encode() + b"\n")
        while True:
            message = self._read()
            if "event" in message:
                self._events.append(message)
            elif "error" in message:
                raise TestbedError(f"QMP {name}: {message['error']['desc']}")
            else:
                return message["return"]

    def wait(self, event: str, **data: object) -> dict[str, Any]:
        """Wait for an event that carries `data`; events since the connection began count."""
        deadline = time.monotonic() + self._timeout
        while time.monotonic() < deadline:
            while self._events:
                message = self._events.pop(0)
                carried: dict[str, Any] = message.get("data", {})
                if message["event"] == event and data.items() <= carried.items():
                    return carried
            self._events.append(self._read())
        raise TestbedError(f"no event {event} {data} within {self._timeout} s")

    def monitor(self, line: str) -> str:
        """Run a line of the human monitor; return what it prints."""
        return str(self.command("human-monitor-command", command_line=line))
