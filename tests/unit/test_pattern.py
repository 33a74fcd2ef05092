# SPDX-License-Identifier: GPL-3.0-or-later
"""What a person's pattern means."""

from __future__ import annotations

import re
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.made import KEYBOARD, STICK, refused

from usbipsshd.device import Device
from usbipsshd.errors import Code, UsbipError
from usbipsshd.pattern import MAX_PATTERN, Pattern, subject

ADAPTER = replace(
    STICK, busid="1-3.1", vendor_id=0x0403, product_id=0x6001, vendor="FTDI",
    product="FT232 USB [UART] a+b", serial="A50285BI", interfaces=(),
)  # fmt: skip
ALL = [KEYBOARD, ADAPTER, STICK]


def selected(text: str) -> list[str]:
    """The bus ids that a pattern selects; an expression is tried here, where it is a known one."""
    pattern = Pattern.parse(text)
    if not pattern.expression:
        return [d.busid for d in pattern.select(ALL)]

    def hit(device: Device) -> bool:
        return re.search(pattern.expression, subject(device)) is not None

    return [d.busid for d in ALL if hit(d) is not pattern.negated]


EVERY = ["1-1", "1-3.1", "2-2"]


@pytest.mark.parametrize(
    ("text", "busids"),
    [
        ("", EVERY),
        ("   ", EVERY),
        ("1-1", ["1-1"]),
        ("1-3.1", ["1-3.1"]),
        ("1-3", []),
        ("!1-1", ["1-3.1", "2-2"]),
        ("-1-1", ["1-3.1", "2-2"]),
        ("046d:c31c", ["1-1"]),
        ("46d:c31c", ["1-1"]),
        ("46D:C31C", ["1-1"]),
        ("00046d:0c31c", ["1-1"]),
        ("46f4:1", ["2-2"]),
        ("46f4:0001", ["2-2"]),
        ("!46f4:1", ["1-1", "1-3.1"]),
        ("403:6001", ["1-3.1"]),
        ("Logitech", ["1-1"]),
        ("  FT232  ", ["1-3.1"]),
        (" T232", []),
        ("FT23 ", []),
        ("logitech", []),
        ("(?i)logitech", ["1-1"]),
        ("!Logitech", ["1-3.1", "2-2"]),
        ("STICK0001", ["2-2"]),
        ("030101", ["1-1"]),
        ("^046d:", ["1-1"]),
        ("080650$", ["2-2"]),
        ("0[38]0", ["1-1", "2-2"]),
        ("!0[38]0", ["1-3.1"]),
        ("-0[38]0", ["1-3.1"]),
        ("Logitech USB", ["1-1"]),
        ("Logitech   USB", ["1-1"]),
        ("Logitech   U.B", ["1-1"]),
        ("FT232 USB", ["1-3.1"]),
        ("FT232  USB", ["1-3.1"]),
        ("FT232 U.B", ["1-3.1"]),
        (r"FT232\s+USB", ["1-3.1"]),
        (r"\[UART\] a\+b", ["1-3.1"]),
        ("a[+]b", ["1-3.1"]),
        ("Logitech *USB", ["1-1"]),
        ("Logitech ?USB", ["1-1"]),
        ("Logitech {1,3}USB", ["1-1"]),
        ("FT232 {2}USB", []),
        ("Logitech[] ]USB|FT232[] +]USB", ["1-1", "1-3.1"]),
        ("a[] ]b", []),
        ("Logi *tech", ["1-1"]),
        ("Logitech +USB", ["1-1"]),
        ("Logitech[ ]USB", ["1-1"]),
        ("Logitech[] ]USB", ["1-1"]),
        ("Logitech[^] ]USB", []),
        ("46d:c31c USB|UART", ["1-3.1"]),
        ("46d:c31c Logitech.*key|UART", ["1-3.1"]),
        ("46D:C31C Logitech.*Key", ["1-1"]),
        ("46f4:1 STICK", ["2-2"]),
        ("2-2|1-1", []),
        ("no such thing", []),
    ],
)
def test_patterns(text: str, busids: list[str]) -> None:
    assert selected(text) == busids


@pytest.mark.parametrize(
    "text",
    ["!", "-", "! ", "(", ")", "[", "*", "a{2,1}", "a\\", "(?P<x", r"(?<=a+)b",
     "a" * (MAX_PATTERN + 1),
     "a\nb", "\x00", "a\x7fb", "a\u202eb", "a{99999999999999999999}", "(?z)", "!("],
)  # fmt: skip
def test_what_is_no_pattern(text: str) -> None:
    with refused(Code.INVALID_ARGS):
        Pattern.parse(text)


@pytest.mark.parametrize(
    ("text", "every"), [("", True), ("  ", True), ("1-1", False), ("!x", False)]
)
def test_only_the_empty_pattern_is_any(text: str, every: bool) -> None:
    assert Pattern.parse(text).any is every


@pytest.mark.parametrize(
    "text",
    ["(?:(?:(?:a{1000}){1000}){1000}){1000}", "(" * 127 + ")" * 127, "(a+)+$", "x" * MAX_PATTERN,
     r"(?i)" + r"[\0-\U0010ffff]" * 15, "(?:a|b|" * 30 + ")" * 30, "[" * MAX_PATTERN],
    ids=lambda t: t[:12],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Possible nested set:FutureWarning")
def test_parsing_takes_no_time_whatever_the_pattern(text: str) -> None:
    # The processor's time: a busy machine takes its own.
    began = time.process_time()
    try:
        Pattern.parse(text)
    except UsbipError as error:
        assert error.code is Code.INVALID_ARGS
    assert time.process_time() - began < 1


@settings(max_examples=250)
@given(st.text(alphabet=r"ab1 :-!\()[]{}?*+|.^$,<=P0di", max_size=30) | st.text(max_size=30))
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_any_text_is_a_pattern_or_invalid(text: str) -> None:
    try:
        pattern = Pattern.parse(text)
    except UsbipError as error:
        assert error.code is Code.INVALID_ARGS
        return
    if pattern.expression:
        re.compile(pattern.expression)
    else:
        assert len(pattern.select(ALL)) <= len(ALL)


def test_what_an_expression_is_tried_on() -> None:
    assert subject(KEYBOARD) == "046d:c31c Logitech USB Keyboard 030101 030000"
