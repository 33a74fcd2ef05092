# SPDX-License-Identifier: GPL-3.0-or-later
"""What others see on the bus: objects, properties, signals, introspection, errors."""

from __future__ import annotations

import asyncio
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from integration.busfixtures import CHECKOUT, SystemBus, bus_call, client_call, system_bus

from usbipsshd.bus import contract
from usbipsshd.bus.connection import Connection
from usbipsshd.bus.contract import Contract
from usbipsshd.bus.objects import ROOT, Handler, ObjectTree
from usbipsshd.bus.values import Call, Variant
from usbipsshd.errors import Code, UsbipError

NAME = "org.usbipssh1"
MANAGER, REMOTE = "org.usbipssh1.Manager", "org.usbipssh1.Remote"
PROPERTIES = "org.freedesktop.DBus.Properties"
OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"
ALICE = 61001

MANAGER_VALUES = {
    "Version": "0.1.0",
    "PublicKey": "",
    "VhciAvailable": True,
    "FreePorts": {"hs": 8, "ss": 8},
}
REMOTE_VALUES = {
    "Name": "pi",
    "Label": "",
    "State": "idle",
    "OfferedHostKey": "",
    "LastError": ("", ""),
}
HUB_VALUES = {
    "Remote": "pi",
    "Pattern": "",
    "State": "attached",
    "Attachments": ["/org/usbipssh1/attachment/1"],
    "Persist": False,
    "OwnerUid": 1000,
    "RetryAt": 0,
    "LastError": ("", ""),
}
ATTACHMENT_VALUES = {
    "Remote": "pi",
    "Direction": "import",
    "Pattern": "keyboard",
    "RemoteBusId": "1-1",
    "VendorId": 0x46D,
    "ProductId": 0xC31C,
    "Name": "Keyboard",
    "Serial": "",
    "Speed": 1.5,
    "State": "attached",
    "LocalBusId": "5-1",
    "Port": 0,
    "DeviceNodes": ["/dev/input/event5"],
    "Keep": False,
    "Persist": False,
    "OwnerUid": 1000,
    "Hub": "/",
    "AttachedAt": 1_700_000_000_000_000,
    "RetryAt": 0,
    "LastError": ("", ""),
}
OBJECTS: dict[str, dict[str, dict[str, Any]]] = {
    ROOT: {MANAGER: MANAGER_VALUES},
    "/org/usbipssh1/remote/pi": {REMOTE: REMOTE_VALUES},
    "/org/usbipssh1/hub/1": {"org.usbipssh1.Hub": HUB_VALUES},
    "/org/usbipssh1/attachment/1": {"org.usbipssh1.Attachment": ATTACHMENT_VALUES},
}


async def _nothing(call: Call) -> Sequence[object]:
    raise UsbipError(Code.NOT_SUPPORTED, "Not in this test.")


async def _list(call: Call) -> Sequence[object]:
    assert isinstance(call.args[1], dict)
    return ([{"busid": Variant("s", "1-1"), "nodes": Variant("as", ["sda"])}],)


def handlers(known: Contract | None = None) -> dict[tuple[str, str], Handler]:
    made: dict[tuple[str, str], Handler] = dict.fromkeys(
        (known or contract.load()).methods(), _nothing
    )
    made[(MANAGER, "ListLocal")] = _list
    return made


@dataclass
class Stage:
    bus: SystemBus
    tree: ObjectTree
    client: Any
    signals: list[tuple[str, str, list[Any]]] = field(default_factory=list)

    async def call(
        self, path: str, interface: str | None, member: str, signature: str = "", *args: object
    ) -> Any:
        """The values, or the error's name."""
        answer = await client_call(self.client, NAME, path, interface, member, signature, *args)
        return answer.error_name or answer.body

    async def settle(self) -> list[tuple[str, str, list[Any]]]:
        """All signals so far: who gets an answer has got every signal before it."""
        await self.call(ROOT, "org.freedesktop.DBus.Peer", "Ping")
        seen, self.signals[:] = list(self.signals), []
        return seen


