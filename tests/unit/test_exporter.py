# SPDX-License-Identifier: GPL-3.0-or-later
"""Giving back what this machine exports, in the order that keeps the kernel alive."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from unit.made import STICK, fill, plug, refused, run

import usbipsshd.exporter
from usbipsshd.errors import Code
from usbipsshd.exporter import LocalExporter
from usbipsshd.localusb import LocalUsb
from usbipsshd.udev import Events


class Log(Events):
    """Notes what is written where, and lets time pass step by step."""

    def __init__(self, sys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.sys = sys
        self.written: list[str] = []
        self.refuse: set[str] = set()
        self.steps: list[Callable[[], object]] = []
        monkeypatch.setattr(usbipsshd.exporter, "write", self._write)
        self.exporter = LocalExporter(sys, LocalUsb(sys), self)

    def _write(self, path: Path, text: str) -> None:
        self.written.append(f"{path.name} {text}")
        if path.name in self.refuse:
            raise OSError(19, "No such device")

    async def wait(self, seconds: float) -> None:
        self.written.append("wait")
        if self.steps:
            self.steps.pop(0)()
        await asyncio.sleep(0.001)


HELD = replace(STICK, driver="usbip-host", usbip_status=1, interfaces=())
BACK = ["unbind 2-2", "match_busid del 2-2", "rebind 2-2"]


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Log:
    return Log(tmp_path, monkeypatch)


@pytest.mark.parametrize("status", [1, 3])
def test_an_idle_device_is_given_back(log: Log, status: int) -> None:
    plug(log.sys, replace(HELD, usbip_status=status))
    run(log.exporter.unbind("2-2"))
    assert log.written == BACK


def test_a_device_in_use_is_disconnected_first_and_waited_for(log: Log) -> None:
    folder = plug(log.sys, replace(HELD, usbip_status=2))
    log.steps = [lambda: None, lambda: fill(folder, usbip_status=1)]
    run(log.exporter.unbind("2-2"))
    assert log.written == ["usbip_sockfd -1", "wait", "wait", *BACK]


def test_a_device_that_stays_in_use_is_not_touched(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usbipsshd.exporter, "IDLE_SECONDS", 0.5)
    plug(log.sys, replace(HELD, usbip_status=2))

    async def main() -> None:
        with refused(Code.DEVICE_BUSY, "2-2"):
            await log.exporter.unbind("2-2")

    run(main())
    assert set(log.written) == {"usbip_sockfd -1", "wait"}


def test_a_kernel_without_rebind_probes_instead(log: Log) -> None:
    plug(log.sys, HELD)
    log.refuse = {"rebind", "match_busid"}
    run(log.exporter.unbind("2-2"))
    assert log.written == [*BACK, "drivers_probe 2-2"]


@pytest.mark.parametrize("name", ["unbind", "drivers_probe"])
def test_a_kernel_that_refuses(log: Log, name: str) -> None:
    plug(log.sys, HELD)
    log.refuse = {name, "rebind"}

    async def main() -> None:
        with refused(Code.DEVICE_FAILED, "No such device"):
            await log.exporter.unbind("2-2")

    run(main())


def test_one_device_at_a_time(log: Log) -> None:
    first = plug(log.sys, replace(HELD, usbip_status=2))
    plug(log.sys, replace(HELD, busid="1-1"))
    log.steps = [lambda: None] * 3 + [lambda: fill(first, usbip_status=1)]

    async def main() -> None:
        await asyncio.gather(log.exporter.unbind("2-2"), log.exporter.unbind("1-1"))

    run(main())
    order = [w for w in log.written if w.startswith(("unbind", "rebind"))]
    assert order == ["unbind 2-2", "rebind 2-2", "unbind 1-1", "rebind 1-1"]
