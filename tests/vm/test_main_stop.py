# SPDX-License-Identifier: GPL-3.0-or-later
"""Stopping the daemon gives everything back; so does its end for good, and its removal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from vm.faults import eventually
from vm.test_main_liar import held
from vm.testbed import images
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
        eventually(lambda: desk.run(*show).strip() == "success", 30, "it ends")
    # A new one knows of nothing that is left to do.
    path = desk.attach("alice", BUSIDS["stick"])
    assert desk.detach("alice", path) == 1
    assert held(desk) == {"1"}


def test_removing_the_package_after_the_daemon_was_killed(machines: Pair) -> None:
    desk = machines.desk
    package = images.project_package()
    assert package is not None
    desk.run("sh", "-c", "cat > /run/testbed.deb", data=package.read_bytes())
    desk.attach("alice", BUSIDS["stick"])
    # So that nobody but the package is left to do it.
    desk.run("systemctl", "mask", "--runtime", LET_GO)
    with not_restarted(desk):
        desk.run("systemctl", "kill", "--signal=KILL", "usbipsshd.service")
        eventually(lambda: machines.devices_left() == [], 90, "the session gives its device back")
        assert held(desk) == {"0", "1"}
        desk.run("dpkg", "--remove", "usbipsshd", timeout=300)
        try:
            assert held(desk) == {"1"}
        finally:
            desk.run("dpkg", "--install", "/run/testbed.deb", timeout=300)
            desk.run("systemctl", "unmask", "--runtime", LET_GO)
    assert desk.list_remote("alice", "pi")
