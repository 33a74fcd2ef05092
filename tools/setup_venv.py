#!/usr/bin/python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make or refresh a virtual environment with the newest releases.

    tools/setup_venv.py FOLDER [GROUP...]

It holds what pyproject.toml names: the dependencies and the groups ``tray``, ``test`` and
``lint``, or the given groups alone, each in its newest release. A week later, or when the list
changes, it is brought up to date; a refresh that fails (no network) leaves the environment in use.
Every user can read it, whatever the umask.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
import tomllib
from pathlib import Path

MAX_AGE = 7 * 24 * 3600
"""Seconds after which newer releases are looked for."""


def wanted(names: list[str]) -> list[str]:
    """The requirements, from pyproject.toml."""
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    groups = project["optional-dependencies"]
    if names:
        return sorted(each for name in names for each in groups[name])
    return sorted([*project["dependencies"], *groups["tray"], *groups["test"], *groups["lint"]])


def main() -> int:
    """Bring the environment up to date; return an exit status."""
    os.umask(0o022)
    folder = Path(sys.argv[1])
    requirements = wanted(sys.argv[2:])
    stamp = folder / "requirements.sha256"
    digest = hashlib.sha256("\n".join([sys.version, *requirements]).encode()).hexdigest()
    current = stamp.exists() and stamp.read_text() == digest
    if current and time.time() - stamp.stat().st_mtime < MAX_AGE:
        return 0

    print(f"newest releases into {folder}", flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not current:
        # A broken or outdated one is not worth mending.
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    pip = [str(folder / "bin/pip"), "--disable-pip-version-check", "--quiet"]
    newest = ["install", "--upgrade", "--upgrade-strategy", "eager", *requirements]
    done = subprocess.run([*pip, *newest], check=False)
    if done.returncode != 0:
        if not current:
            return done.returncode
        print("no refresh: the environment stays as it is", file=sys.stderr)
    stamp.write_text(digest)
    return 0


if __name__ == "__main__":
    sys.exit(main())
