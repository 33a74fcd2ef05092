# SPDX-License-Identifier: GPL-3.0-or-later
"""The testbed keeps its own promises; without them the other tests here would show nothing."""

from __future__ import annotations

import hashlib

import pytest
from vm.testbed import pi as pi_module
from vm.testbed.desk import Desk
from vm.testbed.keys import KeyEvent, key_events
from vm.testbed.machine import TROUBLE
from vm.testbed.pair import Pair
from vm.testbed.pi import BUSIDS, Pi
from vm.testbed.ssh import CommandFailed
from vm.testbed.systems import stick_files


def test_pi_has_perl_and_no_python(pi: Pi) -> None:
    assert pi.run("perl", "-e", "print 6 * 7") == "42"
    with pytest.raises(CommandFailed):
        pi.run("python3", "-c", "")


@pytest.mark.parametrize("name", pi_module.CONNECTORS)
def test_one_connector_at_a_time(pi: Pi, name: str) -> None:
    with pi.only_connector(name):
        found = pi.shell("for p in perl python3 bash; do command -v $p || :; done").split()
        assert found == [f"/usr/bin/{name}"]
        program = {
            "perl": ("perl", "-e", "use Socket; print 1"),
            "python3": ("python3", "-c", "import socket; print(1, end='')"),
            "bash": ("bash", "-c", "printf 1"),
        }[name]
        assert pi.run(*program) == "1"


def test_the_devices_are_where_the_tests_expect_them(pi: Pi) -> None:
    for name in pi_module.PLUGGED_AT_START:
        pi.wait_driver(BUSIDS[name], "usb")
    speed = pi.run("cat", f"/sys/bus/usb/devices/{BUSIDS['stick']}/speed").strip()
    assert speed == "5000"


def test_the_sticks_content_is_known(pi: Pi) -> None:
    out = pi.shell(
        'mount -o ro "$1" /mnt; cd /mnt; sha256sum hello.txt random.bin; cd /; umount /mnt',
        pi.disk_of(BUSIDS["stick"]),
    )
    found = {line.split()[1]: line.split()[0] for line in out.splitlines()}
    assert found == {name: hashlib.sha256(data).hexdigest() for name, data in stick_files().items()}


def test_the_keyboard_types_on_pi(pi: Pi) -> None:
    # udev makes the link; the keyboard may only just have been given back.
    node = pi.shell(
        "i=0; until ls /dev/input/by-path/*-usb-0:1:*-event-kbd 2>/dev/null; do"
        " i=$((i+1)); [ $i -lt 600 ] || exit 1; sleep 0.1; done",
        timeout=120,
    ).strip()
    with key_events(pi, node) as events:
        pi.press("a")
        assert [next(events), next(events)] == [KeyEvent(30, 1), KeyEvent(30, 0)]


def test_the_machines_see_each_other_and_nothing_else(pi: Pi, desk: Desk) -> None:
    assert "pi" in desk.run("getent", "hosts", "10.77.0.1")
    greeting = desk.run(
        "perl", "-MSocket", "-e",
        "socket(S,PF_INET,SOCK_STREAM,0); connect(S,sockaddr_in(22,inet_aton('pi'))) or die $!;"
        "print scalar <S>",
    )  # fmt: skip
    assert greeting.startswith("SSH-2.0")
    for machine in (pi, desk):
        assert "default" not in machine.run("ip", "route")


def test_a_device_is_plugged_in_and_out(pi: Pi) -> None:
    busid = BUSIDS["mouse"]
    pi.plug("mouse")
    pi.wait_driver(busid, "usb")
    pi.unplug("mouse")
    pi.wait_driver(busid, "")


def test_people_on_desk(desk: Desk) -> None:
    for name in ("alice", "bob", "carol"):
        assert desk.run("runuser", "-u", name, "--", "id", "-un").strip() == name


def test_an_oops_would_be_noticed(machines: Pair) -> None:
    before = len(machines.pi.console_text())
    assert machines.pi.trouble(before) == []
    assert TROUBLE.search("[  12.3] BUG: kernel NULL pointer dereference, address: 0")
    assert TROUBLE.search("[  12.3] refcount_t: underflow; use-after-free.")
    assert TROUBLE.search("[  12.3] Call Trace:")
    # What the kernel says arrives in the log that is searched.
    machines.pi.shell("echo '<3>testbed: marker' > /dev/kmsg")
    assert (
        machines.settled(
            lambda: (
                [] if "testbed: marker" in machines.pi.console_text()[before:] else ["no marker"]
            )
        )
        == []
    )
