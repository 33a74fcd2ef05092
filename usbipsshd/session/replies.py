# SPDX-License-Identifier: GPL-3.0-or-later
"""What the agent's lines mean. Nothing here waits, and nothing here believes what it reads.

The protocol is in the header of agent.sh. A reply that breaks it raises
:exc:`BadReply`; a single malformed device does not: it is left out with a log line.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field

from usbipsshd.device import (
    MAX_INTERFACES,
    MAX_NODES,
    BadDevice,
    Device,
    Interface,
    busid_key,
    device_from_attributes,
    interface_from_attributes,
    is_busid,
)
from usbipsshd.errors import Code
from usbipsshd.messages import MAX_DETAIL, MAX_DEVICES
from usbipsshd.text import clean

log = logging.getLogger(__name__)

MAX_LINE = 8192
"""Bytes in a line; the agent's own limit is 4096."""
MAX_REPLY = 8 * 1024 * 1024
"""Bytes in one reply."""
MAX_LINES = 100_000
"""Lines in one reply."""
MAX_ATTRIBUTES = 32
MAX_DESCRIPTORS = 24 * 1024
"""Bytes of descriptors; as hex they must fit into a control packet beside the rest."""
MAX_BUSES = 4096
MAX_LIKE = 8
"""Systems that one may be like."""

MODULE_STATES = frozenset({"loaded", "there", "missing"})
CONNECTORS = ("perl", "python3", "socat", "ncat", "bash", "busybox")

_HELLO = re.compile(r"hello 1 ([0-9]{1,10}) (\S{1,128}) (\S{1,64}) (\S{1,64})", re.ASCII)
_TAG = re.compile(r"([0-9]{1,9}) (.*)", re.ASCII | re.DOTALL)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,31}", re.ASCII)
_OS = re.compile(r"[a-z0-9._-]{1,64}", re.ASCII)
_FOLDER = re.compile(r"/[A-Za-z0-9._/-]{1,90}", re.ASCII)


class BadReply(ValueError):
    """The agent said something that the protocol does not know."""


@dataclass(frozen=True, slots=True)
class Hello:
    """What the agent says of its machine when it starts."""

    uid: int
    kernel: str
    os: str
    connectors: tuple[str, ...]
    """Of :data:`CONNECTORS`, those that are there, best first."""


def parse_hello(line: bytes) -> Hello | None:
    """The greeting in ``line``; None when it is something else, such as a login shell's chatter."""
    match = _HELLO.fullmatch(line.decode("utf-8", "replace"))
    if match is None:
        return None
    named = match[4].split(",")
    return Hello(
        uid=int(match[1]),
        kernel=clean(match[2]),
        os=clean(match[3], 64),
        connectors=tuple(c for c in CONNECTORS if c in named),
    )


def split_tag(line: bytes) -> tuple[int, str]:
    """The tag of a reply line and what follows it; raise :exc:`BadReply`."""
    match = _TAG.fullmatch(line.decode("utf-8", "replace"))
    if match is None:
        raise BadReply("a line without a tag")
    return int(match[1]), match[2]


@dataclass(slots=True)
class _Node:
    """A device or an interface while its lines arrive."""

    attributes: dict[str, str] = field(default_factory=dict)
    nodes: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        name, _, value = text.partition(" ")
        if not _NAME.fullmatch(name) or len(self.attributes) >= MAX_ATTRIBUTES:
            raise BadReply("an attribute is malformed")
        self.attributes[name] = value


@dataclass(slots=True)
class _Half:
    """A device while its lines arrive."""

    busid: str
    own: _Node = field(default_factory=_Node)
    interfaces: list[_Node] = field(default_factory=list)
    descriptors: list[str] = field(default_factory=list)
    hex_length: int = 0


