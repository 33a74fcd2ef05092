# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent unmounts what is on a device."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakekernel import STICK, FakeDevice, FakeKernel
from integration.agents import Agent, bind_request


@contextlib.contextmanager
def mounted(place: Path) -> Iterator[FakeDevice]:
    """A stick one of whose partitions is mounted there; really a tmpfs with its device number."""
    place.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
    try:
        dev = place.stat().st_dev
        yield STICK.but(dev={"sd?1": f"{os.major(dev)}:{os.minor(dev)}"})
    finally:
        subprocess.run(["umount", "-l", place], check=False, capture_output=True)


@pytest.mark.parametrize("name", ["plain", r"a b\c	d#e%s", "--help", "ünï"])
def test_file_systems_are_unmounted(
    agent: Agent, pi: FakeKernel, tmp_path: Path, name: str
) -> None:
    with mounted(tmp_path / name) as stick:
        pi.plug("2-1", stick)
        assert agent.fails(bind_request(pi, "2-1", stick, 0)).startswith("DeviceBusy ")
        assert pi.state()["log"] == []
        assert (tmp_path / name).is_mount()
        agent.bind(pi, "2-1", stick)
        assert not (tmp_path / name).is_mount()


def test_a_file_system_in_use_stays(agent: Agent, pi: FakeKernel, tmp_path: Path) -> None:
    with mounted(tmp_path / "used") as stick:
        pi.plug("2-1", stick)
        with (tmp_path / "used/file").open("w"):
            failure = agent.fails(bind_request(pi, "2-1", stick))
        name = Path("/proc/self/comm").read_text().strip()
        assert failure == f"DeviceBusy {name} (process {os.getpid()}) uses {tmp_path / 'used'}"
        assert (tmp_path / "used").is_mount()
        assert pi.state()["log"] == []
