# SPDX-License-Identifier: GPL-3.0-or-later
"""usbipsshctl with streams that are closed, full, unread, or of another character set."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from usbipsshd.client.errors import ClientError
from usbipsshd.client.snapshot import Manager, Remote, Snapshot
from usbipsshd.ctl.hints import advised

NO_BUS = "There is no system bus to talk to usbipsshd.\n"


def shell(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script of bash's in which ``ctl`` is usbipsshctl, without a message bus."""
    done = subprocess.run(
        ["bash", "-c", f'ctl() {{ "{sys.executable}" -m usbipsshd.ctl "$@"; }}\n{script}'],
        env={
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "DBUS_SYSTEM_BUS_ADDRESS": "unix:path=/nonexistent",
            "LC_ALL": "C.UTF-8",
            **environment,
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert "Exception ignored" not in done.stderr, done.stderr
    return done


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&-"])
def test_a_closed_stream_is_an_empty_one(closed: str) -> None:
    done = shell(f"ctl status {closed}")
    assert (done.returncode, done.stderr) == (7, f"usbipsshctl: {NO_BUS}")
    assert shell(f"ctl --version {closed} 2>&-").returncode == 0


@pytest.mark.parametrize("words", ["--help", "attach --help", "complete -- ''"])
def test_a_full_disk_is_told(words: str) -> None:
    done = shell(f"ctl {words} >/dev/full")
    assert done.returncode == 1
    assert done.stderr.startswith("usbipsshctl: ")
    assert "No space left" in done.stderr
    assert shell(f"ctl {words} >/dev/full 2>&1").returncode == 1


def test_nobody_has_to_read_to_the_end() -> None:
    for words in ("--help", "complete -- ''"):
        done = shell(f"set -o pipefail; ctl {words} | true")
        assert (done.returncode in (0, 1), done.stderr) == (True, "")


def test_what_a_character_set_lacks_is_escaped() -> None:
    done = shell("ctl remote trust --help", PYTHONIOENCODING="ascii")
    assert done.returncode == 0
    assert r"SHA256:\u2026" in done.stdout


def test_interrupted_while_it_is_loaded_it_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "dbus_next.py").write_text("raise KeyboardInterrupt")
    path = f"{tmp_path}:{Path(__file__).parents[2]}"
    done = shell("ctl status", PYTHONPATH=path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


KNOWN = Snapshot(
    present=True, manager=Manager(version="1"), remotes=(Remote(path="/x", name="pi"),)
)


@pytest.mark.parametrize(
    ("code", "message", "remote", "says"),
    [
        ("HostKeyUnknown", "Who is that?", "pi", "usbipsshctl remote trust pi"),
        ("HostKeyUnknown", "Who is that?", "root@10.0.0.1", "remote add NAME root@10.0.0.1"),
        ("SshAuthFailed", "Add the line in PublicKey.", "pi", "usbipsshctl key"),
        ("SshAuthFailed", "The agent has no key.", "pi", ""),
        ("UnknownRemote", "Nobody is called so.", "nope", "remote add nope "),
        ("InteractiveAuthorizationRequired", "You may not.", "pi", "on a terminal"),
        ("DeviceBusy", "It is in use.", "pi", ""),
    ],
)
def test_a_sentence_is_followed_by_the_command_that_helps(
    code: str, message: str, remote: str, says: str
) -> None:
    text = advised(ClientError(f"org.usbipssh1.Error.{code}", message), remote, KNOWN)
    assert text.startswith(message)
    assert says in text
    assert bool(says) == (text != message)
