# SPDX-License-Identifier: GPL-3.0-or-later
"""The package is removed after the daemon was killed: there is none any more that would tidy up."""

from __future__ import annotations

import pytest
from vm.faults import eventually
from vm.test_main_liar import held
from vm.test_main_stop import LET_GO, not_restarted
from vm.testbed import images
from vm.testbed.pair import Pair
from vm.testbed.pi import BUSIDS

pytestmark = [pytest.mark.usefixtures("listed"), pytest.mark.long]


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
