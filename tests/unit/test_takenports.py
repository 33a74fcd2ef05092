# SPDX-License-Identifier: GPL-3.0-or-later
"""Which ports are ours is known to the process that comes after a killed one."""

from __future__ import annotations

from pathlib import Path

import pytest
from unit.made import refused

from usbipsshd.errors import Code
from usbipsshd.takenports import TakenPorts


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return tmp_path / "run/taken-ports.json"


def test_one_that_dies_while_it_takes_a_port(record: Path) -> None:
    with TakenPorts(record).taking([1, 2], 9):
        assert TakenPorts(record).recover() == {1: 9, 2: 9}
    assert not record.exists()


def test_a_port_is_ours_until_it_is_forgotten(record: Path) -> None:
    taken = TakenPorts(record)
    for port, devid in ((2, 9), (3, 8)):
        with taken.taking([2, 3, 4], devid):
            taken.own(port, devid)
    assert TakenPorts(record).recover() == {2: 9, 3: 8}
    taken.forget(2)
    taken.forget(7)
    assert TakenPorts(record).recover() == {3: 8}
    taken.forget(3)
    assert not record.exists()


def test_what_was_ours_stays_ours_while_another_port_is_taken(record: Path) -> None:
    taken = TakenPorts(record)
    with taken.taking([2], 9):
        taken.own(2, 9)
    with taken.taking([2, 3], 8):
        assert TakenPorts(record).recover() == {2: 9, 3: 8}


def test_what_was_taken_over_is_written_down_on(record: Path) -> None:
    with TakenPorts(record).taking([1, 2], 9):
        later = TakenPorts(record)
        later.recover()
    later.forget(1)
    assert TakenPorts(record).recover() == {2: 9}


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"taking": [7, {"ports": 3}, {"ports": ["2"], "devid": 1}, {"ports": [2]}]}',
     '{"taking": [{"ports": [2], "devid": -1}]}'],
)  # fmt: skip
def test_a_damaged_record_harms_nothing(record: Path, text: str) -> None:
    record.parent.mkdir()
    record.write_text(text)
    assert TakenPorts(record).recover() == {}


def test_what_cannot_be_written_down_is_not_begun(record: Path) -> None:
    record.with_name("taken-ports.json.new").mkdir(parents=True)
    begun = False
    with refused(Code.FAILED, "write"), TakenPorts(record).taking([1], 9):
        begun = True
    assert not begun
