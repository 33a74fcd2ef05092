# SPDX-License-Identifier: GPL-3.0-or-later
"""New devices are held while one of ours is on a bus, and other people's are let through."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from unit.made import fill, refused, vhci_tree

from usbipsshd.errors import Code
from usbipsshd.hold import Hold

OURS = {"usb4": {"4-1"}}


class Bus:
    """A made-up virtual bus with a hold on it."""

    def __init__(self, root: Path) -> None:
        self.sys = root / "sys"
        self.hub = vhci_tree(self.sys) / "usb4"
        self.other = self.hub.parent / "usb3"
        self.record = root / "held.json"
        self.hold = Hold(self.sys, self.record)
        self.devices = self.sys / "bus/usb/devices"

    def default(self, hub: Path | None = None) -> str:
        return ((hub or self.hub) / "authorized_default").read_text().strip()

    def comes(self, busid: str, devnum: int = 2, descriptors: bytes = b"") -> None:
        """A device is new on a bus that is held."""
        fill(self.devices / busid, authorized=0, devnum=devnum)
        (self.devices / busid / "descriptors").write_bytes(descriptors)

    def goes(self, busid: str) -> None:
        shutil.rmtree(self.devices / busid)

    def authorized(self, *busids: str) -> list[bool]:
        return [(self.devices / b / "authorized").read_text().strip() == "1" for b in busids]

    def next_one(self) -> Hold:
        """What the next process makes of the record."""
        hold = Hold(self.sys, self.record)
        hold.recover()
        return hold


@pytest.fixture
def bus(tmp_path: Path) -> Bus:
    return Bus(tmp_path)


def test_a_bus_is_held_until_the_last_of_ours_has_left(bus: Bus) -> None:
    bus.hold.hold("usb4")
    for ours in ({"4-1", "4-2"}, {"4-2"}):
        bus.hold.settle({"usb4": ours})
        assert (bus.default(), bus.default(bus.other)) == ("0", "1")
        assert json.loads(bus.record.read_text())["usb4"]["before"] == "1"
    bus.hold.settle({})
    assert bus.default() == "1"
    assert not bus.record.exists()


def test_two_buses_are_held_apart(bus: Bus) -> None:
    bus.hold.hold("usb4")
    bus.hold.hold("usb3")
    bus.hold.settle(OURS)
    assert (bus.default(), bus.default(bus.other)) == ("0", "1")
    assert list(json.loads(bus.record.read_text())) == ["usb4"]


@pytest.mark.parametrize("before", ["1", "2"])
def test_the_switch_goes_back_to_what_it_was(bus: Bus, before: str) -> None:
    fill(bus.hub, authorized_default=before)
    bus.hold.hold("usb4")
    assert bus.default() == "0"
    bus.hold.settle({})
    assert bus.default() == before


def test_what_others_attach_is_let_through_and_ours_is_not(bus: Bus) -> None:
    bus.comes("4-1")
    bus.comes("4-5")
    bus.hold.hold("usb4")
    for busid in ("4-2", "4-3", "4-10", "3-1"):
        bus.comes(busid)
    bus.hold.settle({"usb4": {"4-1", "4-3"}})
    # Somebody had forbidden 4-5 before us, and 3-1 is on a bus that is not held.
    assert bus.authorized("4-1", "4-2", "4-3", "4-5", "4-10", "3-1") == [
        False, True, False, False, True, False,
    ]  # fmt: skip
    bus.comes("4-4")
    bus.hold.settle({})
    assert bus.authorized("4-4", "4-5") == [True, False]


def test_what_is_plugged_into_ours_is_not_let_through(bus: Bus) -> None:
    bus.hold.hold("usb4")
    for busid in ("4-1", "4-1.1", "4-1.1.2", "4-11", "4-11.1"):
        bus.comes(busid)
    bus.hold.settle(OURS)
    assert bus.authorized("4-1", "4-1.1", "4-1.1.2") == [False] * 3
    assert bus.authorized("4-11", "4-11.1") == [True] * 2


def test_what_somebody_forbids_later_stays_forbidden(bus: Bus) -> None:
    bus.hold.hold("usb4")
    bus.comes("4-2")
    bus.hold.settle(OURS)
    assert bus.authorized("4-2") == [True]
    fill(bus.devices / "4-2", authorized=0)
    bus.hold.settle(OURS)
    assert bus.authorized("4-2") == [False]
    # The next process knows of it, too.
    later = bus.next_one()
    later.settle(OURS)
    assert bus.authorized("4-2") == [False]
    # Plugged in anew it is another one.
    bus.comes("4-2", devnum=3)
    later.settle(OURS)
    assert bus.authorized("4-2") == [True]


def test_who_turns_the_switch_meanwhile_gets_it_so_at_the_end(bus: Bus) -> None:
    fill(bus.hub, authorized_default=2)
    bus.hold.hold("usb4")
    fill(bus.hub, authorized_default=1)
    bus.hold.settle(OURS)
    assert bus.default() == "0"
    bus.hold.settle({})
    assert bus.default() == "1"


def test_authorizing_only_what_was_approved(bus: Bus) -> None:
    bus.comes("4-1", descriptors=b"keyboard")
    assert not bus.hold.authorize("4-1", b"stick")
    assert bus.authorized("4-1") == [False]
    assert bus.hold.authorize("4-1", b"keyboard")
    assert bus.authorized("4-1") == [True]
    with pytest.raises(FileNotFoundError):
        bus.hold.authorize("4-9", b"")


@pytest.mark.parametrize("policy", ["0", "2"])
def test_a_bus_with_a_policy_of_its_own(bus: Bus, policy: str) -> None:
    fill(bus.hub, authorized_default=policy)
    assert bus.hold.blocked_by_policy("usb4")
    bus.hold.hold("usb4")
    bus.comes("4-2")
    bus.hold.settle(OURS)
    assert bus.hold.blocked_by_policy("usb4")
    assert bus.next_one().blocked_by_policy("usb4")
    bus.hold.settle({})
    assert bus.default() == policy
    assert bus.authorized("4-2") == [False]


def test_our_own_hold_is_not_taken_for_policy(bus: Bus) -> None:
    assert not bus.hold.blocked_by_policy("usb4")
    bus.hold.hold("usb4")
    assert not bus.hold.blocked_by_policy("usb4")
    assert not bus.next_one().blocked_by_policy("usb4")


def test_while_no_daemon_runs_the_bus_stays_held_and_the_next_one_knows(bus: Bus) -> None:
    bus.hold.hold("usb4")
    later = bus.next_one()
    assert bus.default() == "0"
    bus.comes("4-1")
    bus.comes("4-2")
    later.settle(OURS)
    assert bus.default() == "0"
    assert bus.authorized("4-1", "4-2") == [False, True]
    later.settle({})
    assert bus.default() == "1"
    assert not bus.record.exists()


def test_the_next_one_leaves_no_record_of_what_it_has_let_go(bus: Bus) -> None:
    bus.hold.hold("usb4")
    bus.next_one().settle({})
    assert not bus.record.exists()
    # Somebody's policy from then on is theirs, not an old hold of ours.
    fill(bus.hub, authorized_default=0)
    assert bus.next_one().blocked_by_policy("usb4")


def test_what_a_version_before_left(bus: Bus) -> None:
    bus.record.write_text('{"usb4": "1"}')
    fill(bus.hub, authorized_default=0)
    bus.next_one().settle({})
    assert bus.default() == "1"


def test_what_somebody_switched_while_no_daemon_ran_stays(bus: Bus) -> None:
    bus.record.write_text('{"usb4": {"before": "1", "seen": []}}')
    fill(bus.hub, authorized_default=2)
    bus.next_one().settle({})
    assert bus.default() == "2"


def test_a_bus_that_is_another_one_by_now_is_left_alone(bus: Bus) -> None:
    bus.record.write_text('{"usb4": {"before": "1", "seen": []}}')
    fill(bus.hub, authorized_default=0, serial="0000:00:14.0")
    bus.next_one().settle({})
    assert bus.default() == "0"


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "null", '{"usb9": "1"}', '{"../../usb4": "1"}', '{"": 1}', "\xff",
     '{"usb4": {"before": 1}}', '{"usb4": {"seen": [1]}}'],
)  # fmt: skip
def test_a_damaged_record_harms_nothing(bus: Bus, text: str) -> None:
    bus.record.write_bytes(text.encode("latin-1"))
    fill(bus.hub, authorized_default=0)
    bus.next_one().settle({})
    assert bus.default() == "0"


def test_a_bus_that_vanishes_while_it_is_held(bus: Bus) -> None:
    bus.hold.hold("usb4")
    (bus.devices / "usb4").unlink()
    bus.hold.settle(OURS)
    assert not bus.record.exists()


def test_what_cannot_be_written_down_is_not_turned(bus: Bus) -> None:
    bus.record.with_name("held.json.new").mkdir()
    with refused(Code.FAILED, "write"):
        bus.hold.hold("usb4")
    assert bus.default() == "1"


def test_a_switch_that_does_not_turn_is_no_hold(bus: Bus) -> None:
    (bus.hub / "authorized_default").unlink()
    with refused(Code.DEVICE_FAILED, "hold"):
        bus.hold.hold("usb4")
