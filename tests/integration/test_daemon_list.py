# SPDX-License-Identifier: GPL-3.0-or-later
"""What a caller sees: lists of devices, here and there, and patterns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from fakekernel import BLUETOOTH, HUB, KEYBOARD, NETWORK, SERIAL_ADAPTER, STICK
from integration.calls import Pending
from integration.world import ALICE, BOB, MANAGER, ROOT, World, check_refusal, world

DEVICE_KEYS = {
    "busid": str, "vendor-id": int, "product-id": int, "vendor": str, "product": str,
    "serial": str, "speed": float, "class": int, "subclass": int, "protocol": int,
    "busnum": int, "devnum": int, "driver": str, "configuration": int, "hub": bool,
    "state": str, "interfaces": list,
}  # fmt: skip
"""DESIGN's dictionary; ``attachment`` only where there is one."""
INTERFACE_KEYS = {
    "number": int, "class": int, "subclass": int, "protocol": int,
    "driver": str, "name": str, "nodes": list,
}  # fmt: skip


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    with world() as made:
        made.pi.plug("2-1", STICK)
        made.pi.plug("1-10", SERIAL_ADAPTER)
        made.pi.plug("1-2", HUB)
        made.pi.plug("1-2.10", BLUETOOTH)
        made.pi.plug("1-2.2", KEYBOARD)
        made.desk.plug("2-3", NETWORK)
        made.desk.plug("1-1", KEYBOARD)
        made.add_remote()
        yield made


@pytest.fixture
def w(shared: World) -> Iterator[World]:
    yield shared
    shared.detach_all()
    shared.check_clean()


