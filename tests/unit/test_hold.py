# SPDX-License-Identifier: GPL-3.0-or-later
"""New devices are held while somebody looks at ours, and other people's are let through."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from unit.made import fill, vhci_tree

from usbipsshd.hold import Hold


class Bus:
    """A made-up virtual bus with a hold on it."""

    def __init__(self, root: Path) -> None:
        self.sys = root / "sys"
        self.hub = vhci_tree(self.sys) / "usb4"
        self.other = self.hub.parent / "usb3"
        self.record = root / "held.json"
        self.hold = Hold(self.sys, self.record)

    def default(self, hub: Path | None = None) -> str:
        return ((hub or self.hub) / "authorized_default").read_text().strip()

    def comes(self, busid: str, authorized: int = 0) -> None:
        fill(self.sys / "bus/usb/devices" / busid, authorized=authorized)

    def authorized(self, busid: str) -> bool:
        return (self.sys / "bus/usb/devices" / busid / "authorized").read_text().strip() == "1"


@pytest.fixture
def bus(tmp_path: Path) -> Bus:
    return Bus(tmp_path)


def test_a_bus_is_held_for_as_long_as_the_context_lasts(bus: Bus) -> None:
    with bus.hold.holding(bus.hub):
        assert bus.default() == "0"
        assert bus.default(bus.other) == "1"
        assert json.loads(bus.record.read_text()) == {"usb4": "1"}
    assert bus.default() == "1"
    assert not bus.record.exists()


def test_nested(bus: Bus) -> None:
    with bus.hold.holding(bus.hub):
        with bus.hold.holding(bus.hub):
            pass
        assert bus.default() == "0"
    assert bus.default() == "1"


def test_side_by_side_whoever_leaves_last_lets_go(bus: Bus) -> None:
    first, second = bus.hold.holding(bus.hub), bus.hold.holding(bus.hub)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert bus.default() == "0"
    second.__exit__(None, None, None)
    assert bus.default() == "1"


def test_two_buses_are_held_apart(bus: Bus) -> None:
    with bus.hold.holding(bus.hub):
        with bus.hold.holding(bus.other):
            assert json.loads(bus.record.read_text()) == {"usb3": "1", "usb4": "1"}
        assert (bus.default(), bus.default(bus.other)) == ("0", "1")
        assert json.loads(bus.record.read_text()) == {"usb4": "1"}


def test_an_error_inside_lets_go_too(bus: Bus) -> None:
    with pytest.raises(RuntimeError), bus.hold.holding(bus.hub):
        raise RuntimeError
    assert bus.default() == "1"


@pytest.mark.parametrize("before", ["1", "2", "-1"])
def test_the_switch_goes_back_to_what_it_was(bus: Bus, before: str) -> None:
    fill(bus.hub, authorized_default=before)
    with bus.hold.holding(bus.hub):
        assert bus.default() in {"0", "01"}
    # A file is not a switch: of what was longer, the end may stay.
    assert bus.default().startswith(before)


def test_what_others_attach_is_let_through_and_ours_is_not(bus: Bus) -> None:
    bus.comes("4-1")
    with bus.hold.holding(bus.hub):
        for busid in ("4-2", "4-3", "4-4", "3-1"):
            bus.comes(busid)
        bus.hold.claim("4-3")
        bus.hold.pass_others(bus.hub, {"4-4"})
        assert [bus.authorized(f"4-{n}") for n in (1, 2, 3, 4)] == [False, True, False, False]
        bus.comes("4-5")
    # Somebody had forbidden 4-1 before us, 4-3 is ours, and 3-1 is not on that bus.
    assert [bus.authorized(f"4-{n}") for n in (1, 2, 3, 4, 5)] == [False, True, False, True, True]
    assert not bus.authorized("3-1")


def test_what_is_claimed_by_the_holder_is_not_let_through_at_the_end(bus: Bus) -> None:
    with bus.hold.holding(bus.hub, lambda: {"4-1"}):
        bus.comes("4-1")
        bus.comes("4-2")
    assert (bus.authorized("4-1"), bus.authorized("4-2")) == (False, True)


def test_a_claim_lasts_until_the_device_is_gone(bus: Bus) -> None:
    bus.comes("4-1")
    bus.hold.claim("4-1")
    with bus.hold.holding(bus.hub):
        pass
    assert not bus.authorized("4-1")
    (bus.sys / "bus/usb/devices/4-1/authorized").unlink()
    (bus.sys / "bus/usb/devices/4-1").rmdir()
    with bus.hold.holding(bus.hub):
        bus.comes("4-1")
    assert bus.authorized("4-1")


def test_authorizing_ours(bus: Bus) -> None:
    with bus.hold.holding(bus.hub):
        bus.comes("4-1")
        bus.hold.claim("4-1")
        bus.hold.authorize("4-1")
        assert bus.authorized("4-1")
    with pytest.raises(OSError, match="No such file"):
        bus.hold.authorize("4-9")


def test_a_forgotten_claim_is_none(bus: Bus) -> None:
    with bus.hold.holding(bus.hub):
        bus.comes("4-1")
        bus.hold.claim("4-1")
        bus.hold.forget("4-1")
    assert bus.authorized("4-1")


def test_a_bus_that_was_held_before_us_is_left_alone(bus: Bus) -> None:
    fill(bus.hub, authorized_default=0)
    assert bus.hold.blocked_by_policy(bus.hub)
    with bus.hold.holding(bus.hub):
        bus.comes("4-1")
        bus.hold.pass_others(bus.hub, set())
        assert bus.hold.blocked_by_policy(bus.hub)
        assert not bus.record.exists()
    assert bus.default() == "0"
    assert not bus.authorized("4-1")


def test_our_own_hold_is_not_taken_for_policy(bus: Bus) -> None:
    assert not bus.hold.blocked_by_policy(bus.hub)
    with bus.hold.holding(bus.hub):
        assert not bus.hold.blocked_by_policy(bus.hub)


def test_a_killed_daemon_puts_back_what_it_left(bus: Bus) -> None:
    never_left = bus.hold.holding(bus.hub)
    never_left.__enter__()
    assert bus.default() == "0"
    Hold(bus.sys, bus.record).recover()
    assert bus.default() == "1"
    assert not bus.record.exists()


def test_what_somebody_switched_meanwhile_stays(bus: Bus) -> None:
    bus.record.write_text('{"usb4": "1"}')
    fill(bus.hub, authorized_default=2)
    bus.hold.recover()
    assert bus.default() == "2"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", "null", '{"usb9": "1"}', '{"../../usb4": "1"}', '{"": 1}', "\xff"]
)
def test_a_damaged_record_harms_nothing(bus: Bus, text: str) -> None:
    bus.record.write_bytes(text.encode("latin-1"))
    fill(bus.hub, authorized_default=0)
    bus.hold.recover()
    assert bus.default() == "0"


def test_a_bus_that_vanishes_while_it_is_held(bus: Bus) -> None:
    with bus.hold.holding(bus.hub):
        (bus.hub / "authorized_default").unlink()
    assert not bus.record.exists()
