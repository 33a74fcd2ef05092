# SPDX-License-Identifier: GPL-3.0-or-later
"""What the agent's lines mean, and what is refused."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usbipsshd.errors import Code
from usbipsshd.messages import MAX_DEVICES
from usbipsshd.session import replies
from usbipsshd.session.agent import command_line
from usbipsshd.session.replies import BadReply, Hello, Reply, parse_hello, split_tag

ATTRIBUTES = """a busnum 1
a devnum 4
a idVendor 046d
a idProduct c31c
a bcdDevice 6402
a bDeviceClass 00
a bDeviceSubClass 00
a bDeviceProtocol 00
a speed 1.5
a manufacturer Logitech
a product USB  Keyboard \x1b[31m\x07
a driver usb"""

KEYBOARD = f"""b 1 0000:00:14.0
d 1-1.3
{ATTRIBUTES}
i
a bInterfaceNumber 00
a bInterfaceClass 03
a bInterfaceSubClass 01
a bInterfaceProtocol 01
a driver usbhid
n input/event3
n hidraw0
i
a bInterfaceNumber 01
a bInterfaceClass 03
a bInterfaceSubClass 00
a bInterfaceProtocol 00
x 1201
x ff
ok"""


def read(text: str) -> Reply:
    reply = Reply()
    for line in text.split("\n"):
        reply.add(line)
    return reply


def test_a_device_is_read() -> None:
    reply = read(KEYBOARD)
    assert reply.done
    assert reply.error is None
    (device,) = reply.devices()
    assert device.busid == "1-1.3"
    assert (device.vendor_id, device.product_id, device.speed) == (0x046D, 0xC31C, 1.5)
    assert device.product == "USB Keyboard [31m"
    assert not device.virtual
    assert device.descriptors == b"\x12\x01\xff"
    first, second = device.interfaces
    assert first.triple == (3, 1, 1)
    assert first.nodes == ("hidraw0", "input/event3")
    assert second.driver == ""


def test_a_device_on_a_virtual_bus_is_known_as_such() -> None:
    (device,) = read(KEYBOARD.replace("0000:00:14.0", "vhci_hcd.0")).devices()
    assert device.virtual


def test_devices_come_in_tree_order_and_once() -> None:
    busids = ["2-1", "1-10", "1-2", "1-1.3", "1-1", "1-2"]
    reply = read("\n".join(f"d {busid}\n{ATTRIBUTES}" for busid in busids))
    assert [d.busid for d in reply.devices()] == ["1-1", "1-1.3", "1-2", "1-10", "2-1"]


@pytest.mark.parametrize(
    "broken", ["a idVendor zzzz", "a speed fast", "a busnum -1", "a devnum 99999999", "x 123"]
)
def test_a_malformed_device_is_left_out_and_the_others_stay(broken: str) -> None:
    reply = read(f"d 1-1\n{ATTRIBUTES}\n{broken}\nd 1-2\n{ATTRIBUTES}\nok")
    assert [device.busid for device in reply.devices()] == ["1-2"]


def test_an_interface_that_vanished_midway_is_left_out() -> None:
    (device,) = read(f"d 1-1\n{ATTRIBUTES}\ni\na bInterfaceNumber 00\nok").devices()
    assert device.interfaces == ()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "a idVendor 1",
        "i",
        "x 00",
        "d",
        "d ../../etc",
        "d 1-1 ",
        "d usb1",
        "d 1-1\na ../x y",
        "d 1-1\na " + "x" * 33 + " y",
        "b x y",
        "b -1 y",
        "dir relative",
        "dir /run/../etc",
        "dir /run/$(reboot)",
        "dir /" + "x" * 99,
        "ok 5",
        "fail",
        "fail Nonsense x",
        "ok\nok",
        "d 1-1\n" + "\n".join(f"a name{n} x" for n in range(99)),
        "d 1-1\n" + "i\n" * 99 + "ok",
        "d 1-1\n" + "x " + "00" * (replies.MAX_DESCRIPTORS + 1),
        "\n".join(["d 1-1"] * (MAX_DEVICES + 1)),
        "\n".join(["b 1 x"] * (replies.MAX_LINES + 1)),
        "\n".join(["b 1 " + "x" * 4000] * 2200),
    ],
)
def test_what_breaks_the_protocol_is_refused(text: str) -> None:
    with pytest.raises(BadReply):
        read(text)


@pytest.mark.parametrize(
    ("line", "code", "detail"),
    [
        ("fail DeviceBusy", Code.DEVICE_BUSY, ""),
        ("fail ModuleUnavailable usbip-host", Code.MODULE_UNAVAILABLE, "usbip-host"),
        ("fail DeviceFailed \x1b]0;x\x07 it broke", Code.DEVICE_FAILED, "]0;x it broke"),
        ("fail Failed " + "x" * 5000, Code.FAILED, "x" * 200),
    ],
)
def test_failures(line: str, code: Code, detail: str) -> None:
    reply = read(line)
    assert reply.done
    assert reply.error == (code, detail)


def test_the_folder_of_a_bind() -> None:
    assert read("dir /run/usbipssh.aB3xYz\nok").folder == "/run/usbipssh.aB3xYz"


def test_the_greeting() -> None:
    expected = Hello(0, "6.1.0-37-amd64", "debian", ("perl", "bash"))
    assert parse_hello(b"hello 1 0 6.1.0-37-amd64 debian perl,bash") == expected
    none = parse_hello(b"hello 1 1000 x unknown none")
    assert none is not None
    assert none.connectors == ()
    # Order is ours, unknown names are nobody's.
    odd = parse_hello(b"hello 1 0 x y bash,evil,python3,perl")
    assert odd is not None
    assert odd.connectors == ("perl", "python3", "bash")
    for line in (b"hello 2 0 x y perl", b"Welcome!", b"", b"\xff\x00", b"hello 1 -1 x y z"):
        assert parse_hello(line) is None


def test_tags() -> None:
    assert split_tag(b"12 a name  two  spaces ") == (12, "a name  two  spaces ")
    assert split_tag(b"1 a product \xff\xfe") == (1, "a product \ufffd\ufffd")
    for line in (b"", b"x ok", b"-1 ok", b"1", b"9999999999 ok"):
        with pytest.raises(BadReply):
            split_tag(line)


@given(st.lists(st.binary(max_size=60), max_size=20))
def test_nothing_but_bad_reply_ever_comes_of_bytes(lines: list[bytes]) -> None:
    reply = Reply()
    try:
        for line in lines:
            reply.add(split_tag(b"1 " + line)[1])
    except BadReply:
        pass
    reply.devices()


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
def test_the_command_starts_what_is_sent(shell: str) -> None:
    script = b'echo "$0|$1"; read -r line; echo "$line"\n'
    command = command_line(len(script), sudo=False, sysfs="/tmp/a b'$(x)")
    found = subprocess.run(
        [shell, "-c", command], input=script + b"1 list\n", check=True, capture_output=True
    )
    assert found.stdout == b"usbipssh-agent|/tmp/a b'$(x)\n1 list\n"
    assert command_line(5, sudo=True).startswith("exec sudo -n sh -c ")
