# SPDX-License-Identifier: GPL-3.0-or-later
"""Remotes that print nonsense, hang, or close at any point: a named error, and nothing left."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence

import pytest
from fakekernel import SERIAL_ADAPTER, STICK
from integration.otherremotes import bad, listed, other_sshd
from integration.world import ALICE, STANDARD_CODES, World, check_refusal, wait_until, world

POINTS = {
    "hello": "0:^hello",
    "describe": "0: d ",
    "attributes": "0: a idVendor",
    "descriptors": "0: x ",
    "described": "0:[0-9] ok",
    "folder": "1: dir ",
    "bound": "1:[0-9] ok",
    "connected": "2:[0-9] ok",
}
"""Points of an attach by bus id: the agent's greeting, describe, bind and connect."""

ENDS = ("ConnectionFailed", "RemoteUnsupported", "DeviceFailed", "Failed", "TimedOut")
LIMIT = 55


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    with world() as made:
        for number in range(1, 13):
            made.pi.plug(f"2-{number}", STICK)
        made.pi.plug("1-1", SERIAL_ADAPTER)
        made.add_remote()
        yield made


@pytest.fixture
def w(shared: World) -> Iterator[World]:
    yield shared
    shared.detach_all()
    shared.check_clean()
    shared.check_nothing_left_there()


def spoil(w: World, spoiled: Sequence[tuple[str, str, str]], codes: Sequence[str]) -> None:
    """Call many remotes at once, each spoiled in its own way and each for a device of its own."""
    # With the connection to the good one.
    w.list(pattern="1-1")
    tasks = len(w.tasks())
    with contextlib.ExitStack() as stack:
        forced = [bad(mode, point) for _, mode, point in spoiled]
        ports = stack.enter_context(other_sshd(w, forced=forced))
        names = [f"bad{n}" for n in range(len(ports))]
        for name, port in zip(names, ports, strict=True):
            stack.enter_context(listed(w, name, port))
        began = time.monotonic()
        calls = {
            name: w.begin(
                ALICE, member, "ssa{sv}", name, f"2-{n + 1}" if member == "Attach" else "", "0"
            )
            for n, (name, (member, _, _)) in enumerate(zip(names, spoiled, strict=True))
        }
        # A good one is as good as ever meanwhile.
        assert len(w.list(pattern="1-1")) == 1
        for how, (name, call) in zip(spoiled, calls.items(), strict=True):
            answer = call.answer()
            code = answer.error.rpartition(".")[2]
            assert code in codes, (how, answer)
            assert code not in STANDARD_CODES
            check_refusal(answer, code, name)
        assert time.monotonic() - began < LIMIT
        # An agent that cannot be heard gives back by itself, sooner or later.
        w.check_clean()
        assert len(w.list(pattern="1-1")) == 1
    assert w.attachments() == []
    wait_until(lambda: len(w.tasks()) <= tasks + 3, "tasks stay")


def attach(mode: str, *names: str) -> list[tuple[str, str, str]]:
    return [("Attach", mode, POINTS[n]) for n in names]


def listing(mode: str, *names: str) -> list[tuple[str, str, str]]:
    return [("ListRemote", mode, POINTS[n]) for n in names]


def test_where_it_closes(w: World) -> None:
    spoil(w, attach("cut", *POINTS) + listing("cut", "hello", "describe", "described"), ENDS)


def test_where_it_hangs(w: World) -> None:
    spoil(
        w,
        attach("hang", "hello", "described", "folder", "connected") + listing("hang", "describe"),
        ("TimedOut", "RemoteUnsupported"),
    )


def test_where_it_says_nonsense(w: World) -> None:
    spoil(
        w,
        attach("noise", "hello", "describe", "descriptors", "folder", "connected")
        + attach("wrong", "described", "bound", "connected")
        + listing("noise", "hello", "describe", "described"),
        ENDS,
    )


def test_where_it_never_ends_a_line(w: World) -> None:
    spoil(w, attach("flood", "hello", "bound") + listing("flood", "describe"), ENDS)


def test_words_from_there_are_shown_as_data(w: World) -> None:
    hostile = STICK.but(
        product="\x1b]0;owned\x07<b>x</b> \u202e evil",
        manufacturer="a" * 126,
        serial="$(reboot)`id`",
    )
    w.pi.plug("1-5", hostile)
    device = w.list(pattern="1-5")[0]
    assert device["product"].isprintable()
    assert "\x1b" not in device["product"]
    assert device["serial"] == "$(reboot)`id`"
    assert len(device["vendor"]) <= 126
    w.attach("1-5")
    w.detach_all()
    w.pi.unplug("1-5")
