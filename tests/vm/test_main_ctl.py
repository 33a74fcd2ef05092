# SPDX-License-Identifier: GPL-3.0-or-later
"""usbipsshctl between two real kernels: what the original's command line did, and units."""

from __future__ import annotations

import json
import re
from functools import partial

import pytest
from vm.faults import eventually
from vm.testbed.asking import PASSWORD, administrator, run_answering
from vm.testbed.desk import Desk
from vm.testbed.pi import BUSIDS, Pi
from vm.testbed.ssh import Result

pytestmark = pytest.mark.usefixtures("listed")

STICK = BUSIDS["stick"]
UNIT = r"usbipssh@pi\x2d46f4:0001.service"
NEEDS = "/run/systemd/system/needs-stick.service"


def ctl(desk: Desk, *words: str, user: str = "alice") -> Result:
    done = desk.ssh.attempt("runuser", "-u", user, "--", "usbipsshctl", *words, timeout=120)
    assert "Traceback" not in done.err, done.err
    return done


def out(desk: Desk, *words: str) -> str:
    done = ctl(desk, *words)
    assert (done.code, done.err) == (0, ""), done
    return done.out


def tagged(desk: Desk, path: str) -> bool:
    """Whether udev knows whose a device is."""
    known = desk.run("udevadm", "info", path)
    return "USBIPSSH=1" in known and ":usbipssh:" in known


def test_list_shows_what_is_there(pi: Pi, desk: Desk) -> None:
    # Its disk comes a while after its driver, which it may just have got back.
    pi.disk_of(STICK)
    lines = out(desk, "list", "pi").splitlines()
    assert [line.split()[0] for line in lines if not line.lstrip().startswith(":")] == [
        "1-1", "1-3", "1-3.1", STICK,
    ]  # fmt: skip
    assert f"{STICK}  46f4:0001  QEMU  QEMU USB HARDDRIVE" in lines
    disk = lines[-1]
    assert re.fullmatch(r"    :1\.0 080650  UMASS  \[usb-storage\] (sda sg0|sg0 sda)", disk), disk
    port = next(line for line in lines if "ftdi_sio" in line)
    assert re.fullmatch(r"      :1\.0 ffffff  .*\[ftdi_sio\] ttyUSB0", port), port
    assert "This machine:" in out(desk, "list")


def test_attach_status_detach(desk: Desk) -> None:
    told = out(desk, "attach", "--expect", "46f4:0001", "pi", "HARDDRIVE")
    node = re.findall(r"/dev/sd[a-z]+\b", told)[0]
    desk.wait_there(node)
    (one,) = json.loads(out(desk, "status", "--json"))["attachments"]
    assert (one["remote_bus_id"], one["state"], one["keep"]) == (STICK, "attached", False)
    local = one["local_bus_id"]
    assert f"pi/{STICK} is {local} here" in told
    assert local in out(desk, "status")
    assert f"(attached as {local})" in out(desk, "list", "pi", STICK)
    # The device and everything below it carry the tag; this machine's own do not.
    for path in (f"/sys/bus/usb/devices/{local}", f"/sys/class/block/{node[5:]}"):
        # udev comes to it after the kernel.
        eventually(partial(tagged, desk, path), 60, f"udev knows of {path}")
    # Desk's own mouse, and the bus that it is on.
    own = desk.shell("dirname $(grep -lx MOUSE0002 /sys/bus/usb/devices/*/serial)").strip()
    folder, _, name = own.rpartition("/")
    for path in (own, f"{folder}/usb{name.partition('-')[0]}"):
        assert "usbipssh" not in desk.run("udevadm", "info", path).lower()
    assert ctl(desk, "attach", "pi", STICK).code == 5
    with desk.mounted(node) as folder:
        refused = ctl(desk, "detach", local)
        assert refused.code == 5
        assert f"is mounted here, on {folder}; unmount it first" in refused.err
    assert out(desk, "detach", local) == ""
    desk.wait_gone(node)


def test_what_is_refused_has_its_exit_status(desk: Desk) -> None:
    assert ctl(desk, "list", "pi", user="bob").code == 3
    assert ctl(desk, "attach", "pi", "9-9").code == 5
    assert ctl(desk, "list", "nowhere:0").code == 2


def test_the_doctor_finds_two_sound_machines(desk: Desk) -> None:
    lines = out(desk, "doctor", "pi").splitlines()
    assert all(line.startswith("ok ") for line in lines), lines
    for text in ("vhci-hcd", "pi lets this machine in", "root there", "usbip-host", "Linux 6."):
        assert any(text in line for line in lines), (text, lines)


