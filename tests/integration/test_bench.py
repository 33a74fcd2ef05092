# SPDX-License-Identifier: GPL-3.0-or-later
"""What `make bench` measures can be measured; how fast it is, is not asked here."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[1] / "bench/run.py"
WANTED = ("ListRemote warm", "root process idle, resident", "one of 100 devices changed")


def test_the_daemon_s_and_the_tray_s_cost_can_be_measured() -> None:
    done = subprocess.run(
        [sys.executable, BENCH, "daemon_cost", "tray_cost"],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name in WANTED:
        assert re.search(rf"^{name}.* \d+\.\d", done.stdout, re.MULTILINE), (name, done.stdout)
