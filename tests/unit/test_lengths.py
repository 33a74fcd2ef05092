# SPDX-License-Identifier: GPL-3.0-or-later
"""How long a text may be: the longest that is taken, and one character more."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from unittest.mock import AsyncMock, MagicMock

import pytest
from unit.made import STICK, raw_descriptors, run

from usbipsshd import messages, records, statefile
from usbipsshd.address import is_name, parse_address
from usbipsshd.bus import contract, manager
from usbipsshd.bus.manager import MANAGER, Manager
from usbipsshd.bus.values import Call, Caller, Variant
from usbipsshd.descriptors import BadDescriptors, summarize
from usbipsshd.device import interface_from_attributes, is_node
from usbipsshd.errors import Code, UsbipError
from usbipsshd.messages import BadPacket, Json
from usbipsshd.pattern import Pattern
from usbipsshd.remotes import RemoteStore, check_fingerprint, fingerprint
from usbipsshd.sshconfig import direct
from usbipsshd.text import clean

LONGEST = 512

TEXTS = [
    (member, index)
    for member, method in contract.load().interfaces[MANAGER].methods.items()
    for index, kind in enumerate(method.takes.removesuffix("a{sv}"))
    if kind == "s"
]
"""Every text argument of every method, by the contract: one that comes later is in by itself."""


def called(member: str, texts: dict[int, str], options: dict[str, object]) -> MagicMock:
    """What the daemon's work is asked for by a call; raise what the call is refused with."""
    service = MagicMock()
    for name in (
        "list_remote", "list_local", "attach", "attach_all", "unbind", "preflight", "add_remote",
        "remove_remote", "trust_host_key", "detach_target", "export", "reset",
    ):  # fmt: skip
        setattr(service, name, AsyncMock(return_value=MagicMock()))
    works = dict.fromkeys(("service", "lending", "unbinding", "resets", "remotes"), service)
    served = Manager(**works, asks=MagicMock(), bindings=MagicMock())
    takes = contract.load().interfaces[MANAGER].methods[member].takes
    arguments: list[object] = [texts.get(n, "pi") for n in range(len(takes.removesuffix("a{sv}")))]
    call = Call(
        Caller(":1.2", 61001), "/", MANAGER, member, takes, (*arguments, options), interactive=False
    )

    async def main() -> None:
        await served.dispatch()[MANAGER, member](call)

    run(main())
    return service


def passed_on(service: MagicMock) -> list[object]:
    """All that was handed to the work, out of its dictionaries, too."""
    found: list[object] = []
    for one in service.mock_calls:
        for value in (*one.args, *one.kwargs.values()):
            found += value.values() if isinstance(value, dict) else [value]
    return found


@pytest.mark.parametrize(("member", "index"), TEXTS)
def test_text_arguments_of_calls(member: str, index: int) -> None:
    assert "x" * LONGEST in passed_on(called(member, {index: "x" * LONGEST}, {}))
    with pytest.raises(UsbipError) as caught:
        called(member, {index: "x" * (LONGEST + 1)}, {})
    assert caught.value.code is Code.INVALID_ARGS
    assert str(LONGEST) in caught.value.message


@pytest.mark.parametrize("name", [n for n, kind in manager._ADD_REMOTE.items() if kind == "s"])
def test_text_options_of_calls(name: str) -> None:
    longest = Variant("s", "x" * LONGEST)
    assert "x" * LONGEST in passed_on(called("AddRemote", {}, {name: longest}))
    with pytest.raises(UsbipError) as caught:
        called("AddRemote", {}, {name: Variant("s", "x" * (LONGEST + 1))})
    assert caught.value.code is Code.INVALID_ARGS
    assert str(LONGEST) in caught.value.message


def test_no_option_with_text_is_left_out() -> None:
    tables = (manager._ATTACH, manager._ATTACH_ALL, manager._CONNECT, manager._SET_OPTIONS)
    assert "s" not in {kind for table in tables for kind in table.values()}


def _labelled(folder: Path, text: str) -> None:
    RemoteStore(folder, folder, ()).add("pi", {"label": text})


def _taken(parse: Callable[[str], object], text: str) -> bool:
    """Whether a text is taken; what is not is refused in words, or said to be none."""
    try:
        return parse(text) is not False
    except UsbipError as error:
        assert error.code is Code.INVALID_ARGS
        return False
    except (BadPacket, ValueError):
        return False


