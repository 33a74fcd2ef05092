# SPDX-License-Identifier: GPL-3.0-or-later
"""What a killed daemon was about to look at is taken off its port by the next one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from unit.made import fill, refused, status_text, vhci_tree

from usbipsshd.errors import Code
from usbipsshd.takenports import TakenPorts
from usbipsshd.vhci import Vhci

DEVID = 0x00020003


class Machine:
    """A made-up vhci, and what one daemon after the other writes down."""

    def __init__(self, root: Path) -> None:
        self.sys = root / "sys"
        self.vhci = vhci_tree(self.sys)
        fill(self.vhci, detach="")
        self.record = root / "run/taken-ports.json"
        self.left: list[object] = []

    def dies_while_taking(self, *ports: int) -> None:
        context = TakenPorts(self.record).noted(ports, DEVID)
        context.__enter__()
        # Collected, it would end in order.
        self.left.append(context)

    def status(self, **ports: str) -> None:
        fill(self.vhci, status=status_text({int(name[1:]): rest for name, rest in ports.items()}))

    def next_one(self) -> str:
        """What the next daemon writes to detach."""
        TakenPorts(self.record).recover(Vhci(self.sys))
        assert not self.record.exists()
        return (self.vhci / "detach").read_text().strip()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize(
    "rest",
    ["005 000 00000000 000000 0-0", f"006 005 {DEVID:08x} 000003 4-1"],
    ids=["enumerating", "waiting"],
)
def test_its_port_is_freed(machine: Machine, rest: str) -> None:
    machine.status(p2=rest)
    machine.dies_while_taking(1, 2)
    assert machine.next_one() == "2"


def test_nothing_else_is_touched(machine: Machine) -> None:
    machine.status(p1="006 005 00020009 000003 4-1", p2=f"006 005 {DEVID:08x} 000003 4-2")
    machine.dies_while_taking(0, 1, 3)
    assert machine.next_one() == ""


def test_one_that_did_not_die_leaves_nothing_written(machine: Machine) -> None:
    taken = TakenPorts(machine.record)
    with taken.noted([1], DEVID):
        with taken.noted([2], DEVID + 1):
            notes = json.loads(machine.record.read_text())["taking"]
            assert [note["ports"] for note in notes] == [[1], [2]]
        assert len(json.loads(machine.record.read_text())["taking"]) == 1
    assert not machine.record.exists()
    machine.status(p1=f"006 005 {DEVID:08x} 000003 4-1")
    assert machine.next_one() == ""


@pytest.mark.parametrize("text", ["", "[]", "{", '{"taking": [7, {"ports": 3}, {"ports": ["2"]}]}'])
def test_a_damaged_record_harms_nothing(machine: Machine, text: str) -> None:
    machine.status(p2=f"006 005 {DEVID:08x} 000003 4-1")
    machine.record.parent.mkdir()
    machine.record.write_text(text)
    assert machine.next_one() == ""


def test_what_cannot_be_written_down_is_not_begun(machine: Machine) -> None:
    machine.record.with_name("taken-ports.json.new").mkdir(parents=True)
    begun = False
    with refused(Code.FAILED, "write"), TakenPorts(machine.record).noted([1], DEVID):
        begun = True
    assert not begun
