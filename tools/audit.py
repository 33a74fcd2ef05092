#!/usr/bin/python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask whether anything we run on has a known vulnerability.

    tools/audit.py PIP_AUDIT ENVIRONMENT

Looks at the newest releases, which are installed in ENVIRONMENT: Debian looks after its own. Fails
when an advisory is there for one of them. An index that can't be reached, or has no advisories,
is said and is no failure.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

LIMIT = 120.0
"""Seconds."""
OF_THE_ENVIRONMENT = frozenset({"pip", "setuptools"})
"""Every virtual environment has them; nothing of ours runs on them."""


def ask(program: Path, environment: Path) -> list[dict[str, Any]] | None:
    """pip-audit's answer for each package; None when it has none."""
    command: list[str | Path] = [program, "--progress-spinner=off", "--format=json"]
    for folder in sorted(environment.glob("lib/python3*/site-packages")):
        command += ["--path", folder]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
        answers: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError):
        return None
    return [each for each in answers if each["name"] not in OF_THE_ENVIRONMENT]


def main() -> int:
    """Print what was found; return an exit status."""
    answers = ask(Path(sys.argv[1]), Path(sys.argv[2])) or []
    looked_up = [each for each in answers if "skip_reason" not in each]
    if not looked_up:
        print("audit: no advisories can be reached from here; nothing was looked up")
        return 0
    found = [
        f"audit: {each['name']} {each['version']}: {one['id']}"
        f" (mended in: {', '.join(one['fix_versions']) or 'nothing yet'})"
        for each in looked_up
        for one in each["vulns"]
    ]
    print("\n".join(found) or f"audit: {len(looked_up)} of {len(answers)} packages looked up: ok")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