@asynccontextmanager
async def stage(bus: SystemBus, uid: int = ALICE) -> AsyncIterator[Stage]:
    service = Connection(bus.address)
    tree = ObjectTree(service.emit, handlers(), "0" * 32)
    await service.start(tree.handle)
    await service.own_name(NAME)
    client = bus.connect(uid)
    here = Stage(bus, tree, client)

    def note(message: Any) -> None:
        if message.message_type.name == "SIGNAL" and message.path.startswith(ROOT):
            here.signals.append((message.path, message.member, message.body))

    client.add_message_handler(note)
    await client.connect()
    await bus_call(client, "AddMatch", "s", f"type='signal',sender='{NAME}'")
    try:
        for path, interfaces in OBJECTS.items():
            tree.add(path, interfaces)
        await here.settle()
        yield here
    finally:
        client.disconnect()
        await client.wait_for_disconnect()
        await service.stop()


def play(act: Callable[[Stage], Awaitable[None]], uid: int = ALICE) -> None:
    with system_bus() as bus:

        async def run() -> None:
            async with asyncio.timeout(60), stage(bus, uid) as here:
                await act(here)

        asyncio.run(run())


def _shape(interface: ET.Element) -> list[tuple[Any, ...]]:
    shape = []
    for member in interface:
        parts = sorted(tuple(sorted(part.attrib.items())) for part in member)
        shape.append((member.tag, tuple(sorted(member.attrib.items())), tuple(parts)))
    return sorted(shape)


def test_live_introspection_is_the_contract() -> None:
    file = ET.parse(CHECKOUT / "dbus/org.usbipssh1.xml").getroot()
    wanted = {str(i.get("name")): _shape(i) for i in file.iter("interface")}

    async def act(here: Stage) -> None:
        seen: dict[str, Any] = {}
        for path in OBJECTS:
            (text,) = await here.call(path, "org.freedesktop.DBus.Introspectable", "Introspect")
            for interface in ET.fromstring(text).findall("interface"):
                name = str(interface.get("name"))
                if name.startswith(NAME):
                    seen[name] = _shape(interface)
        assert seen == wanted

    play(act)


def test_busctl_reads_every_object() -> None:
    async def act(here: Stage) -> None:
        done = await asyncio.to_thread(here.bus.busctl, ALICE, "tree", "--list", NAME)
        paths = done.stdout.split()
        assert set(OBJECTS) <= set(paths)
        assert "/org/usbipssh1/attachment" in paths
        for path, interfaces in OBJECTS.items():
            done = await asyncio.to_thread(here.bus.busctl, ALICE, "introspect", NAME, path)
            assert done.returncode == 0, done.stderr
            words = set(done.stdout.split())
            for interface, values in interfaces.items():
                assert {interface, *(f".{name}" for name in values)} <= words

    play(act)


def test_children_are_those_below_and_no_namesakes() -> None:
    async def act(here: Stage) -> None:
        here.tree.add("/org/usbipssh1/remote/pi2", {REMOTE: {**REMOTE_VALUES, "Name": "pi2"}})

        async def children(path: str) -> list[str | None]:
            (text,) = await here.call(path, "org.freedesktop.DBus.Introspectable", "Introspect")
            return [n.get("name") for n in ET.fromstring(text).findall("node")]

        assert await children("/") == ["org"]
        assert await children(ROOT) == ["attachment", "hub", "remote"]
        assert await children("/org/usbipssh1/remote") == ["pi", "pi2"]
        assert await children("/org/usbipssh1/remote/pi") == []

    play(act)


