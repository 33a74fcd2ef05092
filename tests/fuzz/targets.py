# SPDX-License-Identifier: GPL-3.0-or-later
"""What is parsed from outside, one function for each place, and what must be true of the result.

A target takes any bytes. It raises nothing but AssertionError: what a parser is documented to raise
is part of its answer.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from usbipsshd import descriptors, drivers, messages, records, statefile
from usbipsshd.address import parse_address
from usbipsshd.bus.encode import listed_device
from usbipsshd.callersagent import MAX_KEYS, parse_keys, parse_signature
from usbipsshd.control import Session, SessionFailure
from usbipsshd.device import BadDevice, Device, device_from_attributes, interface_from_attributes
from usbipsshd.errors import Code, UsbipError
from usbipsshd.explain import explain
from usbipsshd.messages import BadPacket, Packet
from usbipsshd.pattern import Pattern
from usbipsshd.preflight import facts_from_json, there
from usbipsshd.remotefile import BadFile, read_remote_file
from usbipsshd.remoteusb import RemoteUsb
from usbipsshd.seqpacket import SeqPacket
from usbipsshd.service import Listed
from usbipsshd.session.hostkeys import TrustedKeys, fingerprint, key_text
from usbipsshd.session.replies import MAX_LINE, BadReply, Reply, parse_hello, split_tag
from usbipsshd.signer import MAX_MESSAGE, BadMessage, Signer, check_binding
from usbipsshd.vhci import parse_status

Target = Callable[[bytes], None]
LONGEST = 4096
"""Bytes that are given to a target."""


def check_shown(text: str, longest: int) -> None:
    """What a person may be shown."""
    assert text.isprintable(), text
    assert len(text) <= longest


def check_device(device: Device) -> None:
    """It can be sent, read again, and shown."""
    try:
        packet = messages.decode(messages.encode(messages.device_to_json(device)))
    except BadPacket as error:
        # The session leaves it out.
        assert str(error) == "packet too long"
        return
    assert messages.device_from_json(packet) == device
    for text in (device.vendor, device.product, device.serial, device.driver):
        check_shown(text, 128)
    for interface in device.interfaces:
        check_shown(interface.label, 128)
        for node in interface.nodes:
            assert not node.startswith(("/", ".")), node
            assert ".." not in node
    assert listed_device(Listed(device, "available", 0))["busid"].value == device.busid


def agent_reply(data: bytes) -> None:
    """Lines of an agent: the greeting, then one reply."""
    lines = data.split(b"\n")
    hello = parse_hello(lines[0])
    if hello is not None:
        check_shown(hello.kernel, 128)
        check_shown(hello.os, 64)
    reply = Reply()
    with suppress(BadReply):
        for line in lines:
            if parse_hello(line) is None and len(line) <= MAX_LINE:
                reply.add(split_tag(line)[1])
    found = reply.devices()
    assert len({device.busid for device in found}) == len(found)
    for device in found:
        check_device(device)
    assert not reply.folder or reply.folder.startswith("/")
    if reply.error is not None:
        check_shown(reply.error[1], messages.MAX_DETAIL)


def sysfs_text(data: bytes) -> None:
    """Files of a device's folder: ``name value`` lines, an empty one before each interface."""
    blocks = [
        dict(line.partition(" ")[::2] for line in block.split("\n"))
        for block in data.decode("utf-8", "surrogateescape").split("\n\n")
    ]
    interfaces = []
    for block in blocks[1:]:
        with suppress(BadDevice):
            interfaces.append(interface_from_attributes(block, list(block.values())))
    with suppress(BadDevice):
        check_device(device_from_attributes("1-1", blocks[0], interfaces, data[:64]))


def vhci_status(data: bytes) -> None:
    """The importing kernel's table of ports."""
    for port in parse_status(data.decode("ascii", "replace")):
        assert port.number >= 0


def usb_descriptors(data: bytes) -> None:
    """The raw descriptors of a device that is being looked at before it is let through."""
    with suppress(descriptors.BadDescriptors):
        summary = descriptors.summarize(data)
        assert summary.interfaces
        for triple in summary.classes:
            assert len(triple) == 6
        assert all(drivers._fields(one) for one in summary.modaliases)
        assert summary.can_type_or_network in (True, False)


