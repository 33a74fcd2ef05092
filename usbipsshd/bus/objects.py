# SPDX-License-Identifier: GPL-3.0-or-later
"""The objects that others see on the bus, and how calls find their way to handlers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from usbipsshd.bus import contract as contracts
from usbipsshd.bus.contract import Contract, Emits, Interface
from usbipsshd.bus.values import Call, Reply, StandardError, Variant
from usbipsshd.bus.wire import to_wire
from usbipsshd.errors import Code, UsbipError

ROOT = "/org/usbipssh1"

PEER = "org.freedesktop.DBus.Peer"
INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
PROPERTIES = "org.freedesktop.DBus.Properties"
OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"
_EVERYWHERE = (PEER, INTROSPECTABLE)
_ON_OBJECTS = (PEER, INTROSPECTABLE, PROPERTIES)

_DOCTYPE = (
    '<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"\n'
    ' "http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">\n'
)

Handler = Callable[[Call], Awaitable[Sequence[object]]]
"""Answers one method of the contract: one value for each type of its result."""

Values = dict[str, object]


class Emit(Protocol):
    """Sends a signal."""

    def __call__(  # noqa: D102
        self, path: str, interface: str, member: str, signature: str, body: Sequence[object]
    ) -> None: ...


class ObjectTree:
    """Objects with their properties. Types come from the contract, values are plain.

    Changes are told once per turn of the event loop, and before anything else that is sent
    meanwhile: who gets an answer or a signal has already been told what changed before it.
    Made and used inside a running event loop.
    """

    def __init__(
        self,
        emit: Emit,
        dispatch: Mapping[tuple[str, str], Handler],
        machine_id: str,
        contract: Contract | None = None,
    ) -> None:
        """``dispatch`` has a handler for each method of the contract, else :exc:`ValueError`."""
        self._contract = contract or contracts.load()
        missing = self._contract.methods() ^ frozenset(dispatch)
        if missing:
            names = ", ".join(".".join(m) for m in sorted(missing))
            raise ValueError(f"methods of the contract and handlers differ: {names}")
        self._emit = emit
        self._dispatch = dispatch
        self._machine_id = machine_id
        self._objects: dict[str, dict[str, Values]] = {}
        self._told: dict[tuple[str, str], Values] = {}
        """What was last told of properties that may have changed since."""
        self._flush_handle: asyncio.Handle | None = None

    # What the daemon does with it

    def add(self, path: str, interfaces: Mapping[str, Mapping[str, object]]) -> None:
        """Add an object with all properties of its interfaces, and tell."""
        if path in self._objects:
            raise ValueError(f"{path} is there already")
        to_wire("o", [path])
        new: dict[str, Values] = {}
        for name, values in interfaces.items():
            known = self._contract.interfaces[name].properties
            if known.keys() != values.keys():
                raise ValueError(f"{name}: {sorted(known.keys() ^ values.keys())} differ")
            new[name] = {p: self._checked(name, p, value) for p, value in values.items()}
        self.flush()
        self._objects[path] = new
        if path != ROOT:
            self._emit(
                ROOT,
                OBJECT_MANAGER,
                "InterfacesAdded",
                "oa{sa{sv}}",
                [path, self._with_standard(path)],
            )

    def change(self, path: str, interface: str, **values: object) -> None:
        """Set properties, and tell soon which of them really changed."""
        current = self._objects[path][interface]
        known = self._contract.interfaces[interface].properties
        for name, value in values.items():
            value = self._checked(interface, name, value)  # noqa: PLW2901
            if value == current[name]:
                continue
            if known[name].emits is Emits.CONST:
                raise ValueError(f"{interface}.{name} never changes")
            self._told.setdefault((path, interface), {}).setdefault(name, current[name])
            current[name] = value
        if self._told and self._flush_handle is None:
            self._flush_handle = asyncio.get_running_loop().call_soon(self.flush)

    def get(self, path: str, interface: str, name: str) -> object:
        """A property's value."""
        return self._objects[path][interface][name]

    def __contains__(self, path: object) -> bool:
        return path in self._objects

    def paths(self) -> list[str]:
        """The paths of all objects, sorted."""
        return sorted(self._objects)

    def remove(self, path: str) -> None:
        """Remove an object, and tell."""
        self.flush()
        interfaces = self._objects.pop(path)
        if path != ROOT:
            names = [*interfaces, *_ON_OBJECTS]
            self._emit(ROOT, OBJECT_MANAGER, "InterfacesRemoved", "oas", [path, names])

    def emit(self, path: str, interface: str, signal: str, *args: object) -> None:
        """Send a signal of the contract from an object."""
        if interface not in self._objects[path]:
            raise ValueError(f"{path} has no {interface}")
        self.flush()
        signature = self._contract.interfaces[interface].signals[signal]
        self._emit(path, interface, signal, signature, args)

    def flush(self) -> None:
        """Tell now what has changed."""
        if self._flush_handle is not None:
            self._flush_handle.cancel()
            self._flush_handle = None
        told, self._told = self._told, {}
        for (path, interface), before in told.items():
            current = self._objects[path][interface]
            known = self._contract.interfaces[interface].properties
            names = [n for n, old in before.items() if current[n] != old]
            changed = {
                n: Variant(known[n].signature, current[n])
                for n in names
                if known[n].emits is Emits.VALUE
            }
            invalidated = [n for n in names if known[n].emits is Emits.INVALIDATES]
            if changed or invalidated:
                self._emit(
                    path,
                    PROPERTIES,
                    "PropertiesChanged",
                    "sa{sv}as",
                    [interface, changed, invalidated],
                )

    # What callers do with it

    async def handle(self, call: Call) -> Reply:
        """Answer one call; raise :exc:`UsbipError` or :exc:`StandardError`."""
        interface = self._find(call)
        method = interface.methods[call.member]
        if call.signature != method.takes:
            raise UsbipError(
                Code.INVALID_ARGS,
                f"{call.member} takes arguments of the types '{method.takes}'.",
            )
        call.interface = interface.name
        handler = self._dispatch.get((interface.name, call.member))
        result = await handler(call) if handler else self._standard(call)
        self.flush()
        return Reply(method.gives, result)

    def _find(self, call: Call) -> Interface:
        """The interface that ``call`` means; it has the member."""
        if call.path in self._objects:
            standard = [*_ON_OBJECTS, *([OBJECT_MANAGER] if call.path == ROOT else [])]
            own = [self._contract.interfaces[name] for name in self._objects[call.path]]
        elif self._children(call.path) or call.interface == PEER:
            standard, own = list(_EVERYWHERE), []
        else:
            raise UsbipError(Code.UNKNOWN_OBJECT, "There is no such object.")
        present = own + [contracts.standard().interfaces[name] for name in standard]
        if call.interface:
            present = [i for i in present if i.name == call.interface]
            if not present:
                raise StandardError("UnknownInterface", "The object has no such interface.")
        for interface in present:
            if call.member in interface.methods:
                return interface
        raise StandardError("UnknownMethod", "The object has no such method.")

    def _standard(self, call: Call) -> Sequence[object]:
        self.flush()
        match call.member:
            case "Ping":
                return ()
            case "GetMachineId":
                return (self._machine_id,)
            case "Introspect":
                return (self._introspect(call.path),)
            case "GetManagedObjects":
                return ({p: self._with_standard(p) for p in self.paths() if p != ROOT},)
            case _:
                return self._property(call)

    def _property(self, call: Call) -> Sequence[object]:
        interface = str(call.args[0])
        values = self._objects[call.path].get(interface)
        if values is None:
            if interface not in contracts.standard().interfaces:
                raise StandardError("UnknownInterface", "The object has no such interface.")
            values = {}
        if call.member == "GetAll":
            return (self._variants(interface, values) if values else {},)
        name = str(call.args[1])
        if name not in values:
            raise StandardError("UnknownProperty", "The interface has no such property.")
        if call.member == "Set":
            raise StandardError("PropertyReadOnly", "All properties are read-only.")
        return (self._variants(interface, values)[name],)

    def _variants(self, interface: str, values: Values) -> dict[str, Variant]:
        known = self._contract.interfaces[interface].properties
        return {name: Variant(known[name].signature, value) for name, value in values.items()}

    def _with_standard(self, path: str) -> dict[str, dict[str, Variant]]:
        # As GDBus and sd-bus do, so that the interfaces of both signals are the same ones.
        own = {name: self._variants(name, v) for name, v in self._objects[path].items()}
        return own | {name: {} for name in _ON_OBJECTS}

    def _checked(self, interface: str, name: str, value: object) -> object:
        """``value`` as it will be sent; TypeError or ValueError if it is of another type."""
        return to_wire(self._contract.interfaces[interface].properties[name].signature, [value])[0]

    def _children(self, path: str) -> list[str]:
        start = path.rstrip("/") + "/"
        return sorted({p[len(start) :].split("/")[0] for p in self._objects if p.startswith(start)})

    def _introspect(self, path: str) -> str:
        standard = contracts.standard().interfaces
        names: Sequence[str] = _EVERYWHERE
        own: list[str] = []
        if path in self._objects:
            names = [*_ON_OBJECTS, *([OBJECT_MANAGER] if path == ROOT else [])]
            own = [self._contract.interfaces[n].xml for n in self._objects[path]]
        parts = [standard[n].xml for n in names] + own
        parts += [f' <node name="{child}"/>' for child in self._children(path)]
        return _DOCTYPE + "<node>\n" + "\n".join(parts) + "\n</node>\n"
