# SPDX-License-Identifier: GPL-3.0-or-later
"""How long an attached device is waited for, by what it has so far."""

from __future__ import annotations

from dataclasses import replace

import pytest
from unit.made import STICK

from usbipsshd.device import Interface
from usbipsshd.usable import BIND_SECONDS, NODES_SECONDS, patience

DISK = Interface(0, 8, 6, 0x50, "usb-storage", nodes=("sda", "sg0"))
SPINNING = Interface(0, 8, 6, 0x50, "usb-storage", nodes=("sg0",))
UNBOUND_DISK = Interface(0, 8, 6, 0x50)
SERIAL = Interface(1, 0xFF, 0, 0, "ftdi_sio", nodes=("ttyUSB0",))
BARE = Interface(1, 0xFF, 0, 0)


@pytest.mark.parametrize(
    ("approved", "now", "seconds"),
    [
        pytest.param([DISK], [DISK], 0.0, id="all is there"),
        pytest.param([BARE], [BARE], 0.0, id="nothing is expected of it"),
        pytest.param([DISK], [SPINNING], NODES_SECONDS, id="a disk that spins up"),
        pytest.param([DISK], [UNBOUND_DISK], BIND_SECONDS, id="no driver yet, or none at all"),
        pytest.param([BARE], [BARE, SPINNING], NODES_SECONDS, id="a disk that was not told of"),
        pytest.param([SERIAL], [BARE], BIND_SECONDS, id="a driver that only the remote has"),
        pytest.param([DISK, SERIAL], [DISK, BARE], BIND_SECONDS, id="one of two without a driver"),
        pytest.param([DISK, SERIAL], [SPINNING, BARE], NODES_SECONDS, id="one of two spins up"),
        pytest.param([DISK, SERIAL], [DISK, SERIAL], 0.0, id="both are there"),
        pytest.param([DISK], [], BIND_SECONDS, id="not yet configured"),
        pytest.param([DISK], None, BIND_SECONDS, id="not yet seen"),
    ],
)
def test_patience(approved: list[Interface], now: list[Interface] | None, seconds: float) -> None:
    there = None if now is None else replace(STICK, interfaces=tuple(now))
    assert patience(replace(STICK, interfaces=tuple(approved)), there) == seconds
