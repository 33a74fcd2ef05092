# SPDX-License-Identifier: GPL-3.0-or-later
"""Calls by busctl, run as another uid: begun, waited for, or left."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

LIMIT = 60
"""Seconds that a call may take; each test's own limits are shorter."""

_ERROR = re.compile(
    r"^(?:sd-bus: )?Got message type=error .* error-name=(\S+) error-message=(.*)$", re.MULTILINE
)


class CallError(Exception):
    """An error answer: its D-Bus name and message."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name
        self.message = message


@dataclass
class Answer:
    """What came of a call; ``error`` is empty if it went well."""

    data: Any
    error: str = ""
    message: str = ""

    def value(self) -> Any:
        """The result; raise :exc:`CallError`."""
        if self.error:
            raise CallError(self.error, self.message)
        return self.data


def busctl_line(address: str, uid: int, *words: str, interactive: bool = False) -> list[str]:
    """A command line that runs busctl as ``uid``, without groups."""
    return [
        "setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups",
        "busctl", f"--address={address}", f"--timeout={LIMIT}", "--json=short",
        f"--allow-interactive-authorization={'yes' if interactive else 'no'}", "--", *words,
    ]  # fmt: skip


class Pending:
    """A busctl that runs."""

    def __init__(self, line: Sequence[str]) -> None:
        self._is_call = "call" in line
        # busctl names errors only in what it writes for debugging.
        self._process = subprocess.Popen(
            line,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
            env={
                "PATH": os.environ["PATH"],
                "LC_ALL": "C.UTF-8",
                "SYSTEMD_LOG_LEVEL": "debug",
                "SYSTEMD_LOG_TARGET": "console",
            },
        )

    @property
    def pending(self) -> bool:
        """Whether there is no answer yet."""
        return self._process.poll() is None

    def answer(self) -> Answer:
        """Wait for the answer."""
        try:
            out, err = self._process.communicate(timeout=LIMIT + 10)
        except BaseException:
            self._process.kill()
            self._process.communicate()
            raise
        if self._process.returncode == 0:
            data = json.loads(out)["data"] if out.strip() else [None]
            return Answer(plain(data[0] if self._is_call else data))
        errors = _ERROR.findall(err)
        if not errors:
            raise RuntimeError(f"busctl: {err}")
        return Answer(None, *errors[-1])

    def value(self) -> Any:
        """Wait for the result; raise :exc:`CallError`."""
        return self.answer().value()

    def leave(self) -> None:
        """Leave the bus without waiting for the answer."""
        self._process.send_signal(signal.SIGKILL)
        self._process.communicate()


def finished(line: Sequence[str]) -> Answer:
    """Run busctl and wait for it."""
    return Pending(line).answer()


def plain(value: Any) -> Any:
    """busctl's JSON without the types of variants."""
    if isinstance(value, dict):
        if set(value) == {"type", "data"}:
            return plain(value["data"])
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [plain(v) for v in value]
    return value
