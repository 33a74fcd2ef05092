# SPDX-License-Identifier: GPL-3.0-or-later
"""What is mounted, as the kernel tells it: proc(5), /proc/pid/mountinfo."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One mounted file system."""

    number: str
    """Its device's, such as ``8:1``; btrfs has one of its own."""
    point: str
    """Where it is mounted."""
    source: str
    """What was mounted, such as ``/dev/sda1``."""


def mounts(text: str) -> Iterator[Mount]:
    """What a mountinfo file tells; lines that are not as they should be are left out."""
    for line in text.splitlines():
        words = line.split(" ")
        # Optional fields end with a hyphen, then come the type and the source.
        end = words.index("-", 6) if "-" in words[6:] else len(words)
        if end + 2 < len(words):
            yield Mount(words[2], unescaped(words[4]), unescaped(words[end + 2]))


def unescaped(word: str) -> str:
    """A field as it was before the kernel wrote spaces and their like as ``\\040``."""
    return _ESCAPE.sub(lambda found: chr(int(found[1], 8)), word)
