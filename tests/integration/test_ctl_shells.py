# SPDX-License-Identifier: GPL-3.0-or-later
"""Completion in real shells on a terminal, with the remotes and devices that there are."""

from __future__ import annotations

import codecs
import contextlib
import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakekernel import KEYBOARD, STICK
from integration.busfixtures import CHECKOUT
from integration.world import ALICE, World, world

SECONDS = 60.0
FILES = CHECKOUT / "completions"


@pytest.fixture(scope="module")
def w() -> Iterator[World]:
    with world() as made:
        made.add_remote()
        made.pi.plug("2-1", STICK)
        made.pi.plug("1-1", KEYBOARD)
        yield made
        made.detach_all()


@pytest.fixture(autouse=True)
def connected(w: World) -> None:
    """So that a listing is quick: a shell shows nothing where one takes long."""
    assert [d["busid"] for d in w.list()] == ["1-1", "2-1"]


@pytest.fixture(scope="module")
def folder(w: World) -> Path:
    """What a package installs, where alice can read it."""
    made = w.folder / "shells"
    made.mkdir()
    for name in ("usbipsshctl.bash", "usbipsshctl.fish", "_usbipsshctl"):
        shutil.copy(FILES / name, made / name)
    program = made / "usbipsshctl"
    program.write_text(f'#!/bin/sh\nexec {_python()} -m usbipsshd.ctl "$@"\n')
    program.chmod(0o755)
    return made


def _python() -> str:
    # What alice may run; a virtual environment below root's folders is not.
    return sys.executable if sys.executable.startswith("/usr/") else "/usr/bin/python3"


class Shell:
    """A shell on a terminal."""

    def __init__(self, w: World, folder: Path, *argv: str) -> None:
        home = folder / f"home-{argv[0]}"
        home.mkdir(exist_ok=True)
        os.chown(home, ALICE, ALICE)
        self._ours, theirs = pty.openpty()
        self._process = subprocess.Popen(
            ["setpriv", f"--reuid={ALICE}", f"--regid={ALICE}", "--clear-groups", *argv],
            env={
                "PATH": f"{folder}:/usr/bin:/bin", "TERM": "dumb", "LC_ALL": "C.UTF-8", "PS1": "",
                "HOME": str(home), "PYTHONPATH": str(w.tree), "PYTHONDONTWRITEBYTECODE": "1",
                "DBUS_SYSTEM_BUS_ADDRESS": w.bus.address,
            },
            stdin=theirs, stdout=theirs, stderr=theirs, cwd="/", start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._shown = ""

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def until(self, *words: str) -> None:
        """Wait for each of the words, in what is shown from now on."""
        end = time.monotonic() + SECONDS
        while not all(word in self._shown for word in words):
            ready, _, _ = select.select([self._ours], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"no {words!r} in {self._shown!r}"
            self._shown += self._decoder.decode(os.read(self._ours, 4096))
        # What came along with them is from now on.
        self._shown = self._shown[max(self._shown.index(w) + len(w) for w in words) :]

    def close(self) -> None:
        self._process.kill()
        self._process.wait(SECONDS)
        os.close(self._ours)


@contextlib.contextmanager
def shell(w: World, folder: Path, *argv: str) -> Iterator[Shell]:
    made = Shell(w, folder, *argv)
    try:
        yield made
    finally:
        made.close()


def test_bash(w: World, folder: Path) -> None:
    with shell(w, folder, "bash", "--norc", "--noprofile", "-i") as bash:
        bash.type(f"bind 'set bell-style none'; . {folder}/usbipsshctl.bash; echo re''ady\n")
        bash.until("ready")
        bash.type("usbipsshctl mon\t")
        bash.until("usbipsshctl monitor")
        bash.type("\x15usbipsshctl attach p\t2\t --js\t; echo en''d\n")
        bash.until("usbipsshctl attach pi 2-1 ", "end")
        bash.type("usbipsshctl list pi \t\t")
        bash.until("1-1", "2-1")
        bash.type("\x15usbipsshctl remote tr\tp\t")
        bash.until("usbipsshctl remote trust pi")


def test_zsh(w: World, folder: Path) -> None:
    with shell(w, folder, "zsh", "-f", "-i") as zsh:
        zsh.type(f"fpath+=({folder}); autoload -Uz compinit; compinit -u -D; echo re''ady\n")
        zsh.until("ready")
        zsh.type("usbipsshctl mon\t")
        zsh.until("monitor")
        zsh.type("\x15usbipsshctl list p\t2\t; echo en''d\n")
        zsh.until("2-1", "end")
        zsh.type("usbipsshctl list pi \t\t")
        zsh.until("1-1", "Logitech", "2-1", "SanDisk Ultra")


def test_fish(w: World, folder: Path) -> None:
    def candidates(line: str) -> dict[str, str]:
        # What fish shows when Tab is pressed behind the line.
        done = subprocess.run(
            [
                "setpriv", f"--reuid={ALICE}", f"--regid={ALICE}", "--clear-groups", "fish",
                "--no-config", "-c", f"source {folder}/usbipsshctl.fish; complete -C $argv", line,
            ],
            env={
                "PATH": f"{folder}:/usr/bin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/nonexistent",
                "PYTHONPATH": str(w.tree), "PYTHONDONTWRITEBYTECODE": "1",
                "DBUS_SYSTEM_BUS_ADDRESS": w.bus.address,
            },
            capture_output=True, text=True, timeout=SECONDS, check=True, cwd="/",
        )  # fmt: skip
        pairs = (text.partition("\t") for text in done.stdout.splitlines())
        return {word: meaning for word, _, meaning in pairs}

    assert list(candidates("usbipsshctl mon")) == ["monitor"]
    # fish shows what begins with a dot only after a dot.
    assert set(candidates("usbipsshctl attach ")) == {"pi"}
    assert candidates("usbipsshctl attach pi ") == {
        "1-1": "Logitech USB Keyboard", "2-1": "SanDisk Ultra",
    }  # fmt: skip
    assert "--keep" in candidates("usbipsshctl attach --k")
    assert candidates("usbipsshctl list nowhere ") == {}


def test_what_is_attached_can_be_detached(w: World, folder: Path) -> None:
    w.attach("2-1")
    with shell(w, folder, "bash", "--norc", "--noprofile", "-i") as bash:
        bash.type(f". {folder}/usbipsshctl.bash; echo re''ady\n")
        bash.until("ready")
        bash.type("usbipsshctl detach pi\t; echo en''d\n")
        bash.until("detach pi/2-1 ", "en")
        bash.until("end")
    assert w.attachments() == []
