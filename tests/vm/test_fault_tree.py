# SPDX-License-Identifier: GPL-3.0-or-later
"""Twelve devices under one hub come and go at once, again and again."""

from __future__ import annotations

from time import monotonic

import pytest
from vm.faults import PERSON, Scene, eventually
from vm.testbed.desk import BUS_NAME
from vm.testbed.pi import LEAVES, TREE_PATTERN

from usbipsshd.journal import Happening

READY_SECONDS = 120.0
"""For pi to find all of them, and then for desk; both are emulated."""
GONE_SECONDS = 60.0


@pytest.mark.parametrize("rounds", [2, pytest.param(20, marks=pytest.mark.long)])
def test_twelve_under_one_hub(scene: Scene, rounds: int) -> None:
    pi, desk, log = scene.pi, scene.desk, scene.log
    hub = desk.attach_all(PERSON, TREE_PATTERN)
    gone, usable = [], []
    with scene.times.row(f"12 devices under one hub, plugged in and out {rounds} times") as row:
        for _ in range(rounds):
            begun = monotonic()
            pi.plug_tree()
            eventually(lambda: pi.leaves() == list(LEAVES), READY_SECONDS, "pi has all of them")
            last = begun
            for busid in LEAVES:
                came = log.wait(Happening.ATTACHED, busid, since=begun, seconds=READY_SECONDS)
                last = max(last, came)
            usable.append(last - begun)
            assert len(desk.taken_ports()) == len(LEAVES)
            pulled = monotonic()
            pi.unplug("tree")
            left = scene.settled(GONE_SECONDS)
            assert left == []
            gone.append(monotonic() - pulled)
        row.noticed, row.usable = max(gone), max(usable)
        row.outcome = "each time all are attached, and nothing is left; the slowest of all times"
    eventually(
        lambda: desk.properties(hub, f"{BUS_NAME}.Hub")["Attachments"] == [],
        GONE_SECONDS,
        "the hub has none of them any more",
    )
    assert desk.detach(PERSON, hub) == 0
