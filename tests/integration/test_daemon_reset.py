# SPDX-License-Identifier: GPL-3.0-or-later
"""Reset: ports there and here, attached or not. The made-up kernel has no ioctl, so by sysfs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fakekernel import HUB, KEYBOARD, SERIAL_ADAPTER, STICK, FakeKernel
from integration.world import ALICE, ATTACHMENT, BOB, World, wait_until, world

PORTS = {"2-1": STICK, "1-1": HUB, "1-1.3": KEYBOARD}


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    with world() as made:
        for busid, device in PORTS.items():
            made.pi.plug(busid, device)
        made.desk.plug("1-4", SERIAL_ADAPTER)
        made.add_remote()
        made.list()
        yield made


@pytest.fixture
def w(shared: World) -> Iterator[World]:
    shared.list()
    yield shared
    shared.detach_all()
    shared.check_clean()


def reset(w: World, remote: str, pattern: str, uid: int = ALICE) -> Any:
    return w.call(uid, "Reset", "ssa{sv}", remote, pattern, "0")


def resets(kernel: FakeKernel, busid: str) -> int:
    """How often a device's authorization was taken or given."""
    return int(kernel.state()["log"].count(f"authorize {busid}"))


def export(kernel: FakeKernel, busid: str) -> None:
    """What usbip(8) does, and leaves behind."""
    drivers = kernel.root / "bus/usb/drivers"
    (drivers / "usb/unbind").write_text(busid)
    (drivers / "usbip-host/match_busid").write_text(f"add {busid}")
    (drivers / "usbip-host/bind").write_text(busid)


def test_one_that_nobody_uses(w: World) -> None:
    before = resets(w.pi, "2-1")
    assert reset(w, "pi", "SanDisk") == ["2-1"]
    assert resets(w.pi, "2-1") == before + 2
    device = w.pi.state()["devices"]["2-1"]
    assert (device["driver"], device["authorized"], device["configured"]) == ("usb", True, True)


def test_all_but_hubs(w: World) -> None:
    hub = resets(w.pi, "1-1")
    assert reset(w, "pi", "") == ["1-1.3", "2-1"]
    assert resets(w.pi, "1-1") == hub


@pytest.mark.parametrize("keep", [True, False])
def test_what_is_attached_comes_back(w: World, keep: bool) -> None:
    options = ("keep", "b", "true") if keep else ()
    path = w.attach("2-1", ALICE, "pi", *options)
    before = w.get_all(path, ATTACHMENT)
    done = resets(w.pi, "2-1")
    assert reset(w, "pi", "2-1") == ["2-1"]
    assert resets(w.pi, "2-1") == done + 2
    now = w.get_all(path, ATTACHMENT)
    assert (now["State"], now["LastError"]) == ("attached", ["", ""])
    assert now["AttachedAt"] > before["AttachedAt"]
    assert now["DeviceNodes"]
    assert w.list(pattern="2-1")[0]["state"] == "attached"
    # It is an attachment as before: without keep it ends with its device.
    assert w.call(ALICE, "Detach", "sa{sv}", "pi/2-1", "0") == 1
    w.check_clean()


def test_one_of_a_hub_comes_back(w: World) -> None:
    hub = w.call(ALICE, "AttachAll", "ssa{sv}", "pi", "SanDisk", "0")
    wait_until(w.attachments, "the hub attaches nothing")
    (path,) = w.attachments()
    wait_until(lambda: w.get(path, ATTACHMENT, "State") == "attached", "it is not attached")
    assert reset(w, "pi", "2-1") == ["2-1"]
    assert w.attachments() == [path]
    assert w.get_all(path, ATTACHMENT)["State"] == "attached"
    w.call(ALICE, "Detach", "sa{sv}", hub, "0")


def test_a_reset_that_fails_ends_nothing(w: World) -> None:
    path = w.attach("2-1")
    w.pi.fail("authorize 2-1", "EIO", -1)
    try:
        w.refused("DeviceFailed", ALICE, "Reset", "ssa{sv}", "pi", "2-1", "0", says="reset")
    finally:
        w.pi.fail("authorize 2-1", "EIO", 0)
    assert w.get_all(path, ATTACHMENT)["State"] == "attached"


@pytest.mark.parametrize("status", [1, 3])
def test_one_that_is_left_exported(w: World, status: int) -> None:
    export(w.pi, "2-1")
    w.pi.set_usbip_status("2-1", status)
    assert reset(w, "pi", "2-1") == ["2-1"]
    assert w.list(pattern="2-1")[0]["state"] == "available"


def test_this_machine(w: World) -> None:
    before = resets(w.desk, "1-4")
    assert reset(w, "", "403:6001") == ["1-4"]
    assert resets(w.desk, "1-4") == before + 2
    export(w.desk, "1-4")
    assert reset(w, "", "1-4") == ["1-4"]
    assert w.desk.state()["devices"]["1-4"]["driver"] == "usb"
    w.desk.fail("authorize 1-4", "EIO", 1)
    w.refused("DeviceFailed", ALICE, "Reset", "ssa{sv}", "", "1-4", "0", says="1-4")


def test_what_is_exported_comes_back(w: World) -> None:
    path = w.call(ALICE, "Export", "ssa{sv}", "pi", "1-4", "0")
    before = resets(w.desk, "1-4")
    assert reset(w, "", "1-4") == ["1-4"]
    assert resets(w.desk, "1-4") == before + 2
    now = w.get_all(path, ATTACHMENT)
    assert (now["State"], now["LastError"]) == ("attached", ["", ""])
    assert w.call(ALICE, "Detach", "sa{sv}", path, "0") == 1
    assert w.desk.state()["devices"]["1-4"]["driver"] == "usb"


def test_what_is_attached_is_reset_where_it_is(w: World) -> None:
    path = w.attach("2-1")
    here = w.get_all(path, ATTACHMENT)["LocalBusId"]
    w.refused("DeviceNotFound", ALICE, "Reset", "ssa{sv}", "", here, "0", says="elsewhere")


def test_what_does_not_match(w: World) -> None:
    w.refused("DeviceNotFound", ALICE, "Reset", "ssa{sv}", "pi", "1-9", "0", says="pi")
    w.refused("DeviceNotFound", ALICE, "Reset", "ssa{sv}", "pi", "1-1", "0", says="hubs")
    w.refused("InvalidArgs", ALICE, "Reset", "ssa{sv}", "pi", "(", "0")
    w.refused("DeviceNotFound", ALICE, "Reset", "ssa{sv}", "", "1-9", "0", says="machine")


def test_who_may(w: World) -> None:
    before = resets(w.pi, "2-1"), resets(w.desk, "1-4")
    w.refused("AccessDenied", BOB, "Reset", "ssa{sv}", "pi", "2-1", "0", says="reset")
    w.refused("AccessDenied", BOB, "Reset", "ssa{sv}", "", "1-4", "0", says="reset")
    assert (resets(w.pi, "2-1"), resets(w.desk, "1-4")) == before
