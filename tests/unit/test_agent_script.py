# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent's parts and the one text that is made of them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from usbipsshd.session import script

MAIN = Path(script.__file__).with_name("agent.sh")
PARTS = MAIN.with_name("agent.d")


def _bare(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()[:1] not in ("", "#")]


def test_each_part_is_in_it_once_and_nothing_is_left_out() -> None:
    text = script.joined()
    for part in PARTS.iterdir():
        assert text.count(part.read_text()) == 1, part.name
    # Nothing but the lines that name parts is replaced.
    kept = [line for line in MAIN.read_text().splitlines() if "agent.d/" not in line]
    assert [line for line in kept if line not in text.splitlines()] == []
    assert "agent.d/" not in "".join(_bare(text))


def test_no_function_is_there_twice() -> None:
    names = re.findall(r"^(\w+)\(\) ", script.joined(), re.MULTILINE)
    assert len(names) > 100
    assert sorted(names) == sorted(set(names))


def test_it_travels_without_comments_and_stays_a_script() -> None:
    sent = script.travelling()
    assert sent.decode().splitlines() == _bare(script.joined())
    subprocess.run(["/bin/sh", "-n"], input=sent, check=True)


def test_the_main_file_runs_where_it_is(tmp_path: Path) -> None:
    """As a daemon that has no systemd starts it: the shell reads the parts itself."""
    told = [
        subprocess.run(
            [*command, str(tmp_path)],
            input=b"1 list\n", capture_output=True, check=True, cwd=MAIN.parent, timeout=60,
        )
        for command in (["sh", "agent.sh"], ["sh", "-c", script.travelling(), "agent"])
    ]  # fmt: skip
    assert told[0].stdout == told[1].stdout
    assert told[0].stdout.endswith(b"\n1 ok\n")
    assert told[0].stderr == told[1].stderr == b""
