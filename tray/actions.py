# SPDX-License-Identifier: GPL-3.0-or-later
"""What a person can ask for, as plain values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Detach:
    """Detach the attachment or hub at ``path``."""

    path: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class Retry:
    """Try the waiting attachment or hub at ``path`` again now."""

    path: str