def by_busid(devices: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {d["busid"]: d for d in devices}


def test_the_list_is_in_tree_order_and_says_everything_of_each_device(w: World) -> None:
    devices = w.list()
    assert [d["busid"] for d in devices] == ["1-2", "1-2.2", "1-2.10", "1-10", "2-1"]
    for device in devices:
        assert {k: type(v) for k, v in device.items()} == {
            k: type(device[k]) if t is float else t for k, t in DEVICE_KEYS.items()
        }
        for interface in device["interfaces"]:
            assert {k: type(v) for k, v in interface.items()} == INTERFACE_KEYS
    keyboard = by_busid(devices)["1-2.2"]
    assert keyboard["vendor-id"] == 0x046D
    assert keyboard["product-id"] == 0xC31C
    assert keyboard["vendor"] == "Logitech"
    assert keyboard["product"] == "USB Keyboard"
    assert keyboard["serial"] == ""
    assert keyboard["speed"] == 1.5
    assert keyboard["busnum"] == 1
    assert keyboard["driver"] == "usb"
    assert keyboard["configuration"] == 1
    assert keyboard["hub"] is False
    assert keyboard["state"] == "available"
    first, second = keyboard["interfaces"]
    assert (first["class"], first["subclass"], first["protocol"]) == (3, 1, 1)
    assert first["driver"] == "usbhid"
    assert first["name"] == "kbd"
    assert sorted(first["nodes"]) == ["event0", "hidraw0"]
    assert second["number"] == 1
    stick = by_busid(devices)["2-1"]
    assert stick["speed"] == 5000
    assert stick["interfaces"][0]["name"] == "UMASS"
    assert sorted(stick["interfaces"][0]["nodes"]) == ["sda", "sda1"]
    assert by_busid(devices)["1-2"]["hub"] is True


def test_types_are_those_of_the_contract(w: World) -> None:
    answer = w.bus.busctl(
        ALICE, "--json=short", "call", "org.usbipssh1", ROOT, MANAGER,
        "ListRemote", "ssa{sv}", "pi", "2-1", "0",
    )  # fmt: skip
    for key, type_ in {
        "busid": "s", "vendor-id": "q", "product-id": "q", "vendor": "s", "product": "s",
        "serial": "s", "speed": "d", "class": "y", "subclass": "y", "protocol": "y",
        "busnum": "u", "devnum": "u", "driver": "s", "configuration": "y", "hub": "b",
        "state": "s", "interfaces": "aa{sv}",
    }.items():  # fmt: skip
        assert f'"{key}":{{"type":"{type_}"' in answer.stdout


def test_names_fall_back_to_usb_ids(w: World) -> None:
    device = w.list(pattern="1-2.10")[0]
    assert device["vendor"] == "Cambridge Silicon Radio, Ltd"
    assert device["product"] == "CSR8510 A10"


PATTERNS = {
    "": ["1-2", "1-2.2", "1-2.10", "1-10", "2-1"],
    "1-2": ["1-2"],
    "1-2.10": ["1-2.10"],
    "9-9": [],
    "0781:5581": ["2-1"],
    "781:5581": ["2-1"],
    "403:6001": ["1-10"],
    "a12:1": ["1-2.10"],
    "A12:0001": ["1-2.10"],
    "!781:5581": ["1-2", "1-2.2", "1-2.10", "1-10"],
    "-1-2": ["1-2.2", "1-2.10", "1-10", "2-1"],
    "030101": ["1-2.2"],
    "SanDisk   Ultra": ["2-1"],
    "4C531001550718": ["2-1"],
    "^0(781|403):": ["1-10", "2-1"],
    "!^0(781|403):": ["1-2", "1-2.2", "1-2.10"],
    "Ultra|Keyboard$|FT232R +USB": ["1-10", "2-1"],
    "nothing like it": [],
}


def begin(w: World, patterns: Iterable[str]) -> dict[str, Pending]:
    return {p: w.begin(ALICE, "ListRemote", "ssa{sv}", "pi", p, "0") for p in patterns}


def test_patterns(w: World) -> None:
    found = {p: [d["busid"] for d in c.value()] for p, c in begin(w, PATTERNS).items()}
    assert found == PATTERNS


BROKEN = ["(", "[a", "*", "a**", "!", "-", "x" * 300, "a\nb", "\x01", "(?P<a", "\\"]


def test_a_broken_pattern_is_refused(w: World) -> None:
    for call in begin(w, BROKEN).values():
        check_refusal(call.answer(), "InvalidArgs", "attern")
    w.refused("InvalidArgs", BOB, "ListLocal", "sa{sv}", "(", "0", says="attern")


EXPLODING = [
    "(a+)+$|(.*.*)*.*.*=$",
    "(?:(?:(?:(?:a{1000}){1000}){1000}){1000})",
    "(((.+)+)+)+\u00e9",
]


def test_a_pattern_that_explodes_ends_in_time(w: World) -> None:
    for call in begin(w, EXPLODING).values():
        answer = call.answer()
        if answer.error:
            check_refusal(answer, "InvalidArgs", "attern")
    assert len(w.list()) == 5


def test_anybody_may_list_this_machine(w: World) -> None:
    devices = w.call(BOB, "ListLocal", "sa{sv}", "", "0")
    assert [d["busid"] for d in devices] == ["1-1", "2-3"]
    assert set(devices[0]) == set(DEVICE_KEYS)
    assert [d["busid"] for d in w.call(BOB, "ListLocal", "sa{sv}", "0bda:8153", "0")] == ["2-3"]
    assert devices[1]["interfaces"][0]["nodes"] == ["eth0"]


def test_states(w: World) -> None:
    path = w.attach("2-1")
    there = by_busid(w.list())
    assert there["2-1"]["state"] == "attached"
    assert there["2-1"]["attachment"] == path
    assert there["1-10"]["state"] == "available"
    assert "attachment" not in there["1-10"]
    here = [d for d in w.call(BOB, "ListLocal", "sa{sv}", "", "0") if d["state"] == "attached"]
    assert [d["attachment"] for d in here] == [path]
    assert here[0]["busid"] == w.get(path, "org.usbipssh1.Attachment", "LocalBusId")
    assert here[0]["serial"] == STICK.serial


def test_a_device_that_comes_or_goes_is_seen_by_the_next_call(w: World) -> None:
    w.pi.plug("1-5", NETWORK)
    assert "1-5" in by_busid(w.list())
    w.pi.unplug("1-5")
    assert "1-5" not in by_busid(w.list())
