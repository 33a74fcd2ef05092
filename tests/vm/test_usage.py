# SPDX-License-Identifier: GPL-3.0-or-later
"""Every line of the original's usage text: what does the same with usbipsshctl, and its effect."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pytest
from vm.faults import eventually
from vm.testbed.desk import ROOT, Desk
from vm.testbed.pair import Pair
from vm.testbed.pi import BUSIDS, Pi

STICK = BUSIDS["stick"]
CONFIG = "/etc/usbipsshd/ssh_config"
_DISK = re.compile(r"/dev/sd[a-z]+\b")
_EXPORT = """
modprobe usbip-host
cd /sys/bus/usb/drivers
printf %s "$1" >usb/unbind
printf 'add %s' "$1" >usbip-host/match_busid
printf %s "$1" >usbip-host/bind
"""


@dataclass
class Scene:
    """The two machines, and root at desk."""

    pi: Pi
    desk: Desk

    def ctl(self, *words: str) -> str:
        return self.desk.run("usbipsshctl", *words, timeout=120)

    def status(self) -> str:
        return self.ctl("status")

    def node(self, told: str) -> str:
        return str(_DISK.findall(told)[0])

    def is_attached(self) -> bool:
        return bool(re.search(r" attached\b.* /dev/sd", self.status()))

    def detached(self, *words: str) -> None:
        self.ctl("detach", *(words or ("all",)))
        assert self.status() == "Nothing is attached.\n"
        self.pi.wait_driver(STICK, "usb")


@pytest.fixture
def scene(machines: Pair, listed: None) -> Iterator[Scene]:
    made = Scene(machines.pi, machines.desk)
    # What was just given back has its driver, but not yet its disk.
    made.pi.disk_of(STICK)
    yield made
    made.ctl("detach", "all")
    made.desk.run("rm", "-f", CONFIG)
    if f"{ROOT}/remote/byoption" in made.desk.objects():
        made.ctl("remote", "remove", "byoption")


def in_the_log(s: Scene, text: str) -> None:
    eventually(lambda: text in s.desk.journal(), 60, f"the log has {text}")


def attached(s: Scene, told: str) -> None:
    assert told.startswith(f"pi/{STICK} is "), told
    s.desk.wait_there(s.node(told))
    assert s.pi.usbip_status(STICK) == 2
    # What verbose=1 would tell.
    in_the_log(s, f"attached {STICK} of pi")
    s.detached(f"pi/{STICK}")


def tree(s: Scene, told: str) -> None:
    lines = told.splitlines()
    assert f"{STICK}  46f4:0001  QEMU  QEMU USB HARDDRIVE" in lines, told
    assert any(re.match(r" +:1\.0 080650  UMASS  \[usb-storage\] ", line) for line in lines)
    assert any(re.match(r" +:1\.0 030101  kbd  +\[usbhid\] ", line) for line in lines)


def its_bus_id(s: Scene, told: str) -> None:
    assert told == f"{STICK}\n"


def kept(s: Scene, told: str) -> None:
    # It reconnects when what it had is gone.
    node = s.node(told)
    s.pi.unplug("stick")
    s.desk.wait_gone(node)
    s.pi.plug("stick")
    eventually(s.is_attached, 90, "it is attached again")
    s.detached()


def in_the_background(s: Scene, told: str) -> None:
    # Whoever asked for it has gone; what happens is in the log, not on a terminal.
    eventually(s.is_attached, 60, "it is attached")
    in_the_log(s, f"attached {STICK} of pi")
    s.detached()


def here(s: Scene, told: str) -> None:
    assert any("usbhid" in line for line in told.splitlines()), told


def one_here(s: Scene, told: str) -> None:
    (device,) = s.desk.list_local("root", told.strip())
    assert device["serial"] == "MOUSE0002"


def with_options(s: Scene) -> None:
    text = "Host byoption\n HostName pi\n User root\n Port 22\n"
    s.desk.run("sh", "-c", f"mkdir -p /etc/usbipsshd; cat >{CONFIG}", data=text)
    s.ctl("remote", "add", "byoption")
    s.ctl("remote", "trust", "byoption", s.pi.fingerprint())


def with_a_stale_export(s: Scene) -> None:
    s.pi.shell(_EXPORT, STICK)


def given_back(s: Scene, told: str) -> None:
    assert told == f"{STICK}\n"
    s.pi.wait_driver(STICK, "usb")


def with_an_attachment(s: Scene) -> None:
    s.ctl("attach", "pi", STICK)


def nothing_attached(s: Scene, told: str) -> None:
    assert s.status() == "Nothing is attached.\n"
    s.pi.wait_driver(STICK, "usb")


@dataclass(frozen=True)
class Line:
    """A line of the usage text, what does the same, and what must come of it."""

    original: str
    words: Sequence[str]
    effect: Callable[[Scene, str], None]
    before: Callable[[Scene], None] | None = None


USAGE = (
    Line("[verbose=1] USER@HOST DEV_PATTERN", ["attach", "pi", "HARDDRIVE"], attached),
    Line("USER@HOST", ["list", "pi"], tree),
    Line("USER@HOST list", ["list", "pi"], tree),
    Line("USER@HOST find DEV_PATTERN", ["find", "pi", "HARDDRIVE"], its_bus_id),
    Line("keep USER@HOST DEV_PATTERN", ["keep", "pi", "HARDDRIVE"], kept),
    Line(
        "daemon USER@HOST DEV_PATTERN",
        ["keep", "--persist", "pi", "HARDDRIVE"],
        in_the_background,
    ),
    Line("list", ["list", "."], here),
    Line("find DEV_PATTERN", ["find", ".", "MOUSE0002"], one_here),
    Line("DEV_PATTERN: a busid", ["find", "pi", STICK], its_bus_id),
    Line("DEV_PATTERN: vid:pid", ["find", "pi", "46f4:0001"], its_bus_id),
    Line("DEV_PATTERN: vid:pid, no zeros", ["find", "pi", "46f4:1"], its_bus_id),
    Line("DEV_PATTERN: matching the vid:pid", ["find", "pi", "^46f4"], its_bus_id),
    Line("DEV_PATTERN: matching the product", ["find", "pi", "USB HARDDRIVE"], its_bus_id),
    Line("DEV_PATTERN: matching the serial", ["find", "pi", "STICK0001"], its_bus_id),
    Line(
        "command line options for ssh before USER@HOST",
        ["list", "byoption"],
        tree,
        with_options,
    ),
    # Not in the usage text, but in the script.
    Line("USER@HOST unbind DEV_PATTERN", ["unbind", "pi", STICK], given_back, with_a_stale_export),
    Line("detach all", ["detach", "all"], nothing_attached, with_an_attachment),
)


@pytest.mark.parametrize("line", USAGE, ids=lambda line: line.original)
def test_the_original_s_usage(scene: Scene, line: Line) -> None:
    if line.before is not None:
        line.before(scene)
    line.effect(scene, scene.ctl(*line.words))


def test_an_address_needs_no_name(scene: Scene) -> None:
    """root@pi, as the original is told it: root may, if the host key is known."""
    key = scene.pi.run("cat", "/etc/ssh/ssh_host_ed25519_key.pub")
    known = "/etc/ssh/ssh_known_hosts"
    scene.desk.run("sh", "-c", f"cat >{known}", data=f"pi {key}")
    try:
        tree(scene, scene.ctl("list", "root@pi"))
    finally:
        scene.desk.run("rm", "-f", known)
