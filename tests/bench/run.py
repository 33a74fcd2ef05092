# SPDX-License-Identifier: GPL-3.0-or-later
"""``make bench``: what the relay and the processes cost, on loopback, as a table.

Each measurement is a function that returns rows; everything that is compared with OpenSSH is
measured beside it in the same run, alternating, and is best read as a ratio. Needs root, for sshd.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from bench import daemon_cost, relay, session_cost, tray_cost  # noqa: E402
from bench.table import Row, show  # noqa: E402

MEASUREMENTS: tuple[Callable[[], list[Row]], ...] = (
    relay.bulk,
    relay.round_trip,
    session_cost.start_and_memory,
    daemon_cost.list_remote_and_memory,
    tray_cost.menu_and_idle,
)


def main() -> None:
    """Run those whose name contains an argument, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of the measurements' names")
    names = parser.parse_args().names
    for measure in MEASUREMENTS:
        title = f"{measure.__module__}.{measure.__name__}".removeprefix("bench.")
        if not names or any(name in title for name in names):
            show(title, measure())


if __name__ == "__main__":
    main()