def test_a_password_is_asked_for_on_the_terminal(pi: Pi, desk: Desk) -> None:
    """Nobody but usbipsshctl starts an agent."""
    attach = ("usbipsshctl", "attach", "pi", BUSIDS["adapter"])
    with administrator(desk, "carol"):
        wrong = run_answering(desk, "carol", "not-it", *attach)
        assert (wrong.questions, wrong.worked) == (1, False), wrong.shown
        assert pi.driver(BUSIDS["adapter"]) != "usbip-host"
        right = run_answering(desk, "carol", PASSWORD, *attach)
        assert (right.questions, right.worked) == (1, True), right.shown
        assert f"pi/{BUSIDS['adapter']} is " in right.shown
    assert desk.detach("carol", "all") == 1


@pytest.mark.parametrize("more", [(), ("--all",)])
def test_systemctl_stop_gives_the_device_back(pi: Pi, desk: Desk, more: tuple[str, ...]) -> None:
    """A unit of anybody's with usbipsshctl attach --wait: stopped, it ends well."""
    # With Type=notify it holds the device, and would notice the signal, when this returns.
    lends = ("systemd-run", "--unit=lends", "--property=Type=notify")
    desk.run(*lends, "usbipsshctl", "attach", "--wait", *more, "pi", "46f4", timeout=120)
    pi.wait_driver(STICK, "usbip-host")
    desk.run("systemctl", "stop", "lends.service", timeout=90)
    # Ended well, a transient unit is forgotten; failed, it would stay.
    assert desk.ssh.attempt("systemctl", "is-failed", "lends.service").code != 0
    assert out(desk, "status") == "Nothing is attached.\n"
    assert pi.driver(STICK) == "usb"


def test_wait_lets_go_when_it_is_killed(desk: Desk) -> None:
    desk.shell(
        "runuser -u alice -- usbipsshctl attach --wait pi 46f4 >/run/waits 2>&1 </dev/null &\n"
        "i=0; until grep -q ' here ' /run/waits; do i=$((i+1)); [ $i -lt 600 ] || exit 1; "
        "sleep 0.1; done\n"
        "kill -9 $(pgrep -f '^/usr/bin/python3 .*usbipsshctl attach --wait')",
        timeout=120,
    )
    desk.shell(
        "i=0; until usbipsshctl status | grep -q Nothing; do i=$((i+1)); [ $i -lt 60 ] || exit 1; "
        "sleep 0.5; done",
        timeout=120,
    )


def test_a_unit_keeps_its_device_for_another_unit(pi: Pi, desk: Desk) -> None:
    unit = desk.run("systemd-escape", "--template=usbipssh@.service", "pi-46f4:0001").strip()
    assert unit == UNIT
    desk.shell(
        'printf "[Unit]\\nBindsTo=%s\\nAfter=%s\\n[Service]\\nExecStart=/bin/sleep infinity\\n" '
        f'"$1" "$1" >{NEEDS}; systemctl daemon-reload',
        UNIT,
    )
    try:
        desk.run("systemctl", "start", "needs-stick.service", timeout=180)
        (one,) = json.loads(out(desk, "status", "--json"))["attachments"]
        assert (one["state"], one["keep"], one["owner_uid"]) == ("attached", True, 0)
        node = next(n for n in one["device_nodes"] if n.startswith("/dev/sd"))
        assert "attached" in desk.run("systemctl", "show", "-P", "StatusText", unit)
        pi.unplug("stick")
        desk.wait_gone(node, 60)
        pi.plug("stick")
        desk.shell(
            "i=0; until usbipsshctl status | grep -q /dev/sd; do i=$((i+1)); "
            "[ $i -lt 240 ] || exit 1; sleep 0.5; done",
            timeout=180,
        )
        active = desk.run("systemctl", "is-active", unit, "needs-stick.service").split()
        assert active == ["active", "active"]
    finally:
        desk.run("systemctl", "stop", unit, timeout=90)
    assert desk.ssh.attempt("systemctl", "is-active", "needs-stick.service").code != 0
    assert out(desk, "status") == "Nothing is attached.\n"
    # A device that nobody has: the unit fails, and says why.
    wrong = r"usbipssh@pi\x2d9\x2d9.service"
    assert desk.ssh.attempt("systemctl", "start", wrong, timeout=180).code != 0
    desk.run("systemctl", "stop", wrong)
    desk.run("journalctl", "--sync")
    log = desk.run("journalctl", "--no-pager", "-o", "cat", "-u", wrong, timeout=60)
    assert "9-9" in log
    desk.shell(f"rm -f {NEEDS}; systemctl daemon-reload; systemctl reset-failed")
