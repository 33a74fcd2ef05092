# SPDX-License-Identifier: GPL-3.0-or-later
"""Every failure of a session becomes one sentence, whatever the session says."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usbipsshd.errors import Code
from usbipsshd.explain import explain

PRINT = "SHA256:" + "aB3+/" * 8 + "xyz"


@pytest.mark.parametrize("code", Code)
def test_every_code_has_a_sentence(code: Code) -> None:
    error = explain("Bench3", code)
    assert error.message[0].isupper()
    assert error.message.endswith(".")
    assert "{" not in error.message
    assert "()" not in error.message
    assert error.code in {code, Code.FAILED}


@pytest.mark.parametrize(
    ("code", "detail", "shown"),
    [
        (Code.CONNECTION_FAILED, "connection refused", True),
        (Code.DEVICE_BUSY, "/mnt/stick is in use", True),
        (Code.HOST_KEY_UNKNOWN, PRINT, True),
        (Code.HOST_KEY_MISMATCH, PRINT, True),
        (Code.HOST_KEY_UNKNOWN, "trust me", False),
        (Code.SSH_AUTH_FAILED, "anything", False),
        (Code.DEVICE_BUSY, "<b>run this</b>", False),
        (Code.DEVICE_BUSY, "`reboot`", False),
        (Code.DEVICE_BUSY, "{remote.__class__}", False),
        (Code.DEVICE_BUSY, "$(x)", False),
    ],
)
def test_which_details_are_shown(code: Code, detail: str, shown: bool) -> None:
    error = explain("bench3", code, detail)
    assert (detail in error.message) is shown
    assert error.code is code


def test_the_remote_is_named() -> None:
    assert "bench3" in explain("bench3", Code.DEVICE_NOT_FOUND).message
    assert "bench3" in explain("bench3", Code.UNKNOWN_OBJECT, "x").message


@settings(max_examples=120)
@given(st.sampled_from(Code), st.text(max_size=400))
def test_any_detail_leaves_one_printable_bounded_sentence(code: Code, detail: str) -> None:
    message = explain("pi", code, detail).message
    assert message.isprintable()
    assert len(message) < 450
    assert message.endswith(".")
