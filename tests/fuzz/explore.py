# SPDX-License-Identifier: GPL-3.0-or-later
"""Let a fuzzer that sees which code runs (atheris, libFuzzer) look for what a target can't take.

    explore.py TARGET SECONDS SEED FOLDER

Begins with the corpus; keeps in FOLDER what runs other code, and what fails as ``FOLDER-…``.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["usbipsshd"], enable_loader_override=False):
    from fuzz.targets import LONGEST, targets

CORPUS = Path(__file__).with_name("corpus")


def main() -> None:
    """Explore until the time is over; never returns."""
    name, seconds, seed, found = sys.argv[1], int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="usbipsshd-fuzz.") as folder:
        options = [
            f"-max_total_time={seconds}",
            f"-seed={seed}",
            f"-max_len={LONGEST}",
            f"-artifact_prefix={found}-",
            "-timeout=20",
            "-rss_limit_mb=1024",
            "-print_final_stats=1",
            "-verbosity=0" if seconds < 60 else "-verbosity=1",
        ]
        atheris.Setup(
            [sys.argv[0], *options, str(found), str(CORPUS / name)], targets(Path(folder))[name]
        )
        atheris.Fuzz()


if __name__ == "__main__":
    main()
