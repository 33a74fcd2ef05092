# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands on a virtual machine, over one ssh connection that all of them share."""

from __future__ import annotations

import shlex
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from .host import TestbedError


class CommandFailed(TestbedError):
    """A command on a machine ended with something else than 0."""

    def __init__(self, machine: str, command: str, code: int, out: str, err: str) -> None:
        super().__init__(f"on {machine}: {command[:300]} ended with {code}:\n{out}{err}"[:6000])
        self.code = code
        self.out = out
        self.err = err


@dataclass(frozen=True)
class Result:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


class Ssh:
    """Root's commands on one machine."""

    def __init__(self, machine: str, port: int, key: Path, control: Path) -> None:
        self.machine = machine
        self.port = port
        self._control = control
        self._options = [
            "-F", "none", "-i", str(key), "-p", str(port),
            "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none", "-o", "BatchMode=yes",
            "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
            "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=30", "-o", f"ControlPath={control}",
        ]  # fmt: skip

    def answers(self) -> bool:
        """Is there an ssh server at the other end yet?"""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as probe:
                return probe.recv(8).startswith(b"SSH-2.0")
        except OSError:
            return False

    def connect(self, deadline: float) -> None:
        """Wait for the server until `deadline` (monotonic seconds), then log in."""
        while not (self.answers() and self._logged_in()):
            if time.monotonic() > deadline:
                raise TestbedError(f"no ssh server on {self.machine} in time")
            time.sleep(0.2)

    def _logged_in(self) -> bool:
        """Begin the shared connection; one that is still booting may not be ready for it."""
        try:
            done = subprocess.run(
                ["ssh", *self._options, "-M", "-N", "-f", "root@127.0.0.1"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=60,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0

    def disconnect(self) -> None:
        """End the shared connection."""
        subprocess.run(
            ["ssh", *self._options, "-O", "exit", "root@127.0.0.1"],
            capture_output=True,
            timeout=20,
            check=False,
        )

    def words(self, command: str, *, terminal: bool = False) -> list[str]:
        """The local command line that runs `command` there."""
        extra = ["-t"] if terminal else []
        return ["ssh", *self._options, *extra, "root@127.0.0.1", *([command] if command else [])]

    def attempt(self, *words: str, data: bytes | str | None = None, timeout: float = 60) -> Result:
        """Run a command given as words; say how it ended."""
        command = shlex.join(words)
        sent = data.encode() if isinstance(data, str) else data
        try:
            done = subprocess.run(
                self.words(command),
                input=sent,
                stdin=subprocess.DEVNULL if sent is None else None,
                capture_output=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise TestbedError(
                f"on {self.machine}: {command[:300]} did not end in {timeout} s"
            ) from error
        out, err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        return Result(done.returncode, out, err)

    def run(self, *words: str, data: bytes | str | None = None, timeout: float = 60) -> str:
        """Run a command given as words and return its output. Raises CommandFailed."""
        done = self.attempt(*words, data=data, timeout=timeout)
        if done.code != 0:
            raise CommandFailed(self.machine, shlex.join(words), done.code, done.out, done.err)
        return done.out

    def shell(self, script: str, *arguments: str, timeout: float = 60) -> str:
        """Run a shell script there, with its arguments as $1, $2, …"""
        return self.run("sh", "-c", script, "sh", *arguments, timeout=timeout)

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """Start a command whose output is read while it runs."""
        return subprocess.Popen(
            self.words(shlex.join(words)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
