# SPDX-License-Identifier: GPL-3.0-or-later
"""What the agent takes for a request, and how many run side by side."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from fakekernel import SERIAL_ADAPTER, FakeKernel
from integration.agents import SECONDS, SHELLS, TOKEN, Agent, bind_request
from integration.world import LONG

from usbipsshd.session import script

NONSENSE = [
    "",
    "frob",
    "list 1-1",
    "describe",
    "describe ../../etc",
    "describe 1-1/../1-2",
    "describe usb1",
    "describe 1-1:1.0",
    "describe 0-1",
    "describe 1-0",
    "describe 1-1.",
    "describe 1.1-1",
    "describe 1-1.01",
    "describe 1-1-1",
    "describe *",
    "describe 1-1.1.1.1.1.1.1.1.1.1.1.1.1.1.1.1.1.1.1.1.1",
    "describe $(touch${IFS}MARK)",
    "describe `touch MARK`",
    "describe 1-1;touch MARK",
    "describe 1-1 && touch MARK",
    "describe  1-1",
    "describe 1-1 ",
    "bind 1-1",
    "bind 1-1 0403 6001 1 2",
    "bind 1-1 0403 6001 1 2 2",
    "bind 1-1 403 6001 1 2 1",
    "bind 1-1 040G 6001 1 2 1",
    "bind 1-1 0403 6001 x 2 1",
    "bind 1-1 0403 6001 1 99999999999999999999 1",
    "bind -rf 0403 6001 1 2 1",
    "bind 1-1 0403 6001 1 2 1 extra",
    "connect 1-1 sh /run/x " + TOKEN,
    "connect 1-1 perl /run/x short",
    "connect 1-1 perl /run/x " + TOKEN.upper(),
    "connect 1-1 perl /run/x',system('touch',MARK) " + TOKEN,
    "release 1-1",
    "release 1-1 yes",
    "release ../1-1 1",
    "unbind all",
    "eval touch MARK",
    "finish",
    "release_all",
    "x" * 20000,
    "list\x01",
    "líst",
]


def test_nonsense_is_refused(agent: Agent, pi: FakeKernel, tmp_path: Path) -> None:
    pi.plug("1-1", SERIAL_ADAPTER)
    mark = tmp_path / "mark"
    for request in NONSENSE:
        failure = agent.fails(request.replace("MARK", str(mark)))
        assert failure == "InvalidArgs request", request
        assert not mark.exists(), request
    assert pi.state()["log"] == []
    assert agent.ask("list")[-1] == b"ok"


def test_lines_without_a_tag_are_passed_over(agent: Agent) -> None:
    for text in (
        "list",
        "ping ping",
        "-1 list",
        "x list",
        "1",
        "",
        " ",
        "\x01",
        "12345678901 list",
    ):
        agent.send(text + "\n")
    agent.send("ping\n")
    before = []
    tag = agent.start("list").encode()
    while (line := agent.line()) != tag + b" ok":
        before.append(line)
    refused = [b for b in before if not re.match(rb"1 b ", b)]
    assert refused == [b"1 fail InvalidArgs request", b"pong"]


def test_a_request_cut_short_is_not_carried_out(shell: str, pi: FakeKernel) -> None:
    pi.plug("1-1", SERIAL_ADAPTER)
    agent = Agent(shell, pi.root)
    try:
        agent.send("1 " + bind_request(pi, "1-1", SERIAL_ADAPTER))
        agent.end()
        assert pi.state()["log"] == []
    finally:
        agent.discard()


def test_a_device_of_a_slow_kernel_delays_no_other_request(agent: Agent, pi: FakeKernel) -> None:
    pi.plug("1-1", SERIAL_ADAPTER)
    pi.delay("bind 1-1", LONG)
    slow = agent.start(bind_request(pi, "1-1", SERIAL_ADAPTER))
    assert agent.ask("list")[-1] == b"ok"
    pi.delay("bind 1-1", 0)
    assert agent.answers([slow])[0][-1] == b"ok"


def test_many_requests_leave_no_children_behind(agent: Agent) -> None:
    for _ in range(10):
        tags = [agent.start("unbind 1-1") for _ in range(10)]
        agent.answers(tags)
    children = Path(f"/proc/{agent.process.pid}/task/{agent.process.pid}/children")
    assert len(children.read_text().split()) < 30


def test_it_is_read_from_where_the_requests_come(pi: FakeKernel) -> None:
    """As the session has it started."""
    pi.plug("1-1", SERIAL_ADAPTER)
    text = script.travelling().decode()
    for shell in SHELLS:
        result = subprocess.run(
            [*shell.split(), "-c", f'eval "$(dd bs=1 count={len(text)} 2>/dev/null)"',
             "usbipssh-agent", str(pi.root)],
            input=text + "1 list\n2 describe 1-1\n",
            capture_output=True, text=True, timeout=SECONDS, check=True,
        )  # fmt: skip
        assert result.stderr == ""
        assert re.search(r"^1 ok$", result.stdout, re.MULTILINE)
        assert re.search(r"^2 ok$", result.stdout, re.MULTILINE)
