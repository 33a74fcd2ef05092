# SPDX-License-Identifier: GPL-3.0-or-later
"""Writing to sysfs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def write(path: Path, text: str) -> None:
    """Write ``text`` in one write(2), without a newline; raise :exc:`OSError`.

    A newline is part of the name for usbip-host's ``match_busid`` (drivers/usb/usbip/stub_main.c).
    """
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode("ascii"))
    finally:
        os.close(fd)


@contextmanager
def this_one(folder: Path) -> Iterator[Path]:
    """A device's folder for as long as the context lasts: not that of one that takes its place.

    What is in it is gone when the device is. Raises :exc:`OSError`.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
