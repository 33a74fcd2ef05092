# SPDX-License-Identifier: GPL-3.0-or-later
"""What was once found, or is as it should be, and what is a little different from that."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzz.targets import LONGEST, NAMES, Target, targets
from hypothesis import given, settings
from hypothesis import strategies as st

CORPUS = Path(__file__).with_name("corpus")
FILES = sorted(CORPUS.glob("*/*"))


@pytest.fixture(scope="module")
def known() -> Iterator[dict[str, Target]]:
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="usbipsshd-fuzz.") as folder:
        yield targets(Path(folder))
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_is_kept(known: dict[str, Target], path: Path) -> None:
    known[path.parent.name](path.read_bytes())


def _samples(name: str) -> list[bytes]:
    samples = [path.read_bytes() for path in FILES if path.parent.name == name]
    assert samples, f"nothing to start from: tests/fuzz/corpus/{name}"
    return samples


@st.composite
def _changed(draw: st.DrawFn, samples: list[bytes]) -> bytes:
    """A sample with some parts replaced by others' parts, or by anything."""
    data = draw(st.sampled_from(samples))
    for _ in range(draw(st.integers(0, 4))):
        begin, end = sorted(draw(st.tuples(*[st.integers(0, len(data))] * 2)))
        other = draw(st.sampled_from(samples))
        part = draw(st.binary(max_size=12) | st.just(other[begin:end]) | st.just(data[begin:] * 2))
        data = (data[:begin] + part + data[end:])[:LONGEST]
    return data


@pytest.mark.parametrize("name", NAMES)
def test_what_is_nearly_right(known: dict[str, Target], name: str) -> None:
    target = known[name]

    @settings(max_examples=150)
    @given(_changed(_samples(name)) | st.binary(max_size=64))
    def look(data: bytes) -> None:
        target(data)

    look()
