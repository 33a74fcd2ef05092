# SPDX-License-Identifier: GPL-3.0-or-later
"""Fuzz every target for a while, two at a time, and tell what came of it.

    run.py SECONDS SEED [TARGET...]

SEED makes a run like the last one of the same program; with 0 it looks elsewhere each time.
What fails is left in build/fuzz; it belongs into tests/fuzz/corpus once it is mended.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fuzz.targets import NAMES

FOLDER = Path("build/fuzz")
START_SECONDS = 120
"""Until a fuzzer runs, and to end it."""


def explore(name: str, seconds: int, seed: str) -> tuple[str, int, str]:
    """Run one target; its name, how often it ran, and what the fuzzer said if it failed."""
    found = FOLDER / name
    found.mkdir(parents=True, exist_ok=True)
    program = Path(__file__).with_name("explore.py")
    try:
        done = subprocess.run(
            [sys.executable, program, name, str(seconds), seed, str(found)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=seconds + START_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return name, 0, "it did not end in time"
    runs = re.search(r"number_of_executed_units: (\d+)", done.stdout)
    failed = done.returncode != 0 or runs is None
    return name, int(runs[1]) if runs else 0, done.stdout[-4000:] if failed else ""


def main() -> int:
    """Print a line for each target; return an exit status."""
    seconds, seed, names = int(sys.argv[1]), sys.argv[2], sys.argv[3:] or NAMES
    status = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for name, runs, why in pool.map(lambda each: explore(each, seconds, seed), names):
            print(f"fuzz: {name:16} {runs:9} runs  {'FAILED' if why else 'ok'}", flush=True)
            if why:
                print(why, flush=True)
                status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