class Reply:
    """Gathers the lines of one reply; :attr:`done` after the last.

    ``error`` is then None for ``ok``, else code and cleaned detail.
    """

    def __init__(self) -> None:
        self.done = False
        self.error: tuple[Code, str] | None = None
        self.folder = ""
        self.at: tuple[str, int] | None = None
        """Bus id and port of a device that was attached there."""
        self.module = ""
        self.names = 0
        self.vhci = ""
        self.free_ports: tuple[int, int] | None = None
        """Of vhci's pools for slower and faster devices, where it is loaded."""
        self.like: list[str] = []
        self._size = 0
        self._lines = 0
        self._buses: dict[str, str] = {}
        self._halves: list[_Half] = []

    def add(self, text: str) -> None:
        """Take one line, without its tag; raise :exc:`BadReply`."""
        if self.done:
            raise BadReply("a line after the last")
        self._size += len(text) + 1
        self._lines += 1
        if self._size > MAX_REPLY or self._lines > MAX_LINES:
            raise BadReply("the reply is too long")
        kind, _, rest = text.partition(" ")
        match kind:
            case "a":
                self._node().add(rest)
            case "i":
                self._add_interface()
            case "n":
                self._add_node(rest)
            case "d":
                self._add_device(rest)
            case "b":
                self._add_bus(rest)
            case "x":
                self._add_descriptors(rest)
            case "dir" | "m" | "s" | "v" | "p" | "l" | "at":
                self._set(kind, rest)
            case "ok" if not rest:
                self.done = True
            case "fail":
                self.error = _parse_failure(rest)
                self.done = True
            case _:
                raise BadReply("an unknown kind of line")

    def _set(self, kind: str, rest: str) -> None:
        if kind == "dir":
            self._set_folder(rest)
        elif kind == "at":
            busid, _, port = rest.partition(" ")
            if not is_busid(busid) or not re.fullmatch(r"[0-9]{1,5}", port, re.ASCII):
                raise BadReply("not a port")
            self.at = busid, int(port)
        elif kind == "m" and rest in MODULE_STATES:
            self.module = rest
        elif kind == "v" and rest in MODULE_STATES:
            self.vhci = rest
        elif kind == "p" and re.fullmatch(r"[0-9]{1,4} [0-9]{1,4}", rest, re.ASCII):
            slower, _, faster = rest.partition(" ")
            self.free_ports = int(slower), int(faster)
        elif kind == "s" and re.fullmatch(r"[0-9]{1,3}", rest, re.ASCII):
            self.names = int(rest)
        elif kind == "l" and len(self.like) < MAX_LIKE and _OS.fullmatch(rest):
            self.like.append(rest)
        else:
            raise BadReply("a fact is malformed")

    def _set_folder(self, rest: str) -> None:
        if not _FOLDER.fullmatch(rest) or ".." in rest:
            raise BadReply("not a folder")
        self.folder = rest

    def _half(self) -> _Half:
        if not self._halves:
            raise BadReply("a line without its device")
        return self._halves[-1]

    def _node(self) -> _Node:
        half = self._half()
        return half.interfaces[-1] if half.interfaces else half.own

    def _add_device(self, rest: str) -> None:
        if not is_busid(rest) or len(self._halves) >= MAX_DEVICES:
            raise BadReply("not a bus id, or too many devices")
        self._halves.append(_Half(rest))

    def _add_interface(self) -> None:
        half = self._half()
        if len(half.interfaces) > MAX_INTERFACES:
            raise BadReply("too many interfaces")
        half.interfaces.append(_Node())

    def _add_node(self, rest: str) -> None:
        nodes = self._node().nodes
        if len(nodes) < MAX_NODES:
            nodes.append(rest)

    def _add_bus(self, rest: str) -> None:
        number, _, serial = rest.partition(" ")
        if not re.fullmatch(r"[0-9]{1,5}", number, re.ASCII) or len(self._buses) >= MAX_BUSES:
            raise BadReply("a bus is malformed")
        self._buses[number] = serial

    def _add_descriptors(self, rest: str) -> None:
        half = self._half()
        half.hex_length += len(rest)
        if half.hex_length > 2 * MAX_DESCRIPTORS:
            raise BadReply("too many descriptors")
        half.descriptors.append(rest)

    def devices(self) -> list[Device]:
        """The well-formed devices in tree order; of several with one bus id the first."""
        found: dict[str, Device] = {}
        for half in self._halves:
            try:
                device = self._build(half)
            except (BadDevice, ValueError) as error:
                log.warning("device %s is left out: %s", half.busid, clean(str(error)))
                continue
            found.setdefault(device.busid, device)
        return sorted(found.values(), key=lambda device: busid_key(device.busid))

    def _build(self, half: _Half) -> Device:
        interfaces: list[Interface] = []
        for node in half.interfaces:
            try:
                interfaces.append(interface_from_attributes(node.attributes, node.nodes))
            except BadDevice:
                # An interface can vanish while it is being read: a driver's unbinding does it.
                log.info("an interface of %s is left out", half.busid)
        bus = half.own.attributes.get("busnum", "").strip()
        attributes = {**half.own.attributes, "bus_serial": self._buses.get(bus, "")}
        descriptors = bytes.fromhex("".join(half.descriptors))
        return device_from_attributes(half.busid, attributes, interfaces, descriptors)


def _parse_failure(rest: str) -> tuple[Code, str]:
    name, _, detail = rest.partition(" ")
    try:
        return Code(name), clean(detail, MAX_DETAIL)
    except ValueError:
        raise BadReply("an unknown error code") from None
