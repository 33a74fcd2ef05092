# SPDX-License-Identifier: GPL-3.0-or-later
"""Debian packages, from wherever this machine's own apt gets Debian from."""

from __future__ import annotations

import re
from pathlib import Path

from .host import TestbedError, run

SUITE = "bookworm"


def sources() -> str:
    """This machine's sources of Debian 12 as lines of a sources.list, nobody else's."""
    form = "deb $(REPO_URI) $(RELEASE) $(COMPONENT)"
    listed = run(
        ["apt-get", "indextargets", "--format", form, "Created-By: Packages", "Origin: Debian"]
    )
    wanted = re.compile(rf" {SUITE}\S* main$")
    lines = sorted({line for line in listed.splitlines() if wanted.search(line)})
    if not any(line.endswith(f" {SUITE} main") for line in lines):
        raise TestbedError(
            f"this machine's apt knows no source of Debian {SUITE}: run apt-get update"
        )
    return "".join(f"{line}\n" for line in lines)


def proxy_options() -> list[str]:
    """apt's proxy settings of this machine, as NAME VALUE lines of an apt.conf."""
    dump = run(["apt-config", "dump", "Acquire"])
    return [line for line in dump.splitlines() if re.match(r"Acquire::\w+::Proxy\S* ", line)]


def kernel_package() -> str:
    """The package that linux-image-amd64 stands for just now."""
    match = re.search(
        r"linux-image-\d\S*-amd64", run(["apt-cache", "depends", "linux-image-amd64"])
    )
    if match is None:
        raise TestbedError("apt does not know linux-image-amd64: run apt-get update")
    return match.group()


def unpack(package: str, target: Path) -> None:
    """Download a package and unpack it into `target`, without installing anything."""
    target.mkdir(parents=True, exist_ok=True)
    run(["apt-get", "download", package], cwd=target)
    for file in target.glob("*.deb"):
        run(["dpkg-deb", "-x", file, target])
        file.unlink()
