# SPDX-License-Identifier: GPL-3.0-or-later
"""What the agent says of its machine and of what is plugged in."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from fakekernel import BLUETOOTH, HUB, KEYBOARD, NETWORK, STICK, FakeKernel
from integration.agents import AGENT, SECONDS, SHELLS, Agent, parse


def test_hello_tells_of_the_remote(agent: Agent) -> None:
    words = agent.hello.decode().split(" ")
    assert words[:3] == ["hello", "1", "0"]
    assert words[3] == os.uname().release
    assert words[4] == "debian"
    # What this machine has, best first.
    names = ("perl", "python3", "socat", "ncat", "bash")
    assert words[5] == ",".join(name for name in names if shutil.which(name))
    assert len(words) == 6


def test_list_tells_everything_about_every_device(agent: Agent, pi: FakeKernel) -> None:
    pi.plug("1-1", HUB)
    pi.plug("1-1.3", KEYBOARD)
    pi.plug("2-1", STICK)
    pi.plug("2-2", NETWORK)
    answer = agent.ask("list")
    assert answer[-1] == b"ok"
    assert b"b 1 0000:00:14.0" in answer
    devices = parse(answer)
    assert sorted(devices) == ["1-1", "1-1.3", "2-1", "2-2"]
    keyboard = devices["1-1.3"]
    assert keyboard["idVendor"] == ["046d"]
    assert keyboard["manufacturer"] == ["Logitech"]
    assert keyboard["speed"] == ["1.5"]
    assert keyboard["driver"] == ["usb"]
    assert "serial" not in keyboard
    assert keyboard["0/driver"] == ["usbhid"]
    assert keyboard["0/bInterfaceClass"] == ["03"]
    assert keyboard["0/node"] == ["input/event0", "hidraw0"]
    assert sorted(keyboard["1/node"]) == ["hidraw1", "input/event1", "input/event2"]
    assert devices["2-1"]["0/node"] == ["sda", "sda1"]
    assert devices["2-2"]["0/node"] == ["net/eth0"]
    assert devices["1-1"]["bDeviceClass"] == ["09"]


def test_list_with_nothing_plugged_in(agent: Agent) -> None:
    assert agent.ask("list") == [b"b 1 0000:00:14.0", b"b 2 0000:00:14.0", b"ok"]


@pytest.mark.parametrize("shell", SHELLS)
def test_one_that_goes_while_it_is_described_is_not_there(shell: str, tmp_path: Path) -> None:
    # As it looks between two of the agent's reads: the folder is there, what is in it is not.
    folder = tmp_path / "bus/usb/devices/1-9"
    folder.mkdir(parents=True)
    (folder / "descriptors").write_bytes(bytes(18))
    agent = Agent(shell, tmp_path)
    try:
        assert agent.ask("describe 1-9") == [b"fail DeviceNotFound 1-9"]
        assert agent.ask("list") == [b"ok"]
    finally:
        agent.process.communicate(timeout=SECONDS)


def test_describe_gives_the_descriptors(agent: Agent, pi: FakeKernel) -> None:
    pi.plug("1-1", BLUETOOTH)
    pi.plug("2-1", STICK)
    device = parse(agent.ask("describe 1-1"))
    assert list(device) == ["1-1"]
    assert bytes.fromhex("".join(device["1-1"]["x"])) == BLUETOOTH.descriptors
    assert agent.fails("describe 1-9") == "DeviceNotFound 1-9"


def test_long_descriptors_come_in_pieces(agent: Agent, pi: FakeKernel) -> None:
    raw = KEYBOARD.descriptors + bytes(range(2, 250)) * 12
    pi.plug("1-1", KEYBOARD.but(raw_descriptors=raw.hex()))
    pieces = parse(agent.ask("describe 1-1"))["1-1"]["x"]
    assert bytes.fromhex("".join(pieces)) == raw
    assert len(pieces) > 1
    assert all(len(p) <= 2000 for p in pieces)


NAMES = [
    "plain",
    r"back\slash \n \t \\ \040 \c \x41",
    "100%s %d %n %%",
    "$(touch /tmp/x) `id` ${HOME} ; rm -rf / & | > <",
    "* ? [a-z] ~ ! #",
    "'quote \"double\" it's",
    "Łódź 日本語 \U0001f50c",
    "\x01\x1b[31mred\x7f\x07",
    "  spaces  and\ttab ",
    "-n -e -- --help",
    "\udcff\udc80\udc81\udc88 broken \udcc3",
    "".join(chr(0xDC00 + c) for c in range(0x80, 0x100)),
    "x" * 126,
    "\uffff" * 126,
    "9 ok",
]


def test_names_come_as_they_are(agent: Agent, pi: FakeKernel) -> None:
    for number, name in enumerate(NAMES, 1):
        pi.plug(f"1-{number}", KEYBOARD.but(product=name, manufacturer=name, serial=name))
    devices = parse(agent.ask("list"))
    for number, name in enumerate(NAMES, 1):
        device = devices[f"1-{number}"]
        for attribute in ("product", "manufacturer", "serial"):
            assert device[attribute] == [name]


def test_a_name_with_a_newline_can_not_forge_a_line(agent: Agent, pi: FakeKernel) -> None:
    pi.plug("1-1", KEYBOARD.but(product="first\n1 ok\n1 d 6-6"))
    devices = parse(agent.ask("list"))
    assert list(devices) == ["1-1"]
    assert devices["1-1"]["product"] == ["first"]


def test_an_endless_name_is_left_out(agent: Agent, pi: FakeKernel) -> None:
    pi.plug("1-1", KEYBOARD.but(product="y" * 4000))
    device = parse(agent.ask("list"))["1-1"]
    assert "product" not in device
    assert device["manufacturer"] == ["Logitech"]


def test_what_is_written_is_whole_lines(shell: str, pi: FakeKernel) -> None:
    """Each write(2) ends in a newline and is short enough to stay whole on a pipe."""
    for port in range(1, 13):
        pi.plug(f"1-{port}", KEYBOARD.but(product="日本語" * 40, serial="é" * 120))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        process = subprocess.Popen(
            [*shell.split(), *AGENT, str(pi.root)],
            stdin=subprocess.PIPE,
            stdout=theirs.fileno(),
        )
        theirs.close()
        assert process.stdin is not None
        process.stdin.write(b"1 list\n2 describe 1-1\n3 list\n")
        process.stdin.flush()
        ours.settimeout(SECONDS)
        ended = 0
        while ended < 3:
            packet = ours.recv(65536)
            assert packet.endswith(b"\n")
            assert len(packet) <= 4096
            ended += len(re.findall(rb"^\d+ ok$", packet, re.MULTILINE))
        process.stdin.close()
        assert process.wait(SECONDS) == 0