@pytest.mark.parametrize(
    ("parse", "longest"),
    [
        pytest.param(Pattern.parse, 256, id="a pattern"),
        pytest.param(lambda t: Pattern.parse("[" + t[2:] + "]"), 256, id="an expression"),
        pytest.param(is_name, 64, id="a remote's name"),
        pytest.param(parse_address, 253, id="a host"),
        pytest.param(lambda t: parse_address(f"{t}@pi"), 32, id="a user"),
        pytest.param(lambda t: parse_address(f"pi:{t[1:].replace('x', '0')}1"), 5, id="a port"),
        pytest.param(lambda t: parse_address(f"[fe80::1%{t}]"), 15, id="an interface"),
        pytest.param(lambda t: messages.get_str({"a": t}, "a"), 256, id="a session's text"),
        pytest.param(lambda t: messages.get_str({"a": t}, "a", 7), 7, id="a short one"),
        pytest.param(
            lambda t: messages.error_from_json({"code": "Failed", "detail": t}), 400, id="a reason"
        ),
        pytest.param(lambda t: records._text({"a": t}, "a"), 512, id="a record's text"),
        pytest.param(lambda t: check_fingerprint(f"SHA256:{t}"), 43, id="a fingerprint"),
        pytest.param(is_node, 64, id="a node"),
    ],
)
def test_texts(parse: Callable[[str], object], longest: int) -> None:
    assert _taken(parse, "x" * longest)
    assert not _taken(parse, "x" * (longest + 1))
    assert not _taken(parse, "x" * (longest + 1000))


def test_a_key(tmp_path: Path) -> None:
    name = b"ssh-rsa"
    head = len(name).to_bytes(4, "big") + name
    fits = (16384 - len("ssh-rsa ")) // 4 * 3
    for size, taken in ((fits, True), (fits + 3, False)):
        blob = base64.b64encode(head + bytes(size - len(head))).decode()
        assert _taken(fingerprint, f"ssh-rsa {blob}") is taken


def test_a_file_of_host_keys_that_is_too_long_is_none(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    store = RemoteStore(tmp_path, tmp_path, (path,))
    remote = store.find("root@pi")
    for size, taken in ((4 << 20, True), ((4 << 20) + 1, False)):
        path.write_bytes(b"#" * size)
        assert (b"#" in store.known_hosts(remote, direct(remote.address))) is taken


def test_a_record_that_is_too_long_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    for size, taken in ((32 << 20, True), ((32 << 20) + 1, False)):
        with path.open("wb") as file:
            file.write(b'{"a": 1}')
            # JSON may end in any number of spaces; a file may have holes.
            file.write(b" " * (size - 8))
        assert (statefile.load(path) == {"a": 1}) is taken
        assert path.exists() is taken


def test_descriptors() -> None:
    raw = raw_descriptors(1, 2, (8, 6, 0x50))
    whole, rest = divmod(65536 - len(raw), 255)
    filling = (b"\xff\xff" + bytes(253)) * (whole - 1)
    filling += bytes([254, 255]) + bytes(252) + bytes([rest + 1, 255]) + bytes(rest - 1)
    assert len(raw + filling) == 65536
    assert summarize(raw + filling).vendor_id == 1
    with pytest.raises(BadDescriptors, match="too long"):
        summarize(raw + filling + b"\x02\xff")


def test_what_a_driver_is_called() -> None:
    attributes = {
        "bInterfaceNumber": "00", "bInterfaceClass": "08", "bInterfaceSubClass": "06",
        "bInterfaceProtocol": "50",
    }  # fmt: skip
    for length, kept in ((64, 64), (65, 64)):
        made = interface_from_attributes({**attributes, "driver": "x" * length})
        assert len(made.driver) == kept


def _with_nodes(nodes: list[Json]) -> object:
    interface: Json = {**asdict(STICK.interfaces[0]), "nodes": nodes}
    return messages.device_from_json({**messages.device_to_json(STICK), "interfaces": [interface]})


@pytest.mark.parametrize(
    ("read", "item", "longest"),
    [
        pytest.param(lambda v: messages.get_busids({"busids": v}), "1-1", 1024, id="bus ids"),
        pytest.param(_with_nodes, "sda", 64, id="nodes of an interface"),
        pytest.param(lambda v: messages.get_list({"a": v}, "a", 3), 0, 3, id="any list"),
        pytest.param(
            lambda v: records._read_plugs({"a": v}, "a"), ["1-1", 2], 1024, id="plugs of a record"
        ),
    ],
)
def test_lists(read: Callable[[list[Json]], object], item: Json, longest: int) -> None:
    read([item] * longest)
    with pytest.raises(BadPacket):
        read([item] * (longest + 1))


def test_a_label(tmp_path: Path) -> None:
    assert _taken(lambda t: _labelled(tmp_path / "a", t), "x" * 128)
    assert not _taken(lambda t: _labelled(tmp_path / "b", t), "x" * 129)


@pytest.mark.parametrize("limit", [1, 128, 200])
def test_what_is_cleaned_is_cut(limit: int) -> None:
    assert len(clean("x" * limit, limit)) == limit
    assert len(clean("x" * (limit + 1), limit)) == limit


def test_what_is_cleaned_is_looked_at_no_further_than_needed() -> None:
    assert clean("\0" * 1023 + "x") == "x"
    assert clean("\0" * 1024 + "x") == ""


def test_an_error_of_a_record_is_cut() -> None:
    pair = records._read_pair({"error": ["n" * 1025, "m" * 1025]}, "error")
    assert pair == ("n" * 128, "m" * 1024)
