# SPDX-License-Identifier: GPL-3.0-or-later
"""Unbind: exported devices go back to their drivers, whoever exported them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fakekernel import KEYBOARD, SERIAL_ADAPTER, STICK, FakeKernel
from integration.world import ALICE, BOB, World, world


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    with world() as made:
        made.pi.plug("2-1", STICK)
        made.pi.plug("1-1", KEYBOARD)
        made.desk.plug("1-4", SERIAL_ADAPTER)
        made.add_remote()
        made.list()
        yield made


@pytest.fixture
def w(shared: World) -> Iterator[World]:
    yield shared
    shared.detach_all()
    shared.check_clean()
    for kernel, busids in ((shared.pi, ("2-1", "1-1")), (shared.desk, ("1-4",))):
        for busid in busids:
            assert kernel.state()["devices"][busid]["driver"] == "usb"


def export(kernel: FakeKernel, busid: str) -> None:
    """What usbip(8) does, and leaves behind."""
    drivers = kernel.root / "bus/usb/drivers"
    (drivers / "usb/unbind").write_text(busid)
    (drivers / "usbip-host/match_busid").write_text(f"add {busid}")
    (drivers / "usbip-host/bind").write_text(busid)


def unbind(w: World, remote: str, pattern: str) -> list[str]:
    found: list[str] = w.call(ALICE, "Unbind", "ssa{sv}", remote, pattern, "0")
    return found


def test_what_somebody_else_left(w: World) -> None:
    export(w.pi, "2-1")
    assert w.list(pattern="2-1")[0]["state"] == "exported"
    assert unbind(w, "pi", "2-1") == ["2-1"]
    assert w.list(pattern="2-1")[0]["state"] == "available"


def test_all_of_it_at_once(w: World) -> None:
    export(w.pi, "2-1")
    export(w.pi, "1-1")
    assert unbind(w, "pi", "") == ["1-1", "2-1"]
    assert unbind(w, "pi", "") == []
    assert unbind(w, "pi", "2-1") == []


def test_one_in_an_error_state(w: World) -> None:
    export(w.pi, "2-1")
    w.pi.set_usbip_status("2-1", 3)
    assert unbind(w, "pi", "781:5581") == ["2-1"]


def test_ours_is_detached(w: World) -> None:
    path = w.attach("2-1")
    assert unbind(w, "pi", "2-1") == ["2-1"]
    assert path not in w.objects()
    w.check_clean()


def test_ours_gets_its_driver_back_even_if_attach_was_to_leave_it_without(w: World) -> None:
    w.attach("2-1", ALICE, "pi", "rebind", "b", "false")
    assert unbind(w, "pi", "2-1") == ["2-1"]
    assert w.pi.state()["devices"]["2-1"]["driver"] == "usb"
    options = ("1", "rebind", "b", "false")
    w.call(ALICE, "Export", "ssa{sv}", "pi", "1-4", *options)
    assert unbind(w, "", "1-4") == ["1-4"]
    assert w.desk.state()["devices"]["1-4"]["driver"] == "usb"
    assert w.attachments() == []


def test_this_machine(w: World) -> None:
    export(w.desk, "1-4")
    local = w.call(BOB, "ListLocal", "sa{sv}", "1-4", "0")
    assert local[0]["state"] == "exported"
    assert unbind(w, "", "403:6001") == ["1-4"]
    assert w.call(BOB, "ListLocal", "sa{sv}", "1-4", "0")[0]["state"] == "available"


def test_a_stale_export_is_taken_over_by_attach(w: World) -> None:
    export(w.pi, "2-1")
    w.attach("2-1")
    w.call(ALICE, "Detach", "sa{sv}", "pi/2-1", "0")


def test_what_does_not_match(w: World) -> None:
    w.refused("DeviceNotFound", ALICE, "Unbind", "ssa{sv}", "pi", "1-9", "0", says="pi")
    w.refused("DeviceNotFound", ALICE, "Unbind", "ssa{sv}", "", "1-9", "0", says="machine")
    w.refused("InvalidArgs", ALICE, "Unbind", "ssa{sv}", "pi", "(", "0")


def test_who_may(w: World) -> None:
    export(w.pi, "2-1")
    w.refused("AccessDenied", BOB, "Unbind", "ssa{sv}", "pi", "2-1", "0", says="unbind")
    w.refused("AccessDenied", BOB, "Unbind", "ssa{sv}", "", "", "0", says="unbind")
    assert w.list(pattern="2-1")[0]["state"] == "exported"
    assert unbind(w, "pi", "2-1") == ["2-1"]


def test_this_kernel_does_not_let_go(w: World) -> None:
    export(w.desk, "1-4")
    w.desk.fail("unbind 1-4", "EBUSY", 1)
    w.refused("DeviceFailed", ALICE, "Unbind", "ssa{sv}", "", "1-4", "0", says="machine")
    assert unbind(w, "", "1-4") == ["1-4"]
