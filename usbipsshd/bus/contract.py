# SPDX-License-Identifier: GPL-3.0-or-later
"""The D-Bus contract, read from dbus/org.usbipssh1.xml: what there is, and of which type."""

from __future__ import annotations

import copy
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib import resources
from typing import Any

from usbipsshd.bus.wire import library

_EMITS = "org.freedesktop.DBus.Property.EmitsChangedSignal"


class Emits(StrEnum):
    """How a change of a property is told (D-Bus specification, "Introspection Data Format")."""

    VALUE = "true"
    INVALIDATES = "invalidates"
    CONST = "const"
    NOTHING = "false"


@dataclass(frozen=True, slots=True)
class Method:
    """A method's arguments and results, as signatures."""

    takes: str
    gives: str


@dataclass(frozen=True, slots=True)
class Property:
    """A property's type. All of them are read-only."""

    signature: str
    emits: Emits


@dataclass(frozen=True)
class Interface:
    """One interface of the contract."""

    name: str
    methods: Mapping[str, Method]
    properties: Mapping[str, Property]
    signals: Mapping[str, str]
    xml: str
    """The ``<interface>`` element, without the prose."""


@dataclass(frozen=True)
class Contract:
    """All interfaces by name."""

    interfaces: Mapping[str, Interface]

    def methods(self) -> frozenset[tuple[str, str]]:
        """Every method there is, as interface and member."""
        return frozenset(
            (name, member) for name, i in self.interfaces.items() for member in i.methods
        )


def parse(text: str) -> Contract:
    """The contract in ``text``; raise :exc:`ValueError` if it is not one we can serve."""
    node = library("introspection").Node.parse(text)
    # The library's parser drops annotations.
    root = ET.fromstring(text)  # noqa: S314 - our own file
    elements = {str(e.get("name")): e for e in root.iter("interface")}
    return Contract({i.name: _interface(i, elements[i.name]) for i in node.interfaces})


def _interface(parsed: Any, element: ET.Element) -> Interface:
    emits = {
        str(p.get("name")): Emits(str(a.get("value")))
        for p in element.iter("property")
        for a in p.iter("annotation")
        if a.get("name") == _EMITS
    }
    if any(p.access.writable() for p in parsed.properties):
        raise ValueError(f"{parsed.name}: properties must be read-only")
    element = copy.deepcopy(element)
    element.tail = None
    for part in element.iter():
        part.text = part.tail = None
    ET.indent(element, " ")
    return Interface(
        name=parsed.name,
        methods={m.name: Method(m.in_signature, m.out_signature) for m in parsed.methods},
        properties={
            p.name: Property(p.signature, emits.get(p.name, Emits.VALUE)) for p in parsed.properties
        },
        signals={s.name: s.signature for s in parsed.signals},
        xml=ET.tostring(element, encoding="unicode"),
    )


@cache
def load() -> Contract:
    """The contract that comes with the package."""
    return parse(resources.files(__package__).joinpath("org.usbipssh1.xml").read_text("utf-8"))


_STANDARD = """
<node>
 <interface name="org.freedesktop.DBus.Peer">
  <method name="Ping"/>
  <method name="GetMachineId"><arg name="machine_uuid" type="s" direction="out"/></method>
 </interface>
 <interface name="org.freedesktop.DBus.Introspectable">
  <method name="Introspect"><arg name="xml_data" type="s" direction="out"/></method>
 </interface>
 <interface name="org.freedesktop.DBus.Properties">
  <method name="Get">
   <arg name="interface_name" type="s" direction="in"/>
   <arg name="property_name" type="s" direction="in"/>
   <arg name="value" type="v" direction="out"/>
  </method>
  <method name="GetAll">
   <arg name="interface_name" type="s" direction="in"/>
   <arg name="properties" type="a{sv}" direction="out"/>
  </method>
  <method name="Set">
   <arg name="interface_name" type="s" direction="in"/>
   <arg name="property_name" type="s" direction="in"/>
   <arg name="value" type="v" direction="in"/>
  </method>
  <signal name="PropertiesChanged">
   <arg name="interface_name" type="s"/>
   <arg name="changed_properties" type="a{sv}"/>
   <arg name="invalidated_properties" type="as"/>
  </signal>
 </interface>
 <interface name="org.freedesktop.DBus.ObjectManager">
  <method name="GetManagedObjects">
   <arg name="objects" type="a{oa{sa{sv}}}" direction="out"/>
  </method>
  <signal name="InterfacesAdded">
   <arg name="object" type="o"/>
   <arg name="interfaces" type="a{sa{sv}}"/>
  </signal>
  <signal name="InterfacesRemoved">
   <arg name="object" type="o"/>
   <arg name="interfaces" type="as"/>
  </signal>
 </interface>
</node>
"""


@cache
def standard() -> Contract:
    """The interfaces of the D-Bus specification that our objects have."""
    return parse(_STANDARD)
