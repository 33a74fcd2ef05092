# SPDX-License-Identifier: GPL-3.0-or-later
"""How long each fault takes until it is noticed and mended: measured, shown, kept in README.md.

`python3 tests/vm/fault_table.py` puts the table of the last run into README.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
REPORT = CHECKOUT / "build/reports/faults.md"
_BEGIN, _END = "<!-- faults -->", "<!-- faults end -->"


@dataclass
class Row:
    """One fault. Times are seconds since it happened; None where there is nothing to notice."""

    fault: str
    outcome: str = ""
    noticed: float | None = None
    usable: float | None = None


@dataclass
class Table:
    """What was measured, in the order of the tests."""

    rows: list[Row] = field(default_factory=list)

    @contextmanager
    def row(self, fault: str) -> Iterator[Row]:
        """A row that becomes part of the table if the block ends well."""
        row = Row(fault)
        yield row
        self.rows.append(row)

    def markdown(self) -> str:
        """The table as it stands in README.md."""
        lines = ["| Fault | Noticed | Usable again | |", "|---|--:|--:|---|"]
        lines += [
            f"| {row.fault} | {_seconds(row.noticed)} | {_seconds(row.usable)} | {row.outcome} |"
            for row in self.rows
        ]
        return "\n".join(lines) + "\n"

    def write(self) -> None:
        """Leave the table in build/reports."""
        REPORT.parent.mkdir(parents=True, exist_ok=True)
        REPORT.write_text(self.markdown())


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.1f} s" if value < 20 else f"{value:.0f} s"


def update_readme() -> None:
    """Replace the table in README.md by the last run's."""
    readme = CHECKOUT / "README.md"
    table = REPORT.read_text()
    text, count = re.subn(
        f"{_BEGIN}\n.*?{_END}",
        lambda _: f"{_BEGIN}\n{table}{_END}",
        readme.read_text(),
        flags=re.DOTALL,
    )
    if count != 1:
        raise SystemExit(f"README.md has no place for the table: {_BEGIN} … {_END}")
    readme.write_text(text)


if __name__ == "__main__":
    update_readme()
