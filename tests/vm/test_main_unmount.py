# SPDX-License-Identifier: GPL-3.0-or-later
"""What pi has made of a stick is taken down before the stick is handed over, or left as it was."""

from __future__ import annotations

import pytest
from vm.faults import eventually
from vm.inuse import FIRST, TEXT, USES, busy, in_use
from vm.testbed.desk import BUS_NAME, CallFailed, Desk
from vm.testbed.pi import BLANK, Pi

pytestmark = pytest.mark.usefixtures("listed")


def _refused(desk: Desk, *, unmount: bool) -> str:
    with pytest.raises(CallFailed) as refused:
        desk.attach("alice", BLANK, unmount=unmount)
    assert refused.value.name == f"{BUS_NAME}.Error.DeviceBusy"
    return refused.value.message


@pytest.mark.parametrize("name", USES)
def test_what_is_in_use(pi: Pi, desk: Desk, name: str) -> None:
    use = USES[name]
    with pi.blank_stick(use.begins_with), in_use(pi, BLANK, use) as stick:
        before = stick.look()
        assert FIRST in before
        # Not wished.
        assert "mounted" in _refused(desk, unmount=False)
        assert stick.look() == before
        # Somebody is in it.
        with busy(pi, FIRST) as who:
            assert who in _refused(desk, unmount=True)
            assert stick.look() == before
        assert pi.interface_drivers(BLANK) == {f"{BLANK}:1.0": "usb-storage"}
        # Nobody is in it any more.
        path = desk.attach("alice", BLANK)
        assert desk.node(path)
        assert FIRST not in pi.run("cat", "/proc/self/mountinfo")
        assert desk.detach("alice", path) == 1
        assert stick.again() == TEXT


def test_mounted_by_udisks(pi: Pi, desk: Desk) -> None:
    """udisks is told, so that it removes the folder that it has made."""
    with pi.blank_stick() as node, pi.udisks():
        pi.run("mke2fs", "-q", "-F", "-t", "ext4", "-L", "holiday", node)
        # What udev has found is not yet what udisks knows.
        known = ("udisksctl", "info", "-b", node)
        eventually(lambda: "ext4" in pi.ssh.attempt(*known).out, 60, "udisks knows what is on it")
        pi.run("udisksctl", "mount", "--no-user-interaction", "-b", node, timeout=120)
        folder = pi.run("findmnt", "-n", "-o", "TARGET", node).strip()
        assert folder.startswith(("/media/", "/run/media/"))
        path = desk.attach("alice", BLANK)
        eventually(lambda: pi.ssh.attempt("test", "-e", folder).code == 1, 60, "its folder goes")
        assert desk.detach("alice", path) == 1
