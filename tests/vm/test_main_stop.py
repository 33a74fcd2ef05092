# SPDX-License-Identifier: GPL-3.0-or-later
"""Stopping the daemon gives everything back; so does its end for good."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from vm.faults import eventually
from vm.test_main_liar import held
from vm.testbed.desk import Desk
from vm.testbed.pair import Pair
from vm.testbed.pi import BUSIDS

pytestmark = pytest.mark.usefixtures("listed")

DROP_IN = "/run/systemd/system/usbipsshd.service.d"
LET_GO = "usbipsshd-let-go.service"


@contextmanager
def not_restarted(desk: Desk) -> Iterator[None]:
    """systemd leaves a daemon that was killed alone, as it does after the last try."""
    desk.shell(
        'mkdir -p "$1"; printf "[Service]\\nRestart=no\\n" >"$1"/testbed.conf;'
        " systemctl daemon-reload",
        DROP_IN,
    )
    try:
        yield
    finally:
        desk.shell(
            'rm -r "$1"; systemctl daemon-reload; systemctl reset-failed "usbipsshd*"', DROP_IN
        )


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


def test_a_daemon_that_has_failed_for_good_leaves_no_bus_held(machines: Pair) -> None:
    desk = machines.desk
    desk.attach("alice", BUSIDS["stick"])
    assert held(desk) == {"0", "1"}
    with not_restarted(desk):
        desk.run("systemctl", "kill", "--signal=KILL", "usbipsshd.service")
        eventually(lambda: machines.devices_left() == [], 90, "the session gives its device back")
        eventually(lambda: held(desk) == {"1"}, 90, "the bus is let go")
        show = ("systemctl", "show", "--value", "-p", "Result", LET_GO)
        eventually(lambda: desk.run(*show).strip() == "success", 60, "it ends")
    # A new one starts all the same, and knows of nothing that is left to do.
    assert desk.objects("bob").keys() == {"/org/usbipssh1/remote/pi"}
    assert held(desk) == {"1"}
