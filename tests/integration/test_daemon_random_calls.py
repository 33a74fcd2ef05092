# SPDX-License-Identifier: GPL-3.0-or-later
"""Made-up arguments of the right types for every method that introspection shows, as dfuzzer does.

By root and by nobody; whatever they say, the daemon answers, and is none the larger for it.
"""

from __future__ import annotations

import asyncio
import os
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from typing import Any

import pytest
from fakekernel import STICK
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from integration.busfixtures import client_call
from integration.world import ERROR, NAME, ROOT, STANDARD, STANDARD_CODES, World, world

from usbipsshd.bus.wire import library
from usbipsshd.errors import Code

NOBODY = 65534
KNOWN = {STANDARD + code for code in STANDARD_CODES} | {ERROR + code.value for code in Code}
UNEXPECTED = "unexpected"
"""A word of the sentence for what should never happen."""

WORDS = [
    "", "pi", "2-1", "1-1", "all", "pi/2-1", "/", f"{ROOT}/attachment/1", f"{ROOT}/hub/1", "!", "-",
    f"{ROOT}/attachment/99999999999999999999", f"{ROOT}/attachment/-1", "(a+)+$", "[" * 64,
    "0781:5581", "a@b:99999", "root@[::1]:22", "root@[::1", "-oProxyCommand=id", "x" * 512,
    "x" * 513, "%n%s%d", "../../../etc/passwd", "$(id)", "\x1b[2J", "\u202e", "\U0001f50c", "\n",
    "SHA256:" + "A" * 43, "org.usbipssh1.Manager", "Version", "127.0.0.1:1",
]  # fmt: skip
KEYS = [
    "keep", "persist", "unmount", "rebind", "expect-vendor-id", "bind-to-caller", "address", "sudo",
    "label", "ssh-agent",
]  # fmt: skip
NUMBERS = {"y": 8, "q": 16, "u": 32, "t": 64, "n": -16, "i": -32, "x": -64}


def numbers(bits: int) -> st.SearchStrategy[int]:
    if bits > 0:
        return st.integers(0, (1 << bits) - 1)
    return st.integers(-(1 << (-bits - 1)), (1 << (-bits - 1)) - 1)


TEXT = st.sampled_from(WORDS) | st.text(
    st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=40
)
VARIANTS = st.sampled_from(["b", "s", "q", "u", "h", "as", "a{sv}", "(ss)", "v", "x", "d", "o"])


def values(kind: Any, depth: int = 3) -> st.SearchStrategy[Any]:
    """Values of a D-Bus type, as the library parses it."""
    code, children = str(kind.token), kind.children
    if code in NUMBERS:
        return numbers(NUMBERS[code])
    if code == "a" and str(children[0].token) == "{":
        key, item = children[0].children
        keys = values(key) | (st.sampled_from(KEYS) if str(key.token) == "s" else values(key))
        return st.dictionaries(keys, values(item, depth - 1), max_size=3 if depth > 0 else 0)
    if code == "a":
        return st.lists(values(children[0], depth - 1), max_size=3 if depth > 0 else 0)
    if code == "(":
        return st.tuples(*(values(child, depth - 1) for child in children)).map(list)
    simple: dict[str, st.SearchStrategy[Any]] = {
        "s": TEXT,
        "b": st.booleans(),
        "d": st.floats(),
        "h": st.integers(0, 5),
        "o": st.sampled_from(["/", ROOT, f"{ROOT}/attachment/1", f"{ROOT}/remote/pi"]),
        "g": st.sampled_from(["", "s", "a{sv}"]),
        "v": VARIANTS.filter(lambda v: depth > 0 or v in "bsqu").flatmap(
            lambda v: values(types(v)[0], depth - 1).map(
                lambda value: library("signature").Variant(v, value)
            )
        ),
    }
    return simple[code]


def types(signature: str) -> Any:
    return library("signature").SignatureTree._get(signature).types


def arguments(signature: str) -> st.SearchStrategy[list[Any]]:
    return st.tuples(*(values(kind) for kind in types(signature))).map(list)


@pytest.fixture(scope="module")
def w() -> Iterator[World]:
    with world() as made:
        made.pi.plug("2-1", STICK)
        made.add_remote()
        made.list()
        yield made
        made.detach_all()


def methods(w: World) -> list[tuple[str, str, str, str]]:
    """Path, interface, method and signature of all that introspection shows."""
    found = []
    for path in (ROOT, *w.objects()):
        text = w.call(
            NOBODY, "Introspect", path=path, interface="org.freedesktop.DBus.Introspectable"
        )
        for interface in ET.fromstring(text).findall("interface"):
            for method in interface.findall("method"):
                args = [a for a in method.findall("arg") if a.get("direction", "in") == "in"]
                signature = "".join(a.attrib["type"] for a in args)
                found.append((path, interface.attrib["name"], method.attrib["name"], signature))
    return found


@pytest.mark.parametrize("uid", [0, NOBODY], ids=["root", "nobody"])
def test_made_up_arguments(w: World, uid: int) -> None:
    w.attach("2-1", 0)
    assert w.daemon is not None
    pid, before = w.daemon.pid, w.resident()
    every = methods(w)
    assert {"ListRemote", "SetOptions", "GetStatistics", "Set", "Ping"} <= {m[2] for m in every}
    calls = st.sampled_from(every).flatmap(
        lambda m: st.tuples(st.just(m), arguments(m[3]), st.integers(0, 2))
    )

    async def ask(client: Any, call: tuple[Any, list[Any], int]) -> None:
        (path, interface, member, signature), args, stray = call
        ends = [end for _ in range(stray) for end in os.pipe()]
        try:
            answer = await client_call(
                client, NAME, path, interface, member, signature, *args, fds=tuple(ends)
            )
        finally:
            for end in ends:
                os.close(end)
        assert answer.error_name is None or answer.error_name in KNOWN, (call, answer.error_name)
        if answer.error_name:
            assert UNEXPECTED not in answer.body[0], call
            assert answer.body[0].isprintable(), call

    @settings(max_examples=60, suppress_health_check=list(HealthCheck))
    @given(st.lists(calls, min_size=1, max_size=12))
    def say(some: list[tuple[Any, list[Any], int]]) -> None:
        async def main() -> None:
            client = w.bus.connect(uid)
            await client.connect()
            try:
                await asyncio.gather(*(ask(client, call) for call in some))
            finally:
                client.disconnect()

        asyncio.run(main())

    say()
    assert w.daemon.poll() is None
    assert w.daemon.pid == pid
    assert "Traceback" not in w.log()
    assert w.resident() < before + 20_000
    for path in w.objects():
        name = path.rpartition("/")[2]
        if "/remote/" in path and name != "pi":
            w.call(0, "RemoveRemote", "sa{sv}", w.get(path, "org.usbipssh1.Remote", "Name"), "0")
    w.detach_all()
    w.check_clean()
