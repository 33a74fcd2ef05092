# SPDX-License-Identifier: GPL-3.0-or-later
"""The daemon, or what it needs, goes away while a file is written: nothing is unplugged."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

import pytest
from vm.faults import PERSON, STICK, Identity, Scene
from vm.testbed import images
from vm.testbed.desk import Desk

from usbipsshd.journal import Happening

# Shuts the daemon's connection to the bus down, as if dbus-daemon had closed it.
_CUT_BUS = """
import ctypes, errno, os, socket, sys
pid = int(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
own = os.pidfd_open(pid)
for name in os.listdir(f"/proc/{pid}/fd"):
    try:
        if not os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:"):
            continue
    except FileNotFoundError:
        continue  # It was closed meanwhile; the one that is meant is open all the time.
    fd = libc.syscall(438, own, int(name), 0)  # pidfd_getfd
    if fd < 0 and ctypes.get_errno() == errno.EBADF:
        continue
    if fd < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")
    with socket.socket(fileno=fd) as sock:
        try:
            peer = sock.getpeername()
        except OSError:
            continue
        if sock.family == socket.AF_UNIX and "dbus" in str(peer):
            sock.shutdown(socket.SHUT_RDWR)
            print("cut")
"""


def _pid(desk: Desk) -> str:
    return desk.run("systemctl", "show", "-P", "MainPID", "usbipsshd.service").strip()


def _kill(desk: Desk) -> None:
    desk.run("kill", "-9", _pid(desk))


def _cut_bus(desk: Desk) -> None:
    assert desk.run("python3", "-c", _CUT_BUS, _pid(desk)) == "cut\n"


def _restart(desk: Desk) -> None:
    desk.run("systemctl", "restart", "--no-block", "usbipsshd.service")


def _upgrade(desk: Desk) -> None:
    package = images.project_package()
    assert package is not None
    desk.run("sh", "-c", "cat > /run/testbed.deb", data=package.read_bytes())
    desk.run("dpkg", "-i", "/run/testbed.deb", timeout=300)


@pytest.mark.parametrize(
    ("fault", "happen"),
    [
        ("daemon killed (SIGKILL)", _kill),
        ("daemon restarted", _restart),
        ("package upgraded", _upgrade),
        ("connection to the message bus lost", _cut_bus),
    ],
    ids=["killed", "restarted", "upgraded", "bus"],
)
def test_nothing_is_unplugged(
    fault: str,
    happen: Callable[[Desk], None],
    scene: Scene,
) -> None:
    desk, stick, log = scene.desk, scene.stick, scene.log
    attachment = desk.attach(PERSON, STICK, keep=True)
    # With its disk, which may come after all else.
    stick.node(attachment)
    identity = Identity(desk, attachment)
    pid = _pid(desk)
    with stick.written(attachment), scene.times.row(fault) as row:
        begun = monotonic()
        happen(desk)
        log.wait("still attached", since=begun, seconds=120)
        row.usable = log.wait("ready on", since=begun, seconds=120) - begun
        assert _pid(desk) != pid
        identity.check()
        stick.goes_on()
        assert not log.has(Happening.LOST, since=begun)
        row.outcome = "nothing is unplugged, no write fails"
    assert desk.detach(PERSON, attachment) == 1
