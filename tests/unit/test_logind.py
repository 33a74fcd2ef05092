# SPDX-License-Identifier: GPL-3.0-or-later
"""How long a sleep may be delayed, whatever logind says."""

from __future__ import annotations

import pytest

from usbipsshd.bus.logind import allowed
from usbipsshd.bus.values import Variant


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        pytest.param(Variant("t", 5_000_000), 4.5, id="as ever"),
        pytest.param(Variant("t", 60_000_000), 54.0, id="somebody allows more"),
        pytest.param(Variant("t", 2**64 - 1), 270.0, id="for ever"),
        pytest.param(Variant("t", 0), 4.5, id="nothing"),
        pytest.param(Variant("s", "5s"), 4.5, id="another type"),
        pytest.param(None, 4.5, id="it does not say"),
    ],
)
def test_allowed(said: object, seconds: float) -> None:
    assert allowed(said) == seconds
