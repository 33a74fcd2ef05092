# SPDX-License-Identifier: GPL-3.0-or-later
"""AppArmor's profiles, enforced: everything works in them, and hostile code gets no further."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from vm.exports import PORT, SERIAL, busid_of, disk, export
from vm.faults import eventually
from vm.inuse import FIRST, TEXT, USES, busy, in_use
from vm.test_main_ways import test_a_stick_comes_by_way_of_a_command as by_way_of_a_command
from vm.testbed.desk import CallFailed, Desk
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
        sock.settimeout(30)
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


# The same for the agent, whose profile has no Python: prints what was reached.
_HOSTILE_SHELL = """
try() { name=$1; shift; "$@" >/dev/null 2>&1 && echo "$name"; }
opens() { ( : <"$1" ); }
writes() { ( : >>"$1" ); }
try 'read shadow' opens /etc/shadow
try 'read a host key' opens /etc/ssh/ssh_host_ed25519_key
try "read the daemon's key" opens /var/lib/usbipsshd/id_ed25519
try 'read a home' opens /root/.ssh/authorized_keys
try 'read the disk' opens /dev/vda
try 'read what init was told' opens /proc/1/environ
try 'write to etc' writes /etc/hostile
try 'write to tmp' writes /var/tmp/hostile
try 'set the kernel' writes /proc/sys/kernel/core_pattern
try 'suspend' writes /sys/power/state
try 'signal init' kill -s CONT 1
try 'run from tmp' /var/tmp/for-hostile
try 'run an interpreter' python3 -c ''
try 'ask systemd' systemctl show -P Version
try 'mount a folder' mount --bind /etc /mnt
try 'mount memory' mount -t tmpfs none /mnt
try 'probe drivers' writes /sys/bus/usb/drivers_probe
try 'see who uses a file' ls /proc/1/fd
"""


@pytest.fixture(scope="module")
def confined(machines: Pair, listed: None) -> Iterator[None]:
    """The profiles are enforced."""
    with machines.desk.confined():
        yield


def profiles(desk: Desk) -> set[str]:
    """The profiles of the daemon and its sessions."""
    script = (
        "for p in $(systemctl show -P MainPID usbipsshd 'usbipssh-here@*') $(pgrep -u usbipssh); do"
        " cat /proc/$p/attr/current 2>/dev/null; done; :"
    )
    return set(desk.shell(script).splitlines())


def test_everything_works_and_nothing_is_denied(pi: Pi, desk: Desk) -> None:
    since = len(desk.console_text())
    assert {d["busid"] for d in desk.list_remote("alice", "pi")} >= {"1-1", "2-2"}
    # An expression is tried by a process of its own.
    assert [d["busid"] for d in desk.list_remote("alice", "pi", "QEMU.*HARD")] == ["2-2"]
    stick = desk.attach("alice", "46f4:1", keep=True)
    assert desk.run("head", "-c", "1000", desk.node(stick), timeout=120)
    keyboard = desk.attach("alice", BUSIDS["keyboard"])
    told = profiles(desk)
    assert told == {"usbipsshd (enforce)", "usbipssh-session (enforce)"}
    desk.run("systemctl", "restart", "usbipsshd", timeout=120)
    desk.run("systemctl", "kill", "-s", "KILL", "usbipsshd")

    def are_taken_over() -> bool:
        try:
            return {stick, keyboard} <= set(desk.objects())
        except CallFailed:
            # Asked of the one that is ending.
            return False

    eventually(are_taken_over, 90, "both are taken over")
    assert profiles(desk) == told
    assert desk.detach("alice", "all") == 2
    assert desk.denied(since) == []


def test_a_proxy_command_works_and_nothing_is_denied(pi: Pi, desk: Desk) -> None:
    since = len(desk.console_text())
    by_way_of_a_command(pi, desk)
    assert desk.denied(since) == []


def test_an_export_works_and_nothing_is_denied(pi: Pi, desk: Desk) -> None:
    since = len(desk.console_text())
    with desk.spare_stick(SERIAL, PORT):
        stick = busid_of(desk)
        path = export(desk, SERIAL)
        assert profiles(desk) == {
            "usbipsshd (enforce)", "usbipssh-session (enforce)", "usbipssh-here (enforce)",
        }  # fmt: skip
        assert pi.run("head", "-c", "512", disk(desk, path), timeout=60)
        assert desk.detach("alice", stick) == 1
        mounted_it_is_had_or_put_back(desk, stick)
    assert desk.denied(since) == []


@pytest.mark.parametrize("name", USES)
def test_what_is_in_use_is_taken_down_and_nothing_is_denied(desk: Desk, name: str) -> None:
    """The agent here does in its cage what an agent on a remote does, which has none."""
    use = USES[name]
    since = len(desk.console_text())
    with (
        desk.spare_stick(SERIAL, PORT, use.begins_with),
        in_use(desk, busid_of(desk), use) as stick,
    ):
        before = stick.look()
        assert FIRST in before
        with busy(desk, FIRST) as who:
            with pytest.raises(CallFailed) as refused:
                export(desk, SERIAL)
            assert refused.value.name.endswith("DeviceBusy")
            assert who in refused.value.message
            assert stick.look() == before
        path = export(desk, SERIAL)
        assert FIRST not in desk.run("cat", "/proc/self/mountinfo")
        assert desk.detach("alice", path) == 1
        assert stick.again() == TEXT
    assert desk.denied(since) == []


def mounted_it_is_had_or_put_back(desk: Desk, stick: str) -> None:
    """What is on it is taken down; where something is in the way, what was is put back."""
    folder = "/mnt/testbed"
    use = """
        mke2fs -q -F -t ext4 "$1"; mkdir -p "$2/one" "$2/two" "$2/three"; cd "$2"
        mount "$1" one; truncate -s 8M one/image; mke2fs -q -F -t ext4 one/image
        mount "$1" two; mount -o loop one/image three
        # Nobody's process, and not on the device: only the kernel knows that it is in use.
        mkdir one/in; mount -t tmpfs none one/in"""
    desk.shell(f"set -e{use}", desk.disk_of(stick), folder, timeout=120)
    mounts = 'grep -F " $1" /proc/self/mountinfo | cut -d" " -f4-5 | sort'
    before = desk.shell(mounts, folder)
    assert len(before.splitlines()) == 4
    try:
        with pytest.raises(CallFailed) as busy:
            export(desk, SERIAL)
        assert busy.value.name.endswith("DeviceBusy")
        assert desk.shell(mounts, folder) == before
        desk.run("umount", f"{folder}/one/in")
        path = export(desk, SERIAL)
        assert desk.shell(mounts, folder) == ""
        assert desk.detach("alice", path) == 1
    finally:
        desk.shell('cd "$1"; umount -q three two one/in one; cd /; rm -r "$1"', folder)


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


def test_hostile_code_in_the_agent_gets_no_further(desk: Desk) -> None:
    desk.shell("cp /usr/bin/true /var/tmp/for-hostile; touch /root/.ssh/authorized_keys")
    tidy = "umount /mnt; umount /mnt; rm -f /etc/hostile /var/tmp/hostile; :"
    try:
        free = desk.shell(_HOSTILE_SHELL + tidy).splitlines()
        said = desk.run("aa-exec", "-p", "usbipssh-here", "--", "sh", "-c", _HOSTILE_SHELL + ":")
    finally:
        desk.run("rm", "-f", "/var/tmp/for-hostile")
    wanted = [
        line.split("'")[1] for line in _HOSTILE_SHELL.splitlines() if line.startswith("try '")
    ]
    assert [name for name in wanted if name not in free] == []
    assert set(said.splitlines()) == {"probe drivers", "see who uses a file"}
