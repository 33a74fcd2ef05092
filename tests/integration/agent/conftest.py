# SPDX-License-Identifier: GPL-3.0-or-later
"""An agent for each shell, over a made-up kernel."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fakekernel import FakeKernel
from integration.agents import SHELLS, Agent


@pytest.fixture(scope="module")
def kernel() -> Iterator[FakeKernel]:
    with FakeKernel(modules=("usbip-host",)) as one:
        yield one


@pytest.fixture
def pi(kernel: FakeKernel) -> FakeKernel:
    """The exporting machine, with nothing plugged in."""
    kernel.reset()
    return kernel


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def agent(shell: str, pi: FakeKernel) -> Iterator[Agent]:
    """An agent; afterwards nothing may be left of it or of what it did."""
    one = Agent(shell, pi.root)
    try:
        yield one
        one.end()
        pi.check_clean()
        for device in pi.state()["devices"].values():
            assert device["driver"] == "usb"
    finally:
        one.discard()
