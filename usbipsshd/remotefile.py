# SPDX-License-Identifier: GPL-3.0-or-later
"""One file of ``remotes.d``: a listed remote, in TOML, by root's hand or AddRemote's.

Keys: ``address`` s (``[user@]host[:port]``, the file's name if not given), ``sudo`` b, ``label`` s.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
from dataclasses import dataclass
from pathlib import Path

from usbipsshd.address import Address, parse_address
from usbipsshd.errors import UsbipError
from usbipsshd.text import clean

MAX_FILE = 64 << 10
"""Bytes."""
MAX_LABEL = 128

_KEYS = {"address": (str, "a text"), "sudo": (bool, "true or false"), "label": (str, "a text")}
_TOML_LINE = re.compile(
    r"(?P<why>.*) \(at (?:line (?P<line>\d+), column \d+|end of document)\)", re.S
)


class BadFile(Exception):
    """A file that lists no remote: where, and why."""

    def __init__(self, why: str, line: int = 0) -> None:
        super().__init__(why)
        self.why = why
        self.line = line
        """From 1; 0 where it is the whole file's fault."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What a file says."""

    address: Address
    sudo: bool
    label: str


def read_remote_file(path: Path, name: str) -> Listing:
    """Read the file of the remote ``name``; raise :exc:`BadFile`."""
    text = _read(path)
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        match = _TOML_LINE.fullmatch(str(error))
        if match is None:
            raise BadFile(str(error)) from None
        line = int(match["line"] or text.count("\n") + 1)
        raise BadFile(_sentence(match["why"]), line) from None
    except RecursionError:
        raise BadFile("It is nested too deeply.") from None
    for key, value in values.items():
        if key not in _KEYS:
            known = ", ".join(_KEYS)
            raise BadFile(
                f"There is no key {clean(key, 40)!r}; known are {known}.", _line(text, key)
            )
        kind, what = _KEYS[key]
        if type(value) is not kind:
            raise BadFile(f"{key} must be {what}.", _line(text, key))
    try:
        address = parse_address(values.get("address", name))
    except UsbipError as error:
        raise BadFile(error.message, _line(text, "address")) from None
    return Listing(address, values.get("sudo", False), clean(values.get("label", ""), MAX_LABEL))


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            if found.st_uid not in (0, os.geteuid()) or found.st_mode & (
                stat.S_IWGRP | stat.S_IWOTH
            ):
                raise BadFile("Others than root can write to it; chown it to root, chmod go-w.")
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise BadFile(f"It cannot be read: {error.strerror}.") from None
    if len(data) > MAX_FILE:
        raise BadFile(f"It is longer than {MAX_FILE} bytes.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadFile("It is not UTF-8.", data.count(b"\n", 0, error.start) + 1) from None


def _line(text: str, key: str) -> int:
    """Where a key of the file's top level is, as far as a plain look tells; else 0."""
    wanted = re.compile(rf"""\s*(["']?){re.escape(key)}\1\s*(=|\.)|\s*\[+\s*{re.escape(key)}\b""")
    for number, line in enumerate(text.split("\n"), 1):
        if wanted.match(line):
            return number
    return 0


def _sentence(why: str) -> str:
    return why if why.endswith(".") else f"{why}."
