# SPDX-License-Identifier: GPL-3.0-or-later
"""The standard streams as a command line needs them, whatever it was started with."""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper
from typing import TextIO

_STREAMS = (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w"))


def prepare() -> None:
    """Have all three, open, and able to take any text.

    Python leaves out a stream whose descriptor is closed (``>&-``), and the next file that is
    opened, such as a socket, would get that descriptor. What a locale cannot write is escaped.
    """
    for name, number, mode in _STREAMS:
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def forget(stream: TextIO) -> None:
    """What is still to be written to it is not written at the end: that failed already."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
