# SPDX-License-Identifier: GPL-3.0-or-later
"""How things stand, in one word: what the icon shows."""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    """The states of the icon."""

    IDLE = "idle"
    ATTACHED = "attached"
    TROUBLE = "trouble"
