# SPDX-License-Identifier: GPL-3.0-or-later
"""What is made of what ``ssh -G`` prints, and what is not followed."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from pytest import LogCaptureFixture
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


def include(file: Path, line: str, text: str = "Port 7\n") -> Path:
    """A file that is included by ``line``, in which {} is its name."""
    folder = file.parent / "more"
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)
    included = folder / "a.conf"
    included.write_text(text)
    included.chmod(0o644)
    file.write_text(line.format(included) + "\n")
    file.chmod(0o644)
    return included


INCLUDES = (
    "Include {}", "include {}", "  INCLUDE   {}", "Include={}", "Include = {}", 'Include "{}"',
    "Include /nonexistent/*.conf {}", "Host pi\n Include {}",
)  # fmt: skip


@pytest.mark.parametrize("line", INCLUDES)
def test_what_is_included_is_root_s_alone_too(file: Path, line: str) -> None:
    included = include(file, line)
    assert route(file, "pi").last.port == 7
    for wrong in (included, included.parent):
        before = wrong.stat().st_mode
        wrong.chmod(before | 0o002)
        with refused(Code.FAILED, "mistake"):
            route(file, "pi")
        wrong.chmod(before)
        os.chown(wrong, 61001, -1)
        with refused(Code.FAILED, "mistake"):
            route(file, "pi")
        os.chown(wrong, 0, -1)
    assert route(file, "pi").last.port == 7


def test_an_include_of_an_include_and_a_pattern(file: Path, caplog: LogCaptureFixture) -> None:
    inner = include(file, "Include {}")
    middle = inner.with_name("b.conf")
    middle.write_text(f"Include {inner.parent}/a*.conf\n")
    file.write_text(f"Include {middle}\n")
    assert route(file, "pi").last.port == 7
    inner.chmod(0o666)
    with refused(Code.FAILED, "mistake"):
        route(file, "pi")
    assert f"{inner}: others than root can write to it" in caplog.text


def test_a_link_to_what_somebody_else_could_change(file: Path) -> None:
    inner = include(file, "")
    elsewhere = file.parent / "elsewhere"
    elsewhere.mkdir()
    inner.rename(elsewhere / "x")
    inner.symlink_to(elsewhere / "x")
    file.write_text(f"Include {inner}\n")
    assert route(file, "pi").last.port == 7
    elsewhere.chmod(0o777)
    with refused(Code.FAILED, "mistake"):
        route(file, "pi")


@pytest.mark.parametrize(
    "line", ["Include $HOME/{}", "Include %d/x", 'Include "{}', "Include ~x/y", "Include /**"]
)
def test_an_include_that_cannot_be_looked_at(file: Path, line: str) -> None:
    include(file, line)
    with refused(Code.FAILED, "mistake"):
        route(file, "pi")


def test_includes_in_a_circle_end(file: Path) -> None:
    include(file, "Include {}", text=f"Include {file}\n")
    with refused(Code.FAILED, "mistake"):
        route(file, "pi")
