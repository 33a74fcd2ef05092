# SPDX-License-Identifier: GPL-3.0-or-later
"""A stick of desk's as pi's disk: written there, and back again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest
from vm.exports import PORT, SERIAL, busid_of, disk, every_port_taken, export
from vm.faults import eventually
from vm.testbed.desk import CallFailed, Desk
from vm.testbed.pair import Pair
from vm.testbed.pi import Pi

pytestmark = pytest.mark.usefixtures("listed")


@pytest.fixture(scope="module")
def stick(machines: Pair) -> Iterator[str]:
    """desk has a stick; its bus id."""
    desk = machines.desk
    with desk.spare_stick(SERIAL, PORT):
        yield busid_of(desk)


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


def test_reset_and_unbound_it_goes_on_and_comes_back(pi: Pi, desk: Desk, stick: str) -> None:
    path = export(desk, stick)
    first = desk.attachment(path)["AttachedAt"]
    assert desk.manager("alice", "Reset", "", stick, timeout=180) == [[stick]]
    found = desk.attachment(path)
    assert (found["State"], found["LastError"]) == ("attached", ["", ""])
    assert found["AttachedAt"] > first
    assert pi.run("head", "-c", "512", disk(desk, path), timeout=60)
    assert desk.manager("alice", "Unbind", "", stick, timeout=180) == [[stick]]
    assert (pi.taken_ports(), desk.exported()) == ([], [])
    assert path not in desk.objects()
    # Unbind is about the driver, whatever Export was told.
    export(desk, stick, rebind=False)
    assert desk.manager("alice", "Unbind", "", stick, timeout=180) == [[stick]]
    assert desk.interface_drivers(stick) == {f"{stick}:1.0": "usb-storage"}


def test_what_is_mounted_here_is_unmounted_or_left_alone(pi: Pi, desk: Desk, stick: str) -> None:
    node = desk.disk_of(stick)
    desk.run("mkfs.ext4", "-q", "-F", node, timeout=120)
    with desk.mounted(node) as folder:
        with pytest.raises(CallFailed) as busy:
            export(desk, SERIAL, unmount=False)
        assert busy.value.name.endswith("DeviceBusy")
        script = 'exec 3<"$1"; echo $$; exec sleep infinity'
        with_file = desk.ssh.start("sh", "-c", script, "sh", folder)
        assert with_file.stdout is not None
        pid = with_file.stdout.readline().decode().strip()
        desk.shell('until grep -qx sleep "/proc/$1/comm"; do sleep 0.1; done', pid)
        try:
            with pytest.raises(CallFailed) as used:
                export(desk, SERIAL)
            assert used.value.name.endswith("DeviceBusy")
            assert "sleep" in used.value.message
        finally:
            with_file.terminate()
            # Until it has gone nothing can be unmounted.
            desk.shell('kill "$1"; while [ -e "/proc/$1/fd/3" ]; do sleep 0.1; done', pid)
    with_mount = desk.shell('mkdir -p /run/testbed-mount; mount "$1" /run/testbed-mount', node)
    assert with_mount == ""
    path = export(desk, SERIAL)
    assert "testbed-mount" not in desk.run("cat", "/proc/mounts")
    pi.run("mount", disk(desk, path), "/mnt")
    pi.run("umount", "/mnt")
    assert desk.detach("alice", path) == 1


def test_where_no_port_is_free_it_stays_here(pi: Pi, desk: Desk, stick: str) -> None:
    with every_port_taken(pi):
        with pytest.raises(CallFailed) as refused:
            export(desk, SERIAL)
        assert refused.value.name.endswith("NoFreePort")
        assert "pi" in refused.value.message
        assert desk.exported() == []
        assert desk.interface_drivers(stick) == {f"{stick}:1.0": "usb-storage"}

    def exported() -> bool:
        # The kernel there may still be busy with devices that never answered it.
        try:
            export(desk, SERIAL)
        except CallFailed as late:
            assert late.name.endswith("TimedOut"), late
            eventually(lambda: desk.exported() == [], 60, "it is given back")
            return False
        return True

    eventually(exported, 120, "it is exported")
    assert desk.detach("alice", stick) == 1
