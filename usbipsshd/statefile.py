# SPDX-License-Identifier: GPL-3.0-or-later
"""A small JSON file that is whole or not there, also after a power cut."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from pathlib import Path

from usbipsshd.messages import Packet

log = logging.getLogger(__name__)

MAX_SIZE = 32 << 20


def write_whole(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace a file's content, so that at any moment the old or the new is there.

    Raises :exc:`OSError`. The folder is made if it is missing.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    try:
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        with os.fdopen(fd, "wb") as file:
            os.fchmod(fd, mode)
            file.write(data)
            file.flush()
            os.fsync(fd)
        new.replace(path)
    except OSError:
        # What a full disk has taken of it helps nobody.
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def save(path: Path, value: Packet) -> bool:
    """Write an object; whether that went well. A failure is logged, what was there stays."""
    try:
        write_whole(path, json.dumps(value).encode())
    except OSError as error:
        log.error("cannot write %s: %s", path, error)  # noqa: TRY400
        return False
    return True


def load(path: Path) -> Packet:
    """Read an object; empty if there is none. A damaged file is set aside, with a log line."""
    try:
        if path.stat().st_size > MAX_SIZE:
            raise ValueError("too long")
        value = json.loads(path.read_bytes())
        if not isinstance(value, dict):
            raise ValueError("not an object")  # noqa: TRY004 - the file is at fault
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        set_aside(path, str(error))
        return {}
    return value


def set_aside(path: Path, why: str) -> None:
    """Keep a damaged file under another name."""
    aside = path.with_name(path.name + ".damaged")
    log.error("%s is damaged (%s) and was set aside as %s", path, why, aside.name)
    try:
        path.replace(aside)
    except OSError as error:
        log.error("cannot set %s aside: %s", path, error)  # noqa: TRY400
