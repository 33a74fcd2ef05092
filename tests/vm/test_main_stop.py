# SPDX-License-Identifier: GPL-3.0-or-later
"""Stopping the daemon gives everything back."""

from __future__ import annotations

import pytest
from vm.testbed.pair import Pair
from vm.testbed.pi import BUSIDS

pytestmark = pytest.mark.usefixtures("listed")


def test_stopping_the_service_gives_everything_back(machines: Pair) -> None:
    pi, desk = machines.pi, machines.desk
    desk.attach("alice", BUSIDS["stick"])
    desk.attach("alice", BUSIDS["keyboard"])
    assert len(desk.taken_ports()) == 2
    desk.run("systemctl", "stop", "usbipsshd", timeout=90)
    assert machines.devices_left() == []
    assert pi.interface_drivers(BUSIDS["stick"]) == {"2-2:1.0": "usb-storage"}
    assert pi.interface_drivers(BUSIDS["keyboard"]) == {"1-1:1.0": "usbhid"}
    show = ("systemctl", "show", "--value", "-p", "ActiveState", "-p", "Result", "usbipsshd")
    assert desk.run(*show).split() == ["success", "inactive"]
    assert machines.settled(pi.agents_left) == []
    # The next call finds a daemon that knows what it knew.
    assert desk.objects("bob").keys() == {"/org/usbipssh1/remote/pi"}