def test_properties_have_the_contracts_types() -> None:
    async def act(here: Stage) -> None:
        for path, interfaces in OBJECTS.items():
            for interface, values in interfaces.items():
                (got,) = await here.call(path, PROPERTIES, "GetAll", "s", interface)
                known = contract.load().interfaces[interface].properties
                assert {n: v.signature for n, v in got.items()} == {
                    n: p.signature for n, p in known.items()
                }
                plain = {n: list(v) if isinstance(v, tuple) else v for n, v in values.items()}
                assert {n: v.value for n, v in got.items()} == plain
                for name, value in plain.items():
                    (one,) = await here.call(path, PROPERTIES, "Get", "ss", interface, name)
                    assert one.value == value

    play(act)


def test_managed_objects_are_all_but_the_root() -> None:
    async def act(here: Stage) -> None:
        (objects,) = await here.call(ROOT, OBJECT_MANAGER, "GetManagedObjects")
        assert set(objects) == set(OBJECTS) - {ROOT}
        hub = objects["/org/usbipssh1/hub/1"]["org.usbipssh1.Hub"]
        assert hub["Attachments"].value == ["/org/usbipssh1/attachment/1"]

    play(act)


def test_changes_are_told_once_and_only_what_changed() -> None:
    path = "/org/usbipssh1/remote/pi"

    async def act(here: Stage) -> None:
        here.tree.change(path, REMOTE, State="connecting", Label="")
        here.tree.change(path, REMOTE, State="connected", LastError=("a", "b"))
        here.tree.change(path, REMOTE, LastError=("", ""))
        await asyncio.sleep(0)
        ((where, member, body),) = await here.settle()
        assert (where, member) == (path, "PropertiesChanged")
        assert body[0] == REMOTE
        assert {n: v.value for n, v in body[1].items()} == {"State": "connected"}
        assert body[2] == []
        here.tree.change(path, REMOTE, State="idle")
        here.tree.change(path, REMOTE, State="connected")
        await asyncio.sleep(0)
        assert await here.settle() == []

    play(act)


def test_objects_come_and_go_from_the_root_object_and_changes_come_before() -> None:
    path = "/org/usbipssh1/remote/bench"

    async def act(here: Stage) -> None:
        here.tree.add(path, {REMOTE: {**REMOTE_VALUES, "Name": "bench"}})
        here.tree.change(path, REMOTE, State="connected")
        here.tree.emit(path, REMOTE, "DevicesChanged")
        here.tree.change(path, REMOTE, State="idle")
        here.tree.remove(path)
        seen = await here.settle()
        assert [(where, member) for where, member, _body in seen] == [
            (ROOT, "InterfacesAdded"),
            (path, "PropertiesChanged"),
            (path, "DevicesChanged"),
            (path, "PropertiesChanged"),
            (ROOT, "InterfacesRemoved"),
        ]
        added, removed = seen[0][2], seen[-1][2]
        assert added[0] == removed[0] == path
        assert added[1][REMOTE]["Name"].value == "bench"
        assert set(added[1]) == set(removed[1])
        assert await here.call(path, PROPERTIES, "GetAll", "s", REMOTE) == (
            "org.freedesktop.DBus.Error.UnknownObject"
        )

    play(act)


def test_a_handlers_values_arrive() -> None:
    async def act(here: Stage) -> None:
        ((device,),) = await here.call(ROOT, MANAGER, "ListLocal", "sa{sv}", "", {})
        assert device["busid"].value == "1-1"
        assert device["nodes"].signature == "as"

    play(act)


