# SPDX-License-Identifier: GPL-3.0-or-later
"""The daemon as its clients see it: what it publishes now, and what can be asked of it.

Nothing polls: :attr:`Client.snapshot` follows the daemon's signals. The daemon may be absent, may
come and be restarted at any time; looking does not start it, asking for something does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from usbipsshd.bus.connection import SYSTEM_BUS
from usbipsshd.bus.values import BusError, Disconnected, Variant
from usbipsshd.client.bus import BUS, BUS_PATH, Bus, Signal
from usbipsshd.client.snapshot import (
    ROOT,
    Attachment,
    Device,
    Hub,
    Manager,
    Remote,
    Snapshot,
    from_properties,
)
from usbipsshd.client.sshagent import SshAgent, Use

log = logging.getLogger(__name__)

NAME = "org.usbipssh1"
MANAGER = "org.usbipssh1.Manager"
ATTACHMENT = "org.usbipssh1.Attachment"
HUB = "org.usbipssh1.Hub"
REMOTE = "org.usbipssh1.Remote"
PROPERTIES = "org.freedesktop.DBus.Properties"
OBJECT_MANAGER = "org.freedesktop.DBus.ObjectManager"

START_SECONDS = 60.0
"""For a call that may have to start the daemon, or opens a connection to a remote."""
ATTACH_SECONDS = 120.0
QUESTION_SECONDS = 330.0
"""More, where a person may be asked for a password: polkit's question ends after 300 s."""

_Object = Remote | Attachment | Hub
_KINDS: Mapping[str, type[_Object]] = {ATTACHMENT: Attachment, HUB: Hub, REMOTE: Remote}
_O = TypeVar("_O", Remote, Attachment, Hub)