def control_packet(data: bytes) -> None:
    """One packet of a session, read as each of the things that a packet may be."""
    try:
        packet = messages.decode(data)
    except BadPacket:
        return
    with suppress(BadPacket):
        code, detail = messages.error_from_json(packet)
        error = explain("pi", code, detail)
        check_shown(error.message, 1024)
    with suppress(BadPacket):
        check_device(messages.device_from_json(packet))
    with suppress(BadPacket):
        for finding in there("pi", facts_from_json(packet)):
            check_shown(finding.summary + finding.remedy, 1024)
    with suppress(BadPacket):
        messages.get_busids(packet)


def session_talk(data: bytes) -> None:
    """What a session sends while it is asked for its devices, one packet after each NUL."""
    asyncio.run(_session_talk(data.split(b"\0")))


async def _session_talk(packets: list[bytes]) -> None:
    here, there_ = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    events: list[Packet] = []
    session = Session(SeqPacket(here), "pi", events.append, first_id=lambda: 1)
    with there_:
        async with asyncio.timeout(30), asyncio.TaskGroup() as group:
            running = group.create_task(session.run())
            asking = group.create_task(_ask(RemoteUsb(session, "pi")))
            for packet in packets[:16]:
                with suppress(OSError):
                    there_.send(packet or b"{}")
            there_.shutdown(socket.SHUT_WR)
            await asking
            session.close()
            await running
    assert session.gone


async def _ask(usb: RemoteUsb) -> None:
    try:
        for device in await usb.devices():
            check_device(device)
    except UsbipError as error:
        assert error.code in (Code.FAILED, Code.CONNECTION_FAILED) or error.message
        check_shown(error.message, 1024)
    except SessionFailure as failure:
        raise AssertionError("a session's own words") from failure


def agent_request(data: bytes) -> None:
    """A session asks for a signature; it gets none, and an answer of the protocol."""
    answer = Signer([], "pi").answer(data or b"\0")
    assert answer[0] in (5, 12)
    with suppress(BadMessage):
        check_binding(data)


def ssh_agent_answer(data: bytes) -> None:
    """What a caller's own ssh-agent answers."""
    with suppress(BadMessage):
        keys = parse_keys(data)
        assert len(keys) <= MAX_KEYS
        # It fits into a request to sign, where it stands twice.
        assert all(0 < 2 * len(key) < MAX_MESSAGE for key in keys)
    with suppress(BadMessage):
        assert len(parse_signature(data)) <= MAX_MESSAGE


def state_file(folder: Path, data: bytes) -> None:
    """What an earlier process wrote down, and something damaged."""
    path = folder / "state.json"
    path.write_bytes(data)
    packet = statefile.load(path)
    with suppress(BadPacket):
        attachment = records.attachment_from_json(packet)
        again = records.attachment_from_json(records.attachment_to_json(attachment))
        assert again == attachment
    with suppress(BadPacket):
        records.hub_from_json(packet)
    with suppress(BadPacket):
        records.where_from_json(packet)


def remote_file(folder: Path, data: bytes) -> None:
    """A file of remotes.d."""
    path = folder / "pi.toml"
    path.write_bytes(data)
    try:
        check_shown(read_remote_file(path, "pi").label, 128)
    except BadFile as bad:
        assert bad.why.endswith("."), bad.why
        assert 0 <= bad.line <= data.count(b"\n") + 1


def known_hosts(data: bytes) -> None:
    """A file of host keys, and a key as a host presents it."""
    TrustedKeys(data, "pi", 22).algorithms()
    TrustedKeys(data, "10.0.0.1", 2222).algorithms()
    assert fingerprint(data).startswith("SHA256:")
    key_text(data)


def caller_text(data: bytes) -> None:
    """An address and a pattern as a caller gives them."""
    text = data.decode("utf-8", "replace")
    with suppress(UsbipError):
        address = parse_address(text)
        for part in (address.user, address.host):
            check_shown(part, 256)
            assert not part.startswith("-")
    with suppress(UsbipError):
        Pattern.parse(text)


_PARSERS: tuple[Target, ...] = (
    agent_reply,
    sysfs_text,
    vhci_status,
    usb_descriptors,
    control_packet,
    session_talk,
    agent_request,
    ssh_agent_answer,
    known_hosts,
    caller_text,
)
_READERS = (state_file, remote_file)
NAMES = tuple(each.__name__ for each in (*_PARSERS, *_READERS))


def targets(folder: Path) -> dict[str, Target]:
    """Every target by its name; files are written to ``folder``, over and over."""
    return {
        **{each.__name__: each for each in _PARSERS},
        **{each.__name__: partial(each, folder) for each in _READERS},
    }
