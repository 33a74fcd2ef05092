# SPDX-License-Identifier: GPL-3.0-or-later
"""The live objects are what dbus/org.usbipssh1.xml says."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator

import pytest
from fakekernel import STICK
from integration.busfixtures import CHECKOUT
from integration.world import ALICE, ATTACHMENT, BOB, MANAGER, REMOTE, ROOT, World, world

from usbipsshd import __version__

INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
PROPERTIES = "org.freedesktop.DBus.Properties"
EVERYWHERE = {INTROSPECTABLE, PROPERTIES, "org.freedesktop.DBus.Peer"}


@pytest.fixture(scope="module")
def w() -> Iterator[World]:
    with world() as made:
        made.pi.plug("2-1", STICK)
        made.add_remote()
        made.attach("2-1")
        yield made
        made.detach_all()


def members(interface: ET.Element) -> set[tuple[object, ...]]:
    """Everything of an interface that a caller can rely on."""
    found: set[tuple[object, ...]] = set()
    for member in interface:
        if member.tag == "annotation" or not isinstance(member.tag, str):
            continue
        args = tuple(
            (a.get("name"), a.get("type"), a.get("direction", "in")) for a in member.findall("arg")
        )
        notes = tuple(sorted((n.get("name"), n.get("value")) for n in member.findall("annotation")))
        found.add(
            (member.tag, member.get("name"), member.get("type"), member.get("access"), args, notes)
        )
    return found


def live(w: World, path: str) -> dict[str, ET.Element]:
    text = w.call(BOB, "Introspect", path=path, interface=INTROSPECTABLE)
    return {i.attrib["name"]: i for i in ET.fromstring(text).findall("interface")}


def test_live_introspection_is_the_contract(w: World) -> None:
    contract = {
        i.attrib["name"]: i
        for i in ET.parse(CHECKOUT / "dbus/org.usbipssh1.xml").getroot().findall("interface")
    }
    attachment = w.attachments()[0]
    for path, name, more in (
        (ROOT, MANAGER, {"org.freedesktop.DBus.ObjectManager"}),
        (attachment, ATTACHMENT, set()),
        (f"{ROOT}/remote/pi", REMOTE, set()),
    ):
        interfaces = live(w, path)
        assert set(interfaces) == {name, *EVERYWHERE, *more}
        assert members(interfaces[name]) == members(contract[name])
        # What it says it has is what it has.
        declared = {p.attrib["name"] for p in contract[name].findall("property")}
        assert set(w.get_all(path, name)) == declared


def test_the_tree_can_be_walked(w: World) -> None:
    done = w.bus.busctl(BOB, "tree", "--list", "org.usbipssh1")
    listed = {line for line in done.stdout.split() if line.startswith(ROOT)}
    assert {ROOT, *w.objects()} <= listed


def test_managed_objects_are_the_objects(w: World) -> None:
    manager = "org.freedesktop.DBus.ObjectManager"
    objects = w.call(BOB, "GetManagedObjects", interface=manager)
    assert set(objects) == {*w.attachments(), f"{ROOT}/remote/pi"}
    for path, interfaces in objects.items():
        for name, values in interfaces.items():
            if name.startswith("org.usbipssh1."):
                assert values == w.get_all(path, name)


def test_the_managers_properties(w: World) -> None:
    values = w.get_all(ROOT, MANAGER)
    assert values["Version"] == __version__
    kind, key = values["PublicKey"].split()[:2]
    assert kind == "ssh-ed25519"
    assert len(key) == 68
    assert "\n" not in values["PublicKey"]
    assert values["VhciAvailable"] is True
    assert set(values["FreePorts"]) == {"hs", "ss"}


def test_properties_are_read_only(w: World) -> None:
    for uid in (0, ALICE):
        w.refused(
            "PropertyReadOnly", uid, "Set", "ssv", MANAGER, "Version", "s", "x",
            interface=PROPERTIES,
        )  # fmt: skip


def test_what_is_not_there_is_named(w: World) -> None:
    w.refused("UnknownMethod", ALICE, "Explode")
    # Only the root object has it.
    manager = "org.freedesktop.DBus.ObjectManager"
    path = w.attachments()[0]
    w.refused("UnknownInterface", 0, "GetManagedObjects", path=path, interface=manager)
    w.refused(
        "UnknownObject",
        ALICE,
        "Detach",
        "a{sv}",
        "0",
        path=f"{ROOT}/attachment/99",
        interface=ATTACHMENT,
    )
    w.refused(
        "UnknownObject",
        ALICE,
        "Detach",
        "a{sv}",
        "0",
        path=f"{ROOT}/hub/1",
        interface="org.usbipssh1.Hub",
    )
    w.refused("UnknownProperty", ALICE, "Get", "ss", MANAGER, "Nonsense", interface=PROPERTIES)
    # This is no child of it.
    other = f"{ROOT}x"
    w.refused("UnknownObject", ALICE, "GetAll", "s", MANAGER, path=other, interface=PROPERTIES)


def test_others_do_not_get_the_name(w: World) -> None:
    done = w.bus.run_as(
        ALICE, "busctl", f"--address={w.bus.address}", "call", "org.freedesktop.DBus", "/",
        "org.freedesktop.DBus", "RequestName", "su", "org.usbipssh1", "4",
    )  # fmt: skip
    assert done.returncode != 0
