# SPDX-License-Identifier: GPL-3.0-or-later
"""What the dialogs accept and suggest."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from usbipssh_tray.dialogs.forms import (
    ADDRESS,
    NAME,
    AddRemote,
    mnemonic,
    paste_line,
    suggested_name,
)

TAKEN = frozenset({"pi"})


@pytest.mark.parametrize(
    ("name", "address", "field"),
    [
        ("bench", "bench3", None),
        ("bench", " lab@bench3:2222 ", None),
        ("bench", "[fe80::1]:22", None),
        ("bench", "", ADDRESS),
        ("bench", "-oProxyCommand=x", ADDRESS),
        ("bench", "lab@bench 3", ADDRESS),
        ("bench", "host:99999", ADDRESS),
        ("", "bench3", NAME),
        ("-x", "bench3", NAME),
        ("a b", "bench3", NAME),
        ("pi", "bench3", NAME),
    ],
)
def test_the_field_with_the_problem(name: str, address: str, field: str | None) -> None:
    problem = AddRemote(name, address).problem(TAKEN)
    assert (problem and problem.field) == field
    assert problem is None or problem.sentence.endswith((".", "?"))


def test_the_answer_is_what_was_typed() -> None:
    form = AddRemote.shown({"name": " bench ", "address": " lab@b3 ", "sudo": True, "label": "B"})
    assert form.answer() == {"name": "bench", "address": "lab@b3", "sudo": True, "label": "B"}
    assert AddRemote.shown({}).answer()["sudo"] is False


def test_who_is_not_root_needs_sudo() -> None:
    assert "sudo" in AddRemote(address="lab@bench3").hint()
    assert AddRemote(address="lab@bench3", sudo=True).hint() == ""
    assert AddRemote(address="bench3").hint() == ""
    assert AddRemote(address="lab@").hint() == ""


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("lab@bench3.example.org:22", "bench3"),
        ("pi", "pi-2"),
        ("192.0.2.7", "192.0.2.7"),
        ("[2001:db8::1]", "2001-db8--1"),
        ("", ""),
        ("@", ""),
    ],
)
def test_a_name_is_suggested(address: str, name: str) -> None:
    assert suggested_name(address, TAKEN) == name


def test_the_line_to_paste_adds_the_key(tmp_path: Path) -> None:
    keys = ["ssh-ed25519 AAAA usbipsshd@desk", "ssh-ed25519 BBBB it's; $(touch x)"]
    for key in keys:
        subprocess.run(
            ["sh", "-c", paste_line(key)], env={"HOME": str(tmp_path)}, cwd=tmp_path, check=True
        )
    assert (tmp_path / ".ssh/authorized_keys").read_text().splitlines() == keys
    assert [path.name for path in tmp_path.iterdir()] == [".ssh"]
    assert shlex.split(paste_line(keys[0]))[:3] == ["mkdir", "-p", "~/.ssh"]


@pytest.mark.parametrize(
    ("words", "shown"), [("&Add", ("Add", 0)), ("A&dd", ("Add", 1)), ("Add", ("Add", -1))]
)
def test_mnemonics(words: str, shown: tuple[str, int]) -> None:
    assert mnemonic(words) == shown
