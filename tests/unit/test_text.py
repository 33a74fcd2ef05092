# SPDX-License-Identifier: GPL-3.0-or-later
"""Text from outside is harmless once it was cleaned."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usbipsshd.text import clean


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("", ""),
        ("  Flash\tDisk \n", "Flash Disk"),
        ("\x1b[31mred\x07", "[31mred"),
        ("a\u202egpj.exe", "agpj.exe"),
        ("a\u200bb\ufeff", "ab"),
        ("a\u2028b\x85c", "a b c"),
        ("\ud800\ue000\U0010ffff", ""),
        ("Größe 5 µm ™", "Größe 5 µm ™"),
        ("\x00" * 500 + "x", "x"),
    ],
)
def test_what_is_kept(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned


def test_a_limit_cuts_without_a_space_at_the_end() -> None:
    assert clean("ab cd", 3) == "ab"
    assert clean("x" * 1000) == "x" * 128


@settings(max_examples=150)
@given(st.text(alphabet=st.characters(), max_size=300), st.integers(1, 200))
def test_clean_text_is_short_printable_and_stays_as_it_is(text: str, limit: int) -> None:
    cleaned = clean(text, limit)
    assert len(cleaned) <= limit
    assert clean(cleaned, limit) == cleaned
    assert not {unicodedata.category(c)[0] for c in cleaned} & {"C"}
    assert cleaned == cleaned.strip()
    assert "\n" not in cleaned
