# SPDX-License-Identifier: GPL-3.0-or-later
"""The options of every method: a typo must never weaken anything."""

from __future__ import annotations

import pytest
from unit.made import refused

from usbipsshd.bus.values import Variant, options
from usbipsshd.errors import Code

KNOWN = {"unmount": "b", "expect-vendor-id": "q", "label": "s"}


def test_known_options_of_the_right_type() -> None:
    given = {"unmount": Variant("b", False), "expect-vendor-id": Variant("q", 0x46D)}
    assert options(given, KNOWN) == {"unmount": False, "expect-vendor-id": 0x46D}
    assert options({}, KNOWN) == {}
    assert options({}, {}) == {}


@pytest.mark.parametrize(
    "given",
    [
        {"unmont": Variant("b", False)},
        {"Unmount": Variant("b", False)},
        {"": Variant("b", False)},
        {"unmount": Variant("b", False), "x": Variant("s", "")},
        {"unmount\x00": Variant("b", True)},
    ],
)
def test_an_unknown_option_is_refused_and_not_echoed(given: dict[str, Variant]) -> None:
    with refused(Code.INVALID_ARGS, "expect-vendor-id, label, unmount"):
        options(given, KNOWN)
    with refused(Code.INVALID_ARGS, "none"):
        options(given, {})


@pytest.mark.parametrize(
    "variant",
    [
        Variant("s", "false"),
        Variant("i", 0),
        Variant("y", 1),
        Variant("v", Variant("b", True)),
        True,
        None,
    ],
)
def test_an_option_of_the_wrong_type_is_refused(variant: object) -> None:
    with refused(Code.INVALID_ARGS, "unmount"):
        options({"unmount": variant}, KNOWN)


@pytest.mark.parametrize("given", [None, [], "unmount", 1, [("unmount", Variant("b", True))]])
def test_what_is_no_dictionary(given: object) -> None:
    with refused(Code.INVALID_ARGS):
        options(given, KNOWN)
