# SPDX-License-Identifier: GPL-3.0-or-later
"""What is made of what ``ssh -G`` prints, and what is not followed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from unit.made import refused

import usbipsshd.sshconfig
from usbipsshd.address import parse_address
from usbipsshd.errors import Code
from usbipsshd.sshconfig import MAX_HOPS, Route, SshConfig, direct


@pytest.fixture
def file(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    return tmp_path / "ssh_config"


def route(file: Path, address: str, text: str | None = None, **given: Path) -> Route:
    if text is not None:
        file.write_text(text)
        file.chmod(0o644)
    return asyncio.run(SshConfig(file, home=Path("/root"), **given).route(parse_address(address)))


def test_without_a_file_the_way_is_direct(file: Path) -> None:
    assert route(file, "usb@pi:2200") == direct(parse_address("usb@pi:2200"))


def test_what_is_configured_for_others_says_nothing(file: Path) -> None:
    found = route(file, "pi", "Host other\n Port 5\n IdentityFile /x\n")
    assert found == direct(parse_address("pi"))


def test_identities_are_those_of_the_file_and_no_others(file: Path) -> None:
    text = "IdentityFile ~/.ssh/lab\nIdentityFile %d/keys/%h\nCertificateFile /c\n"
    hop = route(file, "pi", text).last
    assert hop.identities == (Path("/root/.ssh/lab"), Path("/root/keys/pi"))
    assert hop.certificates == (Path("/c"),)
    assert hop.own_key
    assert not route(file, "pi", text + "IdentitiesOnly yes\n").last.own_key
    # Without an identity there would be nothing left to log in with.
    assert route(file, "pi", "IdentitiesOnly yes\n").last.own_key


def test_jump_hosts_are_looked_up_too_and_come_in_order(file: Path) -> None:
    text = (
        "Host far\n ProxyJump ssh://u@one:23,[::1]:24\n"
        "Host one\n HostName one.lan\n ProxyCommand nc %h %p\n"
    )
    found = route(file, "far", text)
    assert [(h.user, h.host, h.port) for h in found.hops] == [
        ("u", "one.lan", 23), ("root", "::1", 24), ("root", "far", 22),
    ]  # fmt: skip
    assert found.proxy == "nc one.lan 23"


def test_too_many_jump_hosts(file: Path) -> None:
    jumps = ",".join(f"j{n}" for n in range(MAX_HOPS))
    with refused(Code.FAILED, "mistake"):
        route(file, "far", f"Host far\n ProxyJump {jumps}\n")


@pytest.mark.parametrize(
    ("command", "made"),
    [
        ("nc %h %p", "nc pi 22"),
        ("x '%r@%n' 100%%", "x 'root@pi' 100%"),
        ("none", ""),
    ],
)
def test_a_proxy_command_is_filled_in(file: Path, command: str, made: str) -> None:
    assert route(file, "pi", f"ProxyCommand {command}\n").proxy == made


def test_nothing_that_a_shell_could_misread_is_filled_in(file: Path) -> None:
    with refused(Code.FAILED, "mistake"):
        route(file, "bob$@pi", "ProxyCommand nc -X %r %h\n")
    with refused(Code.FAILED, "mistake"):
        route(file, "pi", "ProxyCommand nc %L\n")


@pytest.mark.parametrize(
    "text",
    ["HostName a b\n", "HostName -x\n", "User a;b\n", "HostKeyAlias a/b\n", "Nonsense\n"],
)
def test_values_that_are_none(file: Path, text: str) -> None:
    with refused(Code.FAILED, "mistake"):
        route(file, "pi", text)


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_what_others_can_write_is_not_followed(file: Path, mode: int) -> None:
    file.write_text("Port 5\n")
    file.chmod(mode)
    with refused(Code.FAILED, "mistake"):
        route(file, "pi")


def test_a_folder_that_others_can_write(file: Path) -> None:
    file.write_text("Port 5\n")
    file.parent.chmod(0o777)
    with refused(Code.FAILED, "mistake"):
        route(file, "pi")


@pytest.mark.parametrize("body", ["exec cat /dev/zero", "exec sleep 600", "exit 3"])
def test_a_program_that_misbehaves_ends_in_bounded_time(
    file: Path, body: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usbipsshd.sshconfig, "LIMIT", 0.3)
    program = file.with_name("ssh")
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    with refused(Code.FAILED, "mistake"):
        route(file, "pi", "", program=program)


def test_without_an_ssh_client(file: Path) -> None:
    with refused(Code.FAILED, "ssh client"):
        route(file, "pi", "", program=file.with_name("none"))
