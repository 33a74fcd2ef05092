# SPDX-License-Identifier: GPL-3.0-or-later
"""What all tests share: where helpers are found, which examples are tried, and that nothing is
skipped unseen."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

_TESTS = Path(__file__).resolve().parent
for _folder in (_TESTS, _TESTS.parent):
    if str(_folder) not in sys.path:
        sys.path.insert(0, str(_folder))

# The same examples each time, however busy the machine; elsewhere is where `make fuzz` looks.
settings.register_profile(
    "same",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("same")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--strict-no-skip",
        action="store_true",
        help="a test that is skipped or expected to fail makes the run fail",
    )


class _NoSkip:
    """Notes what was skipped, and turns a green run with skips red."""

    def __init__(self) -> None:
        self.skipped: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped or hasattr(report, "wasxfail"):
            self.skipped.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped:
            self.skipped.append(report.nodeid)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.skipped and session.exitstatus == 0:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        for name in self.skipped:
            terminalreporter.write_line(f"NOT RUN, and every test must run: {name}", red=True)


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--strict-no-skip"):
        config.pluginmanager.register(_NoSkip(), "strict-no-skip")
