# SPDX-License-Identifier: GPL-3.0-or-later
"""Text from outside, made harmless before anyone reads it."""

from __future__ import annotations

import unicodedata

# Cc control, Cf format (bidi overrides, zero width), Cs surrogates, Co private, Cn unassigned,
# Zl/Zp line and paragraph separators: none of them belongs in a device's name.
_DROPPED = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def clean(text: str, limit: int = 128) -> str:
    """Return ``text`` without control, format and unassigned characters.

    Runs of white space become one space, the ends are stripped, and at most
    ``limit`` characters are kept.
    """
    visible = (" " if c.isspace() else c for c in text[: limit * 8])
    kept = "".join(c for c in visible if unicodedata.category(c) not in _DROPPED)
    return " ".join(kept.split())[:limit].rstrip()
