# SPDX-License-Identifier: GPL-3.0-or-later
"""How long to wait before the next try."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import random

SHORTEST = 0.5
LONGEST = 60.0
JITTER = 0.25
"""Each wait is up to this part shorter than its nominal length, so that many don't try at once."""
GOOD_RUN = 10.0
"""Seconds after which a run counts as good, and waiting starts at the bottom again."""


@dataclass(slots=True)
class Backoff:
    """Waits that double from ``SHORTEST`` to ``LONGEST`` seconds."""

    random: Callable[[], float] = field(default=random)
    """From 0 to below 1."""
    _nominal: float = 0.0

    def next(self) -> float:
        """The seconds to wait now."""
        self._nominal = min(LONGEST, self._nominal * 2 or SHORTEST)
        return self._nominal * (1 - JITTER * self.random())

    def ran(self, seconds: float) -> None:
        """Take note of how long the last run lasted."""
        if seconds >= GOOD_RUN:
            self._nominal = 0.0

    def reset(self) -> None:
        """Start at the bottom again: something good has happened."""
        self._nominal = 0.0
