# SPDX-License-Identifier: GPL-3.0-or-later
"""The contract's XML: complete, explained, and what the design says."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from usbipsshd.bus import contract
from usbipsshd.bus.contract import Emits
from usbipsshd.bus.values import Variant, options
from usbipsshd.errors import Code, UsbipError

CHECKOUT = Path(__file__).resolve().parents[2]
XML = CHECKOUT / "dbus/org.usbipssh1.xml"

METHODS = {
    "org.usbipssh1.Manager": {
        "ListRemote": ("ssa{sv}", "aa{sv}"),
        "ListLocal": ("sa{sv}", "aa{sv}"),
        "Attach": ("ssa{sv}", "o"),
        "AttachAll": ("ssa{sv}", "o"),
        "Export": ("ssa{sv}", "o"),
        "Detach": ("sa{sv}", "u"),
        "Unbind": ("ssa{sv}", "as"),
        "Reset": ("ssa{sv}", "as"),
        "Preflight": ("sa{sv}", "aa{sv}"),
        "AddRemote": ("sa{sv}", "o"),
        "RemoveRemote": ("sa{sv}", ""),
        "TrustHostKey": ("ssa{sv}", ""),
    },
    "org.usbipssh1.Attachment": {
        "Detach": ("a{sv}", ""),
        "SetOptions": ("a{sv}", ""),
        "GetStatistics": ("a{sv}", "a{sv}"),
    },
    "org.usbipssh1.Hub": {"Detach": ("a{sv}", "")},
    "org.usbipssh1.Remote": {},
}
PROPERTIES = {
    "org.usbipssh1.Manager": "Version:s PublicKey:s VhciAvailable:b FreePorts:a{su}",
    "org.usbipssh1.Attachment": (
        "Remote:s Direction:s Pattern:s RemoteBusId:s VendorId:q ProductId:q Name:s Serial:s "
        "Speed:d State:s LocalBusId:s Port:u DeviceNodes:as Keep:b Persist:b OwnerUid:u Hub:o "
        "AttachedAt:t RetryAt:t LastError:(ss)"
    ),
    "org.usbipssh1.Hub": (
        "Remote:s Pattern:s State:s Attachments:ao Persist:b OwnerUid:u RetryAt:t LastError:(ss)"
    ),
    "org.usbipssh1.Remote": "Name:s Label:s State:s OfferedHostKey:s LastError:(ss)",
}


def test_the_contract_is_the_designed_one() -> None:
    interfaces = contract.load().interfaces
    assert {
        name: {m: (d.takes, d.gives) for m, d in i.methods.items()}
        for name, i in interfaces.items()
    } == METHODS
    assert {
        name: " ".join(f"{p}:{d.signature}" for p, d in i.properties.items())
        for name, i in interfaces.items()
    } == PROPERTIES
    assert {n: dict(i.signals) for n, i in interfaces.items() if i.signals} == {
        "org.usbipssh1.Remote": {"DevicesChanged": ""}
    }


def test_every_method_ends_in_options() -> None:
    for interface in contract.load().interfaces.values():
        for method in interface.methods.values():
            assert method.takes.endswith("a{sv}")


def test_every_member_is_explained() -> None:
    parser = ET.XMLParser(target=ET.TreeBuilder(insert_comments=True))
    root = ET.parse(XML, parser).getroot()
    members = [e for e in root.iter() if e.tag in {"interface", "method", "property", "signal"}]
    assert len(members) > 50
    for member in members:
        first: Any = next(iter(member), None)
        assert first is not None and first.tag is ET.Comment, member.attrib
        assert (first.text or "").strip().endswith((".", ")")), member.attrib


def test_the_package_carries_the_contract() -> None:
    assert (CHECKOUT / "usbipsshd/bus/org.usbipssh1.xml").read_bytes() == XML.read_bytes()


def test_how_changes_are_told_is_stated_for_every_property() -> None:
    for element in ET.parse(XML).getroot().iter("property"):
        notes = {a.get("name"): a.get("value") for a in element.findall("annotation")}
        assert set(notes) == {"org.freedesktop.DBus.Property.EmitsChangedSignal"}
    manager = contract.load().interfaces["org.usbipssh1.Manager"]
    assert manager.properties["Version"].emits is Emits.CONST
    assert manager.properties["FreePorts"].emits is Emits.VALUE


@pytest.mark.parametrize(
    "text",
    [
        "<node><interface name='a.b'><property name='P' type='s' access='readwrite'/>"
        "</interface></node>",
        "<node><interface name='a.b'><method name='M'><arg type='aa' direction='in'/></method>"
        "</interface></node>",
    ],
)
def test_a_contract_that_cannot_be_served_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        contract.parse(text)


def test_options_of_the_right_type_come_as_values() -> None:
    given = {"keep": Variant("b", True), "expect-vendor-id": Variant("q", 7)}
    known = {"keep": "b", "expect-vendor-id": "q", "unmount": "b"}
    assert options(given, known) == {"keep": True, "expect-vendor-id": 7}


@pytest.mark.parametrize(
    "given", [{"kep": Variant("b", True)}, {"keep": Variant("u", 1)}, {"keep": True}, []]
)
def test_any_other_option_is_invalid(given: object) -> None:
    with pytest.raises(UsbipError) as caught:
        options(given, {"keep": "b"})
    assert caught.value.code is Code.INVALID_ARGS


def test_the_library_imports_on_a_python_without_no_type_check_decorator() -> None:
    code = (
        "import typing\n"
        "vars(typing).pop('no_type_check_decorator', None)\n"
        "import usbipsshd.bus.contract, usbipsshd.bus.connection\n"
        "print(len(usbipsshd.bus.contract.load().interfaces))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=CHECKOUT, check=False
    )
    assert (done.returncode, done.stdout) == (0, "4\n"), done.stderr