class ClientError(Exception):
    """What the daemon or the bus answered: ``name`` is the D-Bus error, the text for people."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name
        self.message = message

    @property
    def code(self) -> str:
        """The last part of the name, such as DeviceNotFound."""
        return self.name.rpartition(".")[2]


class Client:
    """Talks to the daemon. :meth:`connect` first, :meth:`close` at the end."""

    def __init__(self, address: str = "", ssh_agent: SshAgent = SshAgent()) -> None:  # noqa: B008
        """``ssh_agent`` is passed along to remotes, as it says itself."""
        self._ssh_agent = ssh_agent
        self._address = address or os.environ.get("DBUS_SYSTEM_BUS_ADDRESS", "") or SYSTEM_BUS
        self._bus: Bus | None = None
        self._owner = ""
        self._manager = Manager()
        self._objects: dict[str, _Object] = {}
        self._loaded = False
        self._listeners: list[Callable[[], None]] = []
        self._plug_listeners: list[Callable[[str], None]] = []
        self._news = asyncio.Event()
        self._loading: asyncio.Task[None] | None = None
        self.snapshot = Snapshot()
        """What the daemon publishes now."""

    # Life

    async def connect(self) -> None:
        """Connect to the bus and learn what there is; raise :exc:`ClientError` without a bus."""
        self._bus = Bus(self._address)
        try:
            await self._bus.connect()
            self._bus.listen(self._signal)
            await self._bus.subscribe(
                sender=BUS, path=BUS_PATH, interface=BUS, member="NameOwnerChanged", arg0=NAME
            )
            await self._bus.subscribe(sender=NAME)
            self._owner = await self._bus.owner(NAME)
            if self._owner:
                await self._load()
        except (BusError, Disconnected, TimeoutError) as error:
            await self._bus.close()
            raise _client_error(error) from error

    async def close(self) -> None:
        """End the connection."""
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.wait([self._loading])
        if self._bus is not None:
            await self._bus.close()

    async def disconnected(self) -> None:
        """Wait until the bus is gone."""
        assert self._bus is not None
        await asyncio.shield(self._bus.gone)

    # What it publishes

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call ``listener`` whenever :attr:`snapshot` has changed; returns what ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def listen_to_plugs(self, listener: Callable[[str], None]) -> Callable[[], None]:
        """Call ``listener`` with a remote's name when something was plugged in or out there."""
        self._plug_listeners.append(listener)
        return lambda: self._plug_listeners.remove(listener)

    async def wait_until(
        self, condition: Callable[[Snapshot], bool], seconds: float | None
    ) -> Snapshot:
        """The first snapshot for which ``condition`` holds; raise :exc:`TimeoutError`.

        Without ``seconds`` it waits for as long as it takes.
        """
        async with asyncio.timeout(seconds):
            while not condition(self.snapshot):
                self._news.clear()
                await self._news.wait()
        return self.snapshot

    async def _load(self) -> None:
        """Learn everything anew; what comes after the answers is told by signals."""
        assert self._bus is not None
        owner = self._owner

        def objects(body: tuple[object, ...]) -> None:
            tables = body[0] if body and isinstance(body[0], dict) else {}
            self._objects = {}
            for path, interfaces in tables.items():
                self._add(path, interfaces)
            self._loaded = True

        def manager(body: tuple[object, ...]) -> None:
            if body and isinstance(body[0], dict):
                self._manager = from_properties(Manager, body[0], Manager())

        self._loaded = False
        await self._bus.call(
            NAME, ROOT, PROPERTIES, "GetAll", "s", [MANAGER], start=False, at_once=manager
        )
        await self._bus.call(
            NAME, ROOT, OBJECT_MANAGER, "GetManagedObjects", start=False, at_once=objects
        )
        if owner == self._owner:
            self._changed()

    def _signal(self, signal: Signal) -> None:
        if (signal.sender, signal.member) == (BUS, "NameOwnerChanged"):
            if signal.body and signal.body[0] == NAME:
                self._owner_changed(str(signal.body[2]))
            return
        # A signal that is sent to us alone passes every rule, so the sender is looked at here.
        if not self._owner or signal.sender != self._owner:
            return
        match signal.member, signal.body:
            case "InterfacesAdded", (str(path), dict(interfaces)):
                self._add(path, interfaces)
            case "InterfacesRemoved", (str(path), list()):
                self._objects.pop(path, None)
            case "PropertiesChanged", (str(interface), dict(values), list()):
                self._change(signal.path, interface, values)
            case "DevicesChanged", ():
                found = self._objects.get(signal.path)
                if isinstance(found, Remote):
                    for listener in list(self._plug_listeners):
                        listener(found.name)
                return
            case _:
                return
        if self._loaded:
            self._changed()

    def _owner_changed(self, owner: str) -> None:
        self._owner = owner
        self._objects = {}
        self._manager = Manager()
        self._loaded = False
        if self._loading is not None:
            self._loading.cancel()
            self._loading = None
        if owner:
            self._loading = asyncio.create_task(self._load_again(), name="load")
        self._changed()

    async def _load_again(self) -> None:
        # If it went meanwhile, that is told, too.
        with contextlib.suppress(BusError, Disconnected, TimeoutError):
            await self._load()

    def _add(self, path: str, interfaces: Mapping[str, object]) -> None:
        for interface, values in interfaces.items():
            kind = _KINDS.get(interface)
            if kind is not None and isinstance(values, dict):
                self._objects[path] = _made(kind, path, values)

    def _change(self, path: str, interface: str, values: Mapping[str, object]) -> None:
        if path == ROOT and interface == MANAGER:
            self._manager = from_properties(Manager, values, self._manager)
            return
        found = self._objects.get(path)
        if found is not None and _KINDS.get(interface) is type(found):
            self._objects[path] = _updated(found, values)

    def _changed(self) -> None:
        def of(kind: type[_O]) -> list[_O]:
            return [each for each in self._objects.values() if isinstance(each, kind)]

        self.snapshot = Snapshot(
            present=bool(self._owner),
            manager=self._manager,
            remotes=tuple(sorted(of(Remote), key=lambda r: r.name)),
            attachments=tuple(sorted(of(Attachment), key=_number)),
            hubs=tuple(sorted(of(Hub), key=_number)),
        )
        self._news.set()
        for listener in list(self._listeners):
            listener()

    # What can be asked of it

    async def _ask(
        self,
        member: str,
        signature: str,
        body: Sequence[object],
        *,
        path: str = ROOT,
        interface: str = MANAGER,
        interactive: bool = False,
        seconds: float = START_SECONDS,
        fds: Sequence[int] = (),
    ) -> tuple[object, ...]:
        if self._bus is None:
            raise ClientError("org.freedesktop.DBus.Error.Disconnected", "There is no bus.")
        try:
            return await self._bus.call(
                NAME,
                path,
                interface,
                member,
                signature,
                body,
                interactive=interactive,
                timeout=seconds + (QUESTION_SECONDS if interactive else 0.0),
                fds=fds,
            )
        except (BusError, Disconnected, TimeoutError) as error:
            raise _client_error(error) from error

    async def _ask_there(
        self,
        member: str,
        words: Sequence[str],
        options: Mapping[str, Variant] | None = None,
        *,
        interactive: bool,
        seconds: float = START_SECONDS,
    ) -> tuple[object, ...]:
        """Ask for something at the remote ``words[0]``, which may want the ssh-agent."""
        given = dict(options or {})
        signature = "s" * len(words) + "a{sv}"

        async def ask(more: Mapping[str, Variant], fds: Sequence[int] = ()) -> tuple[object, ...]:
            return await self._ask(
                member, signature, [*words, {**given, **more}],
                interactive=interactive, seconds=seconds, fds=fds,
            )  # fmt: skip

        agent = self._ssh_agent
        # This machine needs none, and what persists cannot have one.
        if not words[0] or ("persist" in given and agent.use is Use.WHEN_REFUSED):
            agent = SshAgent()
        # A listing finds out whether the daemon's key is accepted by now. For the rest it is known:
        # whoever is asked for a password before the connection is made is asked once, not twice.
        known = member != "ListRemote" and self._is_refused(words[0])
        refusals: list[ClientError] = []
        for passed in agent.tries(refused=known):
            try:
                if not passed:
                    return await ask({})
                with await agent.connect() as sock:
                    return await ask({"ssh-agent": Variant("h", 0)}, (sock.fileno(),))
            except ClientError as error:
                if error.code != "SshAuthFailed":
                    raise
                # The daemon's own key first: its line is what mends it for good.
                refusals.insert(len(refusals) if passed else 0, error)
            except OSError:
                log.debug("there is no ssh-agent at %s", agent.path)
        if not refusals:
            raise ClientError(
                "org.usbipssh1.Error.SshAuthFailed",
                "There is no ssh-agent to pass along; start one, so that SSH_AUTH_SOCK names it.",
            )
        raise ClientError(refusals[0].name, " ".join(error.message for error in refusals))

    def _is_refused(self, remote: str) -> bool:
        """Whether the daemon's own key was refused there when it was tried last."""
        found = next((one for one in self.snapshot.remotes if one.name == remote), None)
        return found is not None and found.refuses_key

    async def start(self) -> None:
        """Start the daemon if it does not run, and wait until it is known what there is."""
        await self._ask("Get", "ss", [MANAGER, "Version"], interface=PROPERTIES)
        await self.wait_until(lambda s: s.present and bool(s.manager.version), START_SECONDS)

    async def list_remote(
        self, remote: str, pattern: str = "", *, interactive: bool = False
    ) -> list[Device]:
        """ListRemote."""
        words = [remote, pattern]
        return _devices(await self._ask_there("ListRemote", words, interactive=interactive))

    async def list_local(self, pattern: str = "") -> list[Device]:
        """ListLocal."""
        return _devices(await self._ask("ListLocal", "sa{sv}", [pattern, {}]))

    async def attach(
        self,
        remote: str,
        pattern: str,
        options: Mapping[str, bool | int] | None = None,
        *,
        interactive: bool = False,
    ) -> str:
        """Attach; the attachment's path once it is usable. ``options`` by the contract's names."""
        return await self._begin("Attach", remote, pattern, options, interactive=interactive)

    async def export(
        self,
        remote: str,
        pattern: str,
        options: Mapping[str, bool | int] | None = None,
        *,
        interactive: bool = False,
    ) -> str:
        """Export; the attachment's path once the device of this machine is usable there."""
        return await self._begin("Export", remote, pattern, options, interactive=interactive)

    async def attach_all(
        self,
        remote: str,
        pattern: str = "",
        options: Mapping[str, bool | int] | None = None,
        *,
        interactive: bool = False,
    ) -> str:
        """AttachAll; the hub's path."""
        return await self._begin("AttachAll", remote, pattern, options, interactive=interactive)

    async def _begin(
        self,
        member: str,
        remote: str,
        pattern: str,
        options: Mapping[str, bool | int] | None,
        *,
        interactive: bool,
    ) -> str:
        answer = await self._ask_there(
            member,
            [remote, pattern],
            _variants(options or {}),
            interactive=interactive,
            seconds=ATTACH_SECONDS,
        )
        return str(answer[0])

    async def detach(self, target: str, *, interactive: bool = False) -> int:
        """Detach a path, ``remote/busid``, a local bus id or ``all``; how many there were."""
        answer = await self._ask(
            "Detach", "sa{sv}", [target, {}], interactive=interactive, seconds=ATTACH_SECONDS
        )
        return int(str(answer[0]))

    async def set_options(
        self, path: str, options: Mapping[str, bool | int], *, interactive: bool = False
    ) -> None:
        """SetOptions of an attachment: keep, persist."""
        await self._ask(
            "SetOptions",
            "a{sv}",
            [_variants(options)],
            path=path,
            interface=ATTACHMENT,
            interactive=interactive,
        )

    async def statistics(self, path: str) -> Mapping[str, int]:
        """GetStatistics of an attachment: bytes received and sent."""
        answer = await self._ask("GetStatistics", "a{sv}", [{}], path=path, interface=ATTACHMENT)
        table = answer[0] if isinstance(answer[0], dict) else {}
        return {
            name: each.value
            for name, each in table.items()
            if isinstance(each, Variant) and isinstance(each.value, int)
        }

    async def unbind(self, remote: str, pattern: str, *, interactive: bool = False) -> list[str]:
        """Unbind; the bus ids of what was given back."""
        answer = await self._ask_there(
            "Unbind", [remote, pattern], interactive=interactive, seconds=ATTACH_SECONDS
        )
        return [str(busid) for busid in answer[0]] if isinstance(answer[0], list) else []

    async def reset(self, remote: str, pattern: str, *, interactive: bool = False) -> list[str]:
        """Reset; the bus ids of what was reset."""
        answer = await self._ask_there(
            "Reset", [remote, pattern], interactive=interactive, seconds=ATTACH_SECONDS
        )
        return [str(busid) for busid in answer[0]] if isinstance(answer[0], list) else []

    async def preflight(self, remote: str, *, interactive: bool = False) -> list[dict[str, str]]:
        """Preflight; the findings with the contract's keys. The remote "" is this machine alone."""
        answer = await self._ask_there("Preflight", [remote], interactive=interactive)
        found = answer[0] if isinstance(answer[0], list) else []
        return [
            {name: str(each.value) for name, each in one.items() if isinstance(each, Variant)}
            for one in found
            if isinstance(one, dict)
        ]

    async def add_remote(
        self,
        name: str,
        *,
        address: str = "",
        sudo: bool = False,
        label: str = "",
        interactive: bool = False,
    ) -> str:
        """AddRemote; the remote's path."""
        options: dict[str, Variant] = {"sudo": Variant("b", sudo)}
        for key, value in (("address", address), ("label", label)):
            if value:
                options[key] = Variant("s", value)
        answer = await self._ask("AddRemote", "sa{sv}", [name, options], interactive=interactive)
        return str(answer[0])

    async def remove_remote(self, name: str, *, interactive: bool = False) -> None:
        """RemoveRemote; what it holds is detached first."""
        await self._ask(
            "RemoveRemote", "sa{sv}", [name, {}], interactive=interactive, seconds=ATTACH_SECONDS
        )

    async def trust_host_key(
        self, name: str, fingerprint: str, *, interactive: bool = False
    ) -> None:
        """TrustHostKey."""
        await self._ask("TrustHostKey", "ssa{sv}", [name, fingerprint, {}], interactive=interactive)


