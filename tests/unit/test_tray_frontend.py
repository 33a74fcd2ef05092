# SPDX-License-Identifier: GPL-3.0-or-later
"""The icon's end, with toolkits that stumble over it."""

from __future__ import annotations

from typing import Any

import pytest

from usbipssh_tray.frontend import Frontend


class FakeIcon:
    """An icon whose toolkit fails at the end, as pystray's gtk without a notification server."""

    def __init__(self, *_arguments: Any, **_options: Any) -> None:
        pass

    def run(self) -> None:
        raise RuntimeError("no notification server")

    def stop(self) -> None:
        pass


@pytest.fixture
def frontend() -> Frontend:
    made = Frontend(lambda _action: None, lambda _path: None)
    made.make(FakeIcon, "")
    return made


def test_a_toolkit_that_fails_at_the_end_is_no_failure(frontend: Frontend) -> None:
    frontend.stop()
    frontend.run()


def test_one_that_fails_before_is(frontend: Frontend) -> None:
    with pytest.raises(RuntimeError):
        frontend.run()
