# SPDX-License-Identifier: GPL-3.0-or-later
"""A stick of desk's as pi's disk: written there, kept through faults, and back again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

import pytest
from vm.faults import Log, eventually, state
from vm.testbed.desk import CallFailed, Desk
from vm.testbed.pair import Pair
from vm.testbed.pi import Pi

pytestmark = pytest.mark.usefixtures("listed")

SERIAL = "DESK0001"
PORT = "2"


@pytest.fixture(scope="module")
def stick(machines: Pair) -> Iterator[str]:
    """desk has a stick; its bus id."""
    desk = machines.desk
    with desk.spare_stick(SERIAL, PORT):
        yield busid_of(desk)


def busid_of(desk: Desk) -> str:
    """Wait until desk has the stick."""
    found: list[str] = []

    def there() -> bool:
        found[:] = [d["busid"] for d in desk.list_local("alice", SERIAL)]
        return bool(found)

    eventually(there, 60, "desk's stick is there")
    desk.disk_of(found[0])
    return found[0]


def export(desk: Desk, pattern: str, user: str = "alice", **options: bool) -> str:
    given: dict[str, tuple[str, object]] = {k: ("b", v) for k, v in options.items()}
    (path,) = desk.manager(user, "Export", "pi", pattern, options=given, timeout=180)
    return str(path)


def disk(desk: Desk, path: str) -> str:
    """The stick's node on pi."""
    (node,) = (n for n in desk.attachment(path)["DeviceNodes"] if n.startswith("/dev/sd"))
    return str(node)


def test_it_is_written_there_and_has_that_here(pi: Pi, desk: Desk, stick: str) -> None:
    with pytest.raises(CallFailed) as refused:
        export(desk, stick, "bob")
    assert refused.value.name.endswith("AccessDenied")
    path = export(desk, SERIAL)
    found = desk.attachment(path)
    assert (found["Direction"], found["State"], found["LocalBusId"]) == (
        "export",
        "attached",
        stick,
    )
    assert desk.usbip_status(stick) == 2
    (port,) = pi.taken_ports()
    assert (port.hub, port.number, port.busid) == ("ss", found["Port"], found["RemoteBusId"])
    (listed,) = desk.list_local("alice", stick)
    assert (listed["state"], listed["attachment"]) == ("exported", path)

    data = bytes(range(256)) * 4096
    pi.run("dd", f"of={disk(desk, path)}", "bs=64k", "conv=fsync", data=data, timeout=120)
    assert desk.detach("alice", stick) == 1
    assert (pi.taken_ports(), desk.exported()) == ([], [])
    node = desk.disk_of(stick)
    script = 'head -c "$2" "$1" | sha256sum'
    assert desk.shell(script, node, str(len(data))).split()[0] == hashlib.sha256(data).hexdigest()
    assert desk.interface_drivers(stick) == {f"{stick}:1.0": "usb-storage"}


STATUS = "/run/testbed-export"
WRITER = (
    'n=0; while [ ! -e "$2.stop" ]; do'
    ' dd if=/dev/zero of="$1" bs=4096 seek=$((n % 2048)) count=1'
    " conv=fsync,nocreat,notrunc 2>/dev/null ||"
    ' { echo "$n failed" >"$2"; exit; }; n=$((n+1)); echo "$n runs" >"$2"; done;'
    ' echo "$n stopped" >"$2"'
)


def written(pi: Pi) -> tuple[int, str]:
    """How many blocks were written there, and how the writer is."""
    number, _, told = pi.shell('cat "$1" 2>/dev/null || echo 0 runs', STATUS).strip().partition(" ")
    return int(number or 0), told


def goes_on(pi: Pi, blocks: int = 5) -> None:
    """Wait until that many more blocks are written."""
    begun = written(pi)[0]
    eventually(lambda: written(pi)[0] >= begun + blocks, 60, f"blocks are written: {written(pi)}")


@contextmanager
def being_written(pi: Pi, node: str) -> Iterator[None]:
    """A program on pi writes block after block while the block runs."""
    pi.shell(
        'rm -f "$1" "$1.stop"; exec systemd-run -q --collect --unit testbed-export'
        ' sh -c "$2" sh "$3" "$1"',
        STATUS, WRITER, node,
    )  # fmt: skip
    try:
        goes_on(pi)
        yield
    finally:
        pi.run("touch", f"{STATUS}.stop")
        eventually(lambda: written(pi)[1] != "runs", 60, "the writer ends")


