# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether files are root's alone: what is followed as root's word nobody else may have written.

OpenSSH checks this for a user's own configuration, but neither for a file that is named with ``-F``
nor for what that one includes; and a configuration can run programs (Match exec).
"""

from __future__ import annotations

import os
import re
import shlex
import stat
from pathlib import Path

MAX_FILE = 1 << 20
MAX_INCLUDED = 64
"""Files that one configuration may include, all together."""
MAX_DEPTH = 16
"""As with OpenSSH (READCONF_MAX_DEPTH)."""

_INCLUDE = re.compile(r"\s*\"?include\"?(?:\s*=\s*|\s+)(?P<words>.*)", re.IGNORECASE)


class NotRoots(Exception):
    """Not to be followed: which file, and why."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path}: {why}")


def check_roots_alone(path: Path) -> None:
    """Raise :exc:`NotRoots` if others than root could change what is found at ``path``.

    Folders count, on the way to it and to what a link leads to; one in which everybody may
    only touch what is theirs (sticky, as /tmp) is none that lets others in. Raises
    :exc:`OSError` where something is missing.
    """
    real = path.resolve(strict=True)
    for each in dict.fromkeys((real, *real.parents, *path.absolute().parents)):
        found = each.stat()
        open_ = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if each.is_dir() and found.st_mode & stat.S_ISVTX:
            open_ = 0
        if found.st_uid not in (0, os.geteuid()) or open_:
            raise NotRoots(each, "others than root can write to it; it is not followed")


def check_config(path: Path, home: Path) -> None:
    """Raise :exc:`NotRoots` unless an ssh configuration and all that it includes are root's alone.

    ``home`` is root's: what is included without a whole path is below its ``.ssh`` (ssh_config(5)).
    Raises :exc:`OSError` where the file itself is missing.
    """
    _check(path, home, set(), 0)


def _check(path: Path, home: Path, seen: set[Path], depth: int) -> None:
    check_roots_alone(path)
    if path in seen:
        return
    seen.add(path)
    if depth > MAX_DEPTH or len(seen) > MAX_INCLUDED + 1:
        raise NotRoots(path, f"more than {MAX_INCLUDED} files are included, or in more steps")
    with path.open("rb") as file:
        text = file.read(MAX_FILE + 1)
    if len(text) > MAX_FILE:
        raise NotRoots(path, f"it is longer than {MAX_FILE} bytes")
    for number, line in enumerate(text.decode("utf-8", "replace").splitlines(), 1):
        match = _INCLUDE.fullmatch(line)
        if match is None:
            continue
        for word in _words(path, number, match["words"]):
            for included in _matching(path, number, word, home):
                _check(included, home, seen, depth + 1)


def _words(path: Path, number: int, text: str) -> list[str]:
    try:
        return shlex.split(text, comments=True)
    except ValueError:
        raise NotRoots(path, f"line {number}: Include with a quote that does not end") from None


def _matching(path: Path, number: int, word: str, home: Path) -> list[Path]:
    if re.search(r"[$%{}\\]|\*\*", word) or (word.startswith("~") and not word.startswith("~/")):
        raise NotRoots(path, f"line {number}: an Include has to be a plain path or pattern")
    pattern = home / word[2:] if word.startswith("~/") else home / ".ssh" / word
    # What does not exist is left out by ssh, too.
    found = Path("/").glob(str(pattern.absolute()).lstrip("/"))
    return sorted(each for each in found if each.is_file())
