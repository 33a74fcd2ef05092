# SPDX-License-Identifier: GPL-3.0-or-later
"""Kernels that are known to be bad at this, by their versions alone.

Only what kernel.org says itself, and only where a version tells it: a distribution may mend an old
one, and then counts in its own way.
"""

from __future__ import annotations

import re

MENDED = {
    (5, 10): 258, (5, 15): 209, (6, 1): 175, (6, 6): 136, (6, 12): 83, (6, 18): 24, (6, 19): 14,
}  # fmt: skip
"""The first of each stable line whose vhci-hcd checks how many packets a remote says it returns.

Before, one that lies writes past a transfer's memory: CVE-2026-31607, with these versions. Older
lines, and those between, were not mended; who still builds them mends them without that being seen.
"""

_RELEASE = re.compile(r"([0-9]{1,3})\.([0-9]{1,4})(?:\.([0-9]{1,4}))?(?![0-9])", re.ASCII)
_DEBIAN = re.compile(r"\bDebian ([0-9]{1,3})\.([0-9]{1,4})\.([0-9]{1,4})-", re.ASCII)


def version(release: str, build: str = "") -> tuple[int, int, int]:
    """A kernel's version, by what uname(2) says; the third number is 0 where it is not told.

    All are 0 where ``release`` makes no sense. Debian's and others' releases have a number of their
    own, or a 0, in the third place; Debian's ``build`` has the true one.
    """
    found = _DEBIAN.search(build) or _RELEASE.match(release)
    if found is None:
        return (0, 0, 0)
    first, second, third = found.groups(default="0")
    return (int(first), int(second), int(third))


def trusts_remotes(running: tuple[int, int, int]) -> str:
    """The first version that is mended, where ``running`` is known not to be; else empty."""
    line, patch = running[:2], running[2]
    mended = MENDED.get(line, 0)
    return "{}.{}.{}".format(*line, mended) if 0 < patch < mended else ""