@pytest.mark.parametrize(
    ("path", "interface", "member", "signature", "args", "error"),
    [
        ("/nowhere", MANAGER, "ListLocal", "sa{sv}", ("", {}), "UnknownObject"),
        ("/org/usbipssh1/remot", PROPERTIES, "GetAll", "s", (REMOTE,), "UnknownObject"),
        ("/org/usbipssh1/hub/1", MANAGER, "ListLocal", "sa{sv}", ("", {}), "UnknownInterface"),
        ("/org", PROPERTIES, "GetAll", "s", ("",), "UnknownInterface"),
        (ROOT, MANAGER, "Format", "", (), "UnknownMethod"),
        (ROOT, MANAGER, "ListLocal", "s", ("",), "InvalidArgs"),
        (ROOT, MANAGER, "ListLocal", "sa{ss}", ("", {}), "InvalidArgs"),
        (ROOT, MANAGER, "Attach", "ssa{sv}", ("pi", "", {}), "NotSupported"),
        (ROOT, PROPERTIES, "Get", "ss", (MANAGER, "Nothing"), "UnknownProperty"),
        (ROOT, PROPERTIES, "Get", "ss", ("a.b", "Version"), "UnknownInterface"),
        (ROOT, PROPERTIES, "Get", "ss", (PROPERTIES, "Version"), "UnknownProperty"),
        (ROOT, PROPERTIES, "GetAll", "s", ("",), "UnknownInterface"),
        (ROOT, PROPERTIES, "Get", "s", ("",), "InvalidArgs"),
        ("/org/usbipssh1/hub/1", OBJECT_MANAGER, "GetManagedObjects", "", (), "UnknownInterface"),
        # Without an interface the bus policy lets nobody through.
        (ROOT, None, "ListLocal", "sa{sv}", ("", {}), "AccessDenied"),
        (ROOT, "org.freedesktop.DBus.Debug.Stats", "GetStats", "", (), "AccessDenied"),
    ],
)
def test_wrong_calls_get_the_standard_errors(  # noqa: PLR0917
    path: str,
    interface: str | None,
    member: str,
    signature: str,
    args: tuple[object, ...],
    error: str,
) -> None:
    async def act(here: Stage) -> None:
        answer = await here.call(path, interface, member, signature, *args)
        assert answer == "org.freedesktop.DBus.Error." + error

    play(act)


def test_properties_are_read_only() -> None:
    async def act(here: Stage) -> None:
        done = await asyncio.to_thread(
            here.bus.busctl, 0, "set-property", NAME, ROOT, MANAGER, "Version", "s", "9"
        )
        assert done.returncode != 0
        assert "read-only" in done.stderr
        answer = await asyncio.to_thread(
            here.bus.busctl, 0, "get-property", NAME, ROOT, MANAGER, "Version"
        )
        assert answer.stdout == 's "0.1.0"\n'

    play(act)


def test_only_root_may_be_the_service() -> None:
    with system_bus() as bus:
        done = bus.busctl(
            ALICE,
            "call",
            "org.freedesktop.DBus",
            "/",
            "org.freedesktop.DBus",
            "RequestName",
            "su",
            NAME,
            "0",
        )
        assert done.returncode != 0
        assert "Access denied" in done.stderr


def test_a_method_without_handler_does_not_start() -> None:
    made = handlers()
    del made[(MANAGER, "Attach")]
    with pytest.raises(ValueError, match=r"Manager\.Attach"):
        ObjectTree(lambda *args: None, made, "")


@pytest.mark.parametrize(
    "values",
    [
        {**REMOTE_VALUES, "Name": 1},
        {**REMOTE_VALUES, "LastError": ("",)},
        {**REMOTE_VALUES, "More": ""},
        {k: v for k, v in REMOTE_VALUES.items() if k != "Label"},
    ],
)
def test_properties_of_another_shape_are_a_mistake_here(values: dict[str, object]) -> None:
    tree = ObjectTree(lambda *args: None, handlers(), "")
    with pytest.raises((TypeError, ValueError)):
        tree.add("/org/usbipssh1/remote/x", {REMOTE: values})
    assert tree.paths() == []


def test_what_never_changes_cannot_be_changed() -> None:
    tree = ObjectTree(lambda *args: None, handlers(), "")
    tree.add("/org/usbipssh1/remote/x", {REMOTE: REMOTE_VALUES})
    with pytest.raises(ValueError, match="never changes"):
        tree.change("/org/usbipssh1/remote/x", REMOTE, Name="other")
