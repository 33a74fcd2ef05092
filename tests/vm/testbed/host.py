# SPDX-License-Identifier: GPL-3.0-or-later
"""This machine: where things are kept, and how its programs are run."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[3]


class TestbedError(Exception):
    """Something the testbed needs did not work; the text says what."""

    __test__ = False


def cache_folder() -> Path:
    """Where images and downloads are kept between runs."""
    root = os.environ.get("USBIPSSHD_CACHE") or "/var/cache/usbipsshd-testbed"
    folder = Path(root) / "vm"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def say(text: str) -> None:
    """Tell the person who waits what is going on."""
    print(f"testbed: {text}", file=sys.stderr, flush=True)


@contextmanager
def step(text: str) -> Iterator[None]:
    """Say what is done, and how long it took."""
    begin = time.monotonic()
    say(f"{text} …")
    yield
    say(f"{text}: {time.monotonic() - begin:.1f} s")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file, so that two runs don't build the same thing."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def run(
    command: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    data: bytes | None = None,
    timeout: float = 600,
) -> str:
    """Run a program of this machine and return what it printed.

    Raises TestbedError with the program's own last words when it fails.
    """
    words = [str(word) for word in command]
    path = f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/local/sbin:/usr/sbin:/sbin"
    try:
        done = subprocess.run(
            words,
            cwd=cwd,
            input=data,
            capture_output=True,
            timeout=timeout,
            check=False,
            env={**os.environ, "PATH": path},
        )
    except FileNotFoundError as error:
        raise TestbedError(f"{words[0]} is missing: run tests/vm/install-host-packages") from error
    if done.returncode != 0:
        text = (done.stdout + done.stderr).decode(errors="replace")[-4000:]
        raise TestbedError(f"{' '.join(words)[:300]} ended with {done.returncode}:\n{text}")
    return done.stdout.decode(errors="replace")
