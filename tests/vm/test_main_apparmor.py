# SPDX-License-Identifier: GPL-3.0-or-later
"""AppArmor's profiles, enforced: everything works in them, and hostile code gets no further."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from vm.faults import eventually
from vm.test_main_ways import test_a_stick_comes_by_way_of_a_command as by_way_of_a_command
from vm.testbed.desk import Desk
from vm.testbed.pair import Pair
from vm.testbed.pi import BUSIDS, Pi

pytestmark = pytest.mark.usefixtures("listed", "confined")

# What each profile must keep from happening by itself: there is no unit's sandbox around this.
_HOSTILE = """
import json, os, signal, socket, subprocess

def reached(what):
    try:
        what()
    except OSError:
        return False
    return True

def connect(family, address):
    with socket.socket(family) as sock:
        sock.settimeout(10)
        sock.connect(address)

print(json.dumps({
    "read shadow": reached(lambda: open("/etc/shadow").close()),
    "read a host key": reached(lambda: open("/etc/ssh/ssh_host_ed25519_key").close()),
    "write to etc": reached(lambda: open("/etc/hostile", "w").close()),
    "write to tmp": reached(lambda: open("/var/tmp/hostile", "w").close()),
    "read the disk": reached(lambda: open("/dev/vda", "rb").close()),
    "trace init": reached(lambda: open("/proc/1/environ").close()),
    "signal init": reached(lambda: os.kill(1, signal.SIGCONT)),
    "run from tmp": reached(lambda: subprocess.run(["/var/tmp/for-hostile"])),
    "read the daemon's key": reached(lambda: open("/var/lib/usbipsshd/id_ed25519").close()),
    "write to sysfs": reached(lambda: open("/sys/bus/usb/drivers_probe", "w").close()),
    "network": reached(lambda: connect(socket.AF_INET, ("pi", 22))),
}))
"""


@pytest.fixture(scope="module")
def confined(machines: Pair, listed: None) -> Iterator[None]:
    """The profiles are enforced."""
    with machines.desk.confined():
        yield


def profiles(desk: Desk) -> set[str]:
    """The profiles of the daemon and its sessions."""
    script = (
        "for p in $(systemctl show -P MainPID usbipsshd) $(pgrep -u usbipssh); do"
        " cat /proc/$p/attr/current; done"
    )
    return set(desk.shell(script).splitlines())


def test_everything_works_and_nothing_is_denied(pi: Pi, desk: Desk) -> None:
    since = len(desk.console_text())
    assert {d["busid"] for d in desk.list_remote("alice", "pi")} >= {"1-1", "2-2"}
    # An expression is tried by a process of its own.
    assert [d["busid"] for d in desk.list_remote("alice", "pi", "QEMU.*HARD")] == ["2-2"]
    stick = desk.attach("alice", "46f4:1", keep=True)
    disk = next(n for n in desk.attachment(stick)["DeviceNodes"] if n.startswith("/dev/sd"))
    assert desk.run("head", "-c", "1000", disk, timeout=120)
    keyboard = desk.attach("alice", BUSIDS["keyboard"])
    told = profiles(desk)
    assert told == {"usbipsshd (enforce)", "usbipssh-session (enforce)"}
    desk.run("systemctl", "restart", "usbipsshd", timeout=120)
    desk.run("systemctl", "kill", "-s", "KILL", "usbipsshd")
    eventually(lambda: {stick, keyboard} <= set(desk.objects()), 90, "both are taken over")
    assert profiles(desk) == told
    assert desk.detach("alice", "all") == 2
    assert desk.denied(since) == []


def test_a_proxy_command_works_and_nothing_is_denied(pi: Pi, desk: Desk) -> None:
    since = len(desk.console_text())
    by_way_of_a_command(pi, desk)
    assert desk.denied(since) == []


@pytest.mark.parametrize(
    ("profile", "allowed"),
    [
        ("usbipsshd", {"read the daemon's key", "write to sysfs"}),
        ("usbipssh-session", {"network"}),
    ],
)
def test_hostile_code_gets_no_further(desk: Desk, profile: str, allowed: set[str]) -> None:
    desk.shell("cp /usr/bin/true /var/tmp/for-hostile")
    try:
        free = json.loads(desk.run("python3", "-c", _HOSTILE))
        desk.run("rm", "-f", "/etc/hostile", "/var/tmp/hostile")
        said = desk.run("aa-exec", "-p", profile, "--", "python3", "-c", _HOSTILE)
    finally:
        desk.run("rm", "-f", "/var/tmp/for-hostile", "/etc/hostile", "/var/tmp/hostile")
    assert [name for name, reached in free.items() if not reached] == []
    assert {name for name, reached in json.loads(said).items() if reached} == allowed