def _made(kind: type[_Object], path: str, values: Mapping[str, object]) -> _Object:
    return _updated(kind(path=path), values)


def _updated(found: _Object, values: Mapping[str, object]) -> _Object:
    if isinstance(found, Remote):
        return from_properties(Remote, values, found)
    if isinstance(found, Hub):
        return from_properties(Hub, values, found)
    return from_properties(Attachment, values, found)


def _number(one: Attachment | Hub) -> int:
    last = one.path.rpartition("/")[2]
    return int(last) if last.isascii() and last.isdigit() else 0


def _devices(answer: Sequence[object]) -> list[Device]:
    found = answer[0] if isinstance(answer[0], list) else []
    return [from_properties(Device, each) for each in found if isinstance(each, dict)]


def _variants(options: Mapping[str, bool | int]) -> dict[str, Variant]:
    return {k: Variant("b" if isinstance(v, bool) else "q", v) for k, v in options.items()}


_WORDS = {
    "ServiceUnknown": "usbipsshd is not installed here, or cannot be started; "
    "journalctl -u usbipsshd says why.",
    "NameHasNoOwner": "usbipsshd does not run.",
    "NoReply": "usbipsshd went away in the middle; try again.",
}
"""What a bus says for a service that is not there, for people."""


def _client_error(error: BusError | Disconnected | TimeoutError) -> ClientError:
    if isinstance(error, BusError):
        last = error.name.rpartition(".")[2]
        if error.name.startswith("org.freedesktop.DBus.Error.Spawn"):
            last = "ServiceUnknown"
        return ClientError(error.name, _WORDS.get(last, error.message))
    if isinstance(error, TimeoutError):
        return ClientError(
            "org.freedesktop.DBus.Error.NoReply", "usbipsshd did not answer in time; try again."
        )
    return ClientError(
        "org.freedesktop.DBus.Error.Disconnected", "There is no system bus to talk to usbipsshd."
    )
