# SPDX-License-Identifier: GPL-3.0-or-later
"""Somebody at desk who is asked for a password, and types it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from .desk import BUS_NAME, ROOT, Desk
from .ssh import Result

PASSWORD = "open-sesame"

# Runs on desk. With "agent" polkit's own text agent speaks for the very process that becomes the
# command, which otherwise starts one itself. It throws away what was typed before it has switched
# the terminal's echo off, so that is waited for.
_AT_A_TERMINAL = r"""
import os, pty, sys, termios, time
agents, user, password, *command = sys.argv[1:]
pid, terminal = pty.fork()
if pid == 0:
    agent = (
        'mkfifo "$1"; pkttyagent --process $$ --notify-fd 9 9> "$1" & cat "$1"; rm "$1"; shift;'
        ' exec "$@"'
    )
    fifo = f"/tmp/agent-of-{user}"
    wrapped = ["sh", "-c", agent, "sh", fifo, *command] if agents == "agent" else command
    os.execvp("runuser", ["runuser", "-u", user, "--", *wrapped])
shown, answered = b"", 0
while True:
    try:
        shown += os.read(terminal, 4096)
    except OSError:
        break
    if shown.count(b"assword: ") > answered:
        answered += 1
        while termios.tcgetattr(terminal)[3] & termios.ECHO:
            time.sleep(0.02)
        os.write(terminal, password.encode() + b"\n")
sys.stdout.buffer.write(shown)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@dataclass(frozen=True)
class Answered:
    """How a call ended during which a password may have been asked for."""

    questions: int
    worked: bool
    shown: str


@contextmanager
def administrator(desk: Desk, user: str) -> Iterator[None]:
    """Make `user` an administrator with the password PASSWORD, while the block runs."""
    script = 'usermod -aG sudo "$1" && printf "%s:%s\\n" "$1" "$2" | chpasswd'
    desk.shell(script, user, PASSWORD)
    try:
        yield
    finally:
        desk.shell('gpasswd -d "$1" sudo; usermod -p "*" "$1"', user)


def call_answering(
    desk: Desk, user: str, password: str, member: str, signature: str, *arguments: str
) -> Answered:
    """Call a Manager method as `user`, who answers each question with `password`."""
    return _answering(
        desk, "agent", user, password, "busctl", "--timeout=120",
        "--allow-interactive-authorization=yes",
        "call", BUS_NAME, ROOT, f"{BUS_NAME}.Manager", member, signature, *arguments,
    )  # fmt: skip


def run_answering(desk: Desk, user: str, password: str, *command: str) -> Answered:
    """Run a command as `user`, at a terminal that nobody else asks questions on."""
    return _answering(desk, "none", user, password, *command)


def _answering(desk: Desk, agents: str, user: str, password: str, *command: str) -> Answered:
    done: Result = desk.ssh.attempt(
        "timeout", "150", "python3", "-c", _AT_A_TERMINAL, agents, user, password, *command,
        timeout=180,
    )  # fmt: skip
    text = done.out + done.err
    return Answered(text.count("assword: "), done.code == 0, text)
