# SPDX-License-Identifier: GPL-3.0-or-later
"""Values as the D-Bus contract has them."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.made import KEYBOARD, STICK

from usbipsshd.address import Address
from usbipsshd.attachment import Attachment, State
from usbipsshd.bus.encode import (
    attachment_number,
    attachment_path,
    attachment_properties,
    device_name,
    interface_name,
    listed_device,
    remote_path,
    remote_properties,
)
from usbipsshd.bus.values import Variant
from usbipsshd.device import Interface
from usbipsshd.link import LinkState, LinkStatus
from usbipsshd.remotes import Remote
from usbipsshd.service import Listed

TYPES = {
    "busid": "s", "vendor-id": "q", "product-id": "q", "vendor": "s", "product": "s",
    "serial": "s", "speed": "d", "class": "y", "subclass": "y", "protocol": "y", "busnum": "u",
    "devnum": "u", "driver": "s", "configuration": "y", "hub": "b", "state": "s",
    "interfaces": "aa{sv}",
}  # fmt: skip


def test_a_listed_devices_keys_and_types_are_the_contracts() -> None:
    values = listed_device(Listed(KEYBOARD, "available"))
    assert {k: v.signature for k, v in values.items()} == TYPES
    attached = listed_device(Listed(KEYBOARD, "attached", 7))
    assert attached.pop("attachment") == Variant("o", "/org/usbipssh1/attachment/7")
    assert attached["state"] == Variant("s", "attached")
    assert set(attached) == set(TYPES)


def test_a_listed_devices_interfaces() -> None:
    interfaces = listed_device(Listed(KEYBOARD, "available"))["interfaces"].value
    assert isinstance(interfaces, list)
    first, second = interfaces
    assert first == {
        "number": Variant("y", 0),
        "class": Variant("y", 3),
        "subclass": Variant("y", 1),
        "protocol": Variant("y", 1),
        "driver": Variant("s", "usbhid"),
        "name": Variant("s", "kbd"),
        "nodes": Variant("as", ["hidraw0", "event3"]),
    }
    assert second["name"] == Variant("s", "HID")


@pytest.mark.parametrize(
    ("triple", "name"),
    [
        ((3, 1, 1), "kbd"),
        ((3, 1, 2), "mouse"),
        ((3, 0, 0), "HID"),
        ((8, 6, 0x50), "UMASS"),
        ((2, 2, 1), "modem"),
        ((2, 6, 0), "ethernet"),
        ((2, 0, 0), "COM"),
        ((0xE0, 1, 1), "bluetooth"),
        ((0xFE, 1, 2), "DFU"),
        ((0xFE, 2, 0), ""),
        ((0x7B, 0, 0), ""),
    ],
)
def test_short_names(triple: tuple[int, int, int], name: str) -> None:
    assert interface_name(Interface(0, *triple)) == name


def test_attachment_paths() -> None:
    assert attachment_number(attachment_path(17)) == 17


@pytest.mark.parametrize(
    "text",
    ["", "/", "all", "/org/usbipssh1/attachment/", "/org/usbipssh1/attachment/0",
     "/org/usbipssh1/attachment/01", "/org/usbipssh1/attachment/-1",
     "/org/usbipssh1/attachment/1/x",
     "/org/usbipssh1/attachment/1\n", "/org/usbipssh1/attachment/٣", "/org/usbipssh1/hub/1",
     "/org/usbipssh1/attachment/9999999999"],
)  # fmt: skip
def test_what_is_no_attachments_path(text: str) -> None:
    assert attachment_number(text) == 0


@pytest.mark.parametrize(
    ("name", "last"),
    [("pi", "pi"), ("bench3", "bench3"), ("3d", "_33d"), ("a.b-c_d", "a_2eb_2dc_5fd"),
     ("u@[::1]", "u_40_5b_3a_3a1_5d"), ("é", "_c3_a9"), ("", "_")],
)  # fmt: skip
def test_remote_paths(name: str, last: str) -> None:
    assert remote_path(name) == "/org/usbipssh1/remote/" + last


@settings(max_examples=150)
@given(st.text(max_size=20), st.text(max_size=20))
def test_remote_paths_are_valid_and_tell_names_apart(one: str, two: str) -> None:
    try:
        paths = remote_path(one), remote_path(two)
    except UnicodeEncodeError:
        return
    for path in paths:
        assert re.fullmatch(r"/org/usbipssh1/remote/[A-Za-z0-9_]+", path)
    assert (paths[0] == paths[1]) is (one == two)


def test_an_attachments_properties() -> None:
    attachment = Attachment(3, "pi", "46f4:1", STICK, 1000)
    properties = attachment_properties(attachment)
    assert properties["State"] == "connecting"
    assert (properties["RemoteBusId"], properties["LocalBusId"]) == ("2-2", "")
    assert (properties["Hub"], properties["RetryAt"], properties["LastError"]) == ("/", 0, ("", ""))
    attachment.state, attachment.local_busid, attachment.port = State.ATTACHED, "4-1", 8
    properties = attachment_properties(attachment)
    assert (properties["State"], properties["LocalBusId"], properties["Port"]) == (
        "attached", "4-1", 8,
    )  # fmt: skip
    assert properties["Name"] == "QEMU QEMU USB HARDDRIVE"


def test_a_device_without_a_name_is_called_by_its_ids() -> None:
    assert device_name(replace(STICK, vendor="", product="")) == "46f4:0001"
    assert device_name(replace(STICK, vendor="")) == "QEMU USB HARDDRIVE"


def test_a_remotes_properties_tell_no_address() -> None:
    remote = Remote("pi", Address("usb", "10.0.0.3", 2200), sudo=True, label="The Pi")
    status = LinkStatus(LinkState.UNREACHABLE, "SHA256:x", ("name", "why"))
    properties = remote_properties(remote, status)
    assert properties == {
        "Name": "pi",
        "Label": "The Pi",
        "State": "unreachable",
        "OfferedHostKey": "SHA256:x",
        "LastError": ("name", "why"),
    }
