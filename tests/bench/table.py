# SPDX-License-Identifier: GPL-3.0-or-later
"""Rows of a measurement and how they are printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One figure, what it is compared with, and what is aimed at.

    ``ratio`` is already the way round that the aim is stated in.
    """

    what: str
    value: float
    unit: str
    reference: float | None = None
    ratio: float | None = None
    aim: str = ""


def show(title: str, rows: Sequence[Row]) -> None:
    """Print one measurement's rows."""
    print(f"\n{title}\n{'':44}{'ours':>12}{'ssh':>12}{'ratio':>8}  aim")
    for row in rows:
        reference = f"{row.reference:.1f}" if row.reference is not None else ""
        ratio = f"{row.ratio:.2f}" if row.ratio is not None else ""
        name = f"{row.what} ({row.unit})"
        print(f"{name:44}{row.value:>12.1f}{reference:>12}{ratio:>8}  {row.aim}", flush=True)
