# SPDX-License-Identifier: GPL-3.0-or-later
"""Which descriptors this process has open, for tests that look whether some are left."""

from __future__ import annotations

import gc
from pathlib import Path


def open_files() -> frozenset[str]:
    """Their numbers; one is that of the listing itself."""
    return frozenset(entry.name for entry in Path("/proc/self/fd").iterdir())


def open_before() -> frozenset[str]:
    """The same, to compare with later: what earlier tests left to the garbage collector is closed,
    or it would be closed at any moment from now on."""
    gc.collect()
    return open_files()
