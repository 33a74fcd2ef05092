# SPDX-License-Identifier: GPL-3.0-or-later
"""How long is waited: longer each time, never all at once, and from the bottom after good news."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from usbipsshd.backoff import GOOD_RUN, Backoff


def test_from_half_a_second_to_a_minute() -> None:
    backoff = Backoff(random=lambda: 0.0)
    assert [backoff.next() for _ in range(10)] == [0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60]


@pytest.mark.parametrize("chance", [0.0, 0.3, 0.999999])
def test_jitter_only_shortens(chance: float) -> None:
    backoff, plain = Backoff(random=lambda: chance), Backoff(random=lambda: 0.0)
    for _ in range(10):
        longest = plain.next()
        assert 0.75 * longest <= backoff.next() <= longest


def test_two_of_them_differ() -> None:
    one, other = Backoff(), Backoff()
    assert [one.next() for _ in range(8)] != [other.next() for _ in range(8)]


def test_the_bottom_again() -> None:
    backoff = Backoff(random=lambda: 0.0)
    ends: tuple[Callable[[], None], ...] = (lambda: backoff.ran(GOOD_RUN), backoff.reset)
    for end in ends:
        assert [backoff.next() for _ in range(3)] == [0.5, 1, 2]
        backoff.ran(GOOD_RUN - 0.1)
        assert backoff.next() == 4
        end()
    assert backoff.next() == 0.5
