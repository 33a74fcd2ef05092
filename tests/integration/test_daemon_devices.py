# SPDX-License-Identifier: GPL-3.0-or-later
"""Devices that cannot be had, each with its own error; and that nothing is left then."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fakekernel import HUB, KEYBOARD, SERIAL_ADAPTER, STICK, FakeInterface, FakeKernel
from integration.otherremotes import listed, other_sshd
from integration.world import ALICE, ATTACHMENT, BOB, World, wait_until, world

OPERATIONS = (
    "match_busid", "bind", "unbind", "probe", "rebind", "sockfd", "attach", "detach", "enumerate",
    "authorize",
)  # fmt: skip


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    with world() as made:
        made.pi.plug("2-1", STICK)
        made.pi.plug("1-1", KEYBOARD)
        made.pi.plug("1-2", SERIAL_ADAPTER)
        made.pi.plug("1-3", HUB)
        made.add_remote()
        made.list()
        yield made


@pytest.fixture
def w(shared: World) -> Iterator[World]:
    yield shared
    for kernel in (shared.desk, shared.pi):
        for operation in OPERATIONS:
            kernel.fail(operation, times=0)
    shared.pi.answer("2-1", "")
    shared.detach_all()
    shared.check_clean()
    assert shared.attachments() == []
    assert [d["busid"] for d in shared.list()] == ["1-1", "1-2", "1-3", "2-1"]


def refuses(w: World, code: str, pattern: str, *options: str, says: str = "") -> str:
    count = str(len(options) // 3)
    return w.refused(code, ALICE, "Attach", "ssa{sv}", "pi", pattern, count, *options, says=says)


def comes_to_rest(w: World) -> None:
    w.check_clean()
    wait_until(lambda: not w.attachments(), "its attachment stays")


def test_none_or_too_many(w: World) -> None:
    refuses(w, "DeviceNotFound", "1-9", says="pi")
    refuses(w, "DeviceNotFound", "dead:beef", says="pi")
    refuses(w, "DeviceNotFound", "1-3", says="hub")
    refuses(w, "DeviceNotFound", "05e3:0608", says="hub")
    message = refuses(w, "MultipleDevices", "", says="pi")
    for busid in ("1-1", "1-2", "2-1"):
        assert busid in message
    refuses(w, "MultipleDevices", "!2-1")


def test_another_one_than_was_expected(w: World) -> None:
    here = ("expect-vendor-id", "q", str(0x0781), "expect-product-id", "q", str(0x5581))
    refuses(w, "DeviceChanged", "2-1", "expect-vendor-id", "q", "1", says="2-1")
    refuses(w, "DeviceChanged", "2-1", *here[:3], "expect-product-id", "q", "1", says="2-1")
    w.attach("2-1", ALICE, "pi", *here)


def test_already_attached_and_not_attached(w: World) -> None:
    path = w.attach("2-1")
    refuses(w, "AlreadyAttached", "2-1", says="2-1")
    refuses(w, "AlreadyAttached", "781:5581", says="pi")
    w.call(ALICE, "Detach", "sa{sv}", "pi/2-1", "0")
    for target in (
        path,
        "pi/2-1",
        "pi/1-9",
        "4-1",
        "/org/usbipssh1/attachment/999",
        "/org/usbipssh1/hub/1",
    ):
        w.refused("NotAttached", ALICE, "Detach", "sa{sv}", target, "0")
    for target in ("", "nonsense", "/", "/org/usbipssh1", "pi/", "/2-1", "pi/../2-1", "-1", "ALL"):
        w.refused("InvalidArgs", ALICE, "Detach", "sa{sv}", target, "0")


def test_in_use_by_another(w: World) -> None:
    with other_sshd(w) as ports, listed(w, "again", ports[0]):
        path = w.attach("2-1", ALICE, "again")
        assert w.list(pattern="2-1")[0]["state"] == "exported"
        refuses(w, "DeviceBusy", "2-1", says="pi")
        assert w.get(path, ATTACHMENT, "State") == "attached"
        assert w.desk.transfer(w.get(path, ATTACHMENT, "Port"), 1000) == 1000


def test_a_lie_is_found_before_any_driver_sees_the_device(w: World) -> None:
    keyboard = FakeInterface(3, 1, 1, "usbhid", nodes=("input/event#",))
    lies = [
        KEYBOARD.but(speed="5000"),
        STICK.but(interfaces=(*STICK.interfaces, keyboard)),
        STICK.but(product_id=0x5580),
        STICK.but(bcd_device=0x0101),
    ]
    for lie in lies:
        w.pi.answer("2-1", "lie", lie)
        events = w.desk.events()
        try:
            message = refuses(w, "DeviceChanged", "2-1")
            w.desk.wait(lambda s: not s["ports"])
            seen: list[dict[str, Any]] = []
            while not seen or seen[-1]["action"] != "remove":
                seen.append(events.next())
        finally:
            events.close()
        # Enumerated, looked at, and let go: no interface, so no driver and no node.
        assert [e["action"] for e in seen if e.get("devtype") == "usb_device"] == [
            "add",
            "bind",
            "unbind",
            "remove",
        ]
        assert not [e for e in seen if e.get("devtype") == "usb_interface" or "devname" in e]
        assert "approved" in message
        comes_to_rest(w)


def test_one_that_was_exchanged_meanwhile(w: World) -> None:
    w.list()
    w.pi.plug("1-7", SERIAL_ADAPTER)
    attach = ("expect-vendor-id", "q", str(SERIAL_ADAPTER.vendor_id))
    w.pi.unplug("1-7")
    w.pi.plug("1-7", KEYBOARD)
    refuses(w, "DeviceChanged", "1-7", *attach)
    w.pi.unplug("1-7")


@pytest.mark.parametrize(
    ("operation", "code"),
    [
        ("bind 2-1", "EIO"),
        ("sockfd 2-1", "EINVAL"),
        ("match_busid", "EIO"),
        ("unbind 2-1", "EBUSY"),
    ],
)
def test_the_other_kernel_refuses(w: World, operation: str, code: str) -> None:
    w.pi.fail(operation, code, 1)
    refuses(w, "DeviceFailed", "2-1", says="pi")
    assert w.pi.state()["devices"]["2-1"]["driver"] == "usb"
    comes_to_rest(w)
    w.attach("2-1")


@pytest.mark.parametrize("operation", ["attach", "enumerate", "authorize"])
def test_this_kernel_refuses(w: World, operation: str) -> None:
    w.desk.fail(operation, "EIO", -1)
    refuses(w, "DeviceFailed", "2-1")
    w.desk.fail(operation, times=0)
    comes_to_rest(w)
    w.attach("2-1")


def test_the_other_kernel_hangs_up_at_once(w: World) -> None:
    w.pi.answer("2-1", "die")
    refuses(w, "DeviceFailed", "2-1")


def test_one_that_never_answers(w: World) -> None:
    w.pi.answer("2-1", "stall")
    refuses(w, "TimedOut", "2-1")


def test_names_are_used_up_there() -> None:
    with world() as w:
        w.pi.plug("2-1", STICK)
        w.add_remote()
        names = w.pi.root / "bus/usb/drivers/usbip-host/match_busid"
        for number in range(100, 116):
            names.write_text(f"add 1-{number}")
        refuses(w, "LimitsExceeded", "2-1", says="pi")


def test_no_free_port() -> None:
    with world(desk=FakeKernel(controllers=1, ports=1)) as w:
        w.pi.plug("1-1", KEYBOARD)
        w.pi.plug("1-2", SERIAL_ADAPTER)
        w.pi.plug("2-1", STICK)
        w.add_remote()
        w.attach("1-1")
        refuses(w, "NoFreePort", "1-2")
        w.attach("2-1")
        assert len(w.attachments()) == 2
        assert len(w.call(BOB, "ListLocal", "sa{sv}", "", "0")) == 2
