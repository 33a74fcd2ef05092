# SPDX-License-Identifier: GPL-3.0-or-later
"""A test that fails shows what its daemon wrote, also where many tests share one."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
from integration.world import World

_LINES = 60


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, None]:
    outcome = yield
    report: pytest.TestReport = outcome.get_result()
    if report.when != "call" or not report.failed:
        return
    values: list[object] = list(getattr(item, "funcargs", {}).values())
    for log in {world.log() for world in values if isinstance(world, World)}:
        text = "\n".join(log.splitlines()[-_LINES:])
        report.sections.append(("the end of the daemon's log", text))
