# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent is sent anything, among it requests that are nearly or entirely right."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fakekernel import KEYBOARD, SERIAL_ADAPTER, FakeKernel
from hypothesis import given, settings
from hypothesis import strategies as st
from integration.agents import SHELLS, TOKEN, Agent, bind_request

VERBS = (
    "list",
    "facts",
    "watch",
    "describe",
    "bind",
    "connect",
    "release",
    "unbind",
    "reset",
    "ping",
)
FIRST_TAG = 10_000_000
"""Of the requests that are known to be right; what hypothesis makes up has shorter ones."""


@pytest.fixture(scope="module")
def kernel() -> Iterator[FakeKernel]:
    with FakeKernel(modules=("usbip-host",)) as one:
        yield one


def _lines(rights: list[str], mark: Path) -> st.SearchStrategy[bytes]:
    """Lines: any bytes, words of the protocol in any order, and right requests, changed or not."""
    tricks = [
        f"$(touch {mark})",
        f"`touch {mark}`",
        f"1-1;touch {mark}",
        "../../1-1",
        "*",
        "-n",
        "1-1\n2",
    ]
    words = st.sampled_from(
        [
            *VERBS,
            *tricks,
            "1-1",
            "2-1",
            "9-9",
            "0",
            "1",
            "-1",
            TOKEN,
            "perl",
            "/run/x",
            "99999999999",
        ]
    )
    made_up = st.lists(words | st.text(max_size=6), max_size=8).map(" ".join)
    text = st.sampled_from(rights) | made_up
    tagged = st.tuples(st.integers(0, 999_999), text).map(lambda pair: f"{pair[0]} {pair[1]}")
    whole = (tagged | made_up).map(lambda line: line.encode("utf-8", "surrogatepass"))
    return (whole | st.binary(max_size=40) | st.just(b"x" * 5000)).map(
        lambda b: b.replace(b"\n", b"")
    )


@pytest.mark.parametrize("shell", SHELLS)
def test_anything(shell: str, kernel: FakeKernel, tmp_path: Path) -> None:
    kernel.reset()
    kernel.plug("1-1", SERIAL_ADAPTER)
    kernel.plug("2-1", KEYBOARD)
    mark = tmp_path / "mark"
    rights = [
        bind_request(kernel, "1-1", SERIAL_ADAPTER),
        bind_request(kernel, "2-1", KEYBOARD),
        *("release 1-1 1", "unbind 2-1", "describe 1-1", "list", "facts", "watch"),
        f"connect 1-1 perl /run/nothing {TOKEN}",
    ]
    agent = Agent(shell, kernel.root)
    tag = FIRST_TAG

    @settings(max_examples=25)
    @given(st.lists(_lines(rights, mark), max_size=12))
    def send(lines: list[bytes]) -> None:
        nonlocal tag
        tag += 1
        agent.send_bytes(b"".join(line + b"\n" for line in [*lines, b"%d list" % tag]))
        answer = b""
        while answer not in (
            b"%d ok" % tag,
            b"%d fail LimitsExceeded too many requests at once" % tag,
        ):
            answer = agent.line()
            assert answer == b"pong" or answer.split(b" ")[0].isdigit(), answer
        assert not mark.exists()

    try:
        send()
        agent.end()
        kernel.check_clean()
        drivers = {device["driver"] for device in kernel.state()["devices"].values()}
        assert drivers == {"usb"}
    finally:
        agent.discard()