def test_pulled_out_while_it_is_written_it_is_waited_for(pi: Pi, desk: Desk, stick: str) -> None:
    path = export(desk, SERIAL, keep=True)
    with being_written(pi, disk(desk, path)):
        desk.pull_spare(SERIAL)
        eventually(lambda: state(desk, path) == "waiting", 60, "it is waited for")
        eventually(lambda: pi.taken_ports() == [], 60, "its port there is free")
        eventually(lambda: written(pi)[1] == "failed", 60, "a write fails")
    desk.plug_spare(SERIAL, PORT)
    eventually(lambda: state(desk, path) == "attached", 90, "it is there again")
    with being_written(pi, disk(desk, path)):
        goes_on(pi)
    assert written(pi)[1] == "stopped"
    assert desk.detach("alice", path) == 1
    busid_of(desk)


def _kill(desk: Desk) -> None:
    pid = desk.run("systemctl", "show", "-P", "MainPID", "usbipsshd.service").strip()
    desk.run("kill", "-9", pid)


def _restart(desk: Desk) -> None:
    desk.run("systemctl", "restart", "--no-block", "usbipsshd.service")


@pytest.mark.parametrize("fault", [_kill, _restart], ids=["killed", "restarted"])
def test_nothing_is_unplugged_when_the_daemon_goes(
    fault: Callable[[Desk], None], pi: Pi, desk: Desk, stick: str, log: Log
) -> None:
    path = export(desk, SERIAL)
    before = desk.attachment(path)
    with being_written(pi, disk(desk, path)):
        begun = monotonic()
        fault(desk)
        log.wait("still attached", since=begun, seconds=60)
        log.wait("ready on", since=begun, seconds=60)
        assert desk.attachment(path) == before
        goes_on(pi)
    assert written(pi)[1] == "stopped"
    assert desk.detach("alice", path) == 1
    assert (pi.taken_ports(), desk.exported()) == ([], [])


@pytest.mark.parametrize(
    "unit", ["usbipssh-here@*", "usbipssh-session@*"], ids=["agent", "session"]
)
def test_what_is_killed_here_costs_a_moment_and_leaves_nothing(
    unit: str, pi: Pi, desk: Desk, stick: str
) -> None:
    path = export(desk, SERIAL, keep=True)
    since = desk.attachment(path)["AttachedAt"]
    desk.run("systemctl", "kill", "-s", "KILL", unit)

    def is_back() -> bool:
        now = desk.attachment(path)
        return bool(now["State"] == "attached" and now["AttachedAt"] > since)

    eventually(is_back, 90, "it is attached again")
    assert desk.detach("alice", path) == 1
    assert (pi.taken_ports(), desk.exported()) == ([], [])


def test_what_is_mounted_here_is_unmounted_or_left_alone(pi: Pi, desk: Desk, stick: str) -> None:
    node = desk.disk_of(stick)
    desk.run("mkfs.ext4", "-q", "-F", node, timeout=120)
    with desk.mounted(node) as folder:
        with pytest.raises(CallFailed) as busy:
            export(desk, SERIAL, unmount=False)
        assert busy.value.name.endswith("DeviceBusy")
        with_file = desk.ssh.start(
            "sh", "-c", 'exec 3<"$1"; echo open; exec sleep 60', "sh", folder
        )
        try:
            assert with_file.stdout is not None
            assert with_file.stdout.readline() == b"open\n"
            with pytest.raises(CallFailed) as used:
                export(desk, SERIAL)
            assert used.value.name.endswith("DeviceBusy")
            assert "sleep" in used.value.message
        finally:
            with_file.terminate()
            desk.shell("pkill -x sleep || :")
    with_mount = desk.shell('mkdir -p /run/testbed-mount; mount "$1" /run/testbed-mount', node)
    assert with_mount == ""
    path = export(desk, SERIAL)
    assert "testbed-mount" not in desk.run("cat", "/proc/mounts")
    pi.run("mount", disk(desk, path), "/mnt")
    pi.run("umount", "/mnt")
    assert desk.detach("alice", path) == 1
