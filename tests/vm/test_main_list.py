# SPDX-License-Identifier: GPL-3.0-or-later
"""The first call starts the daemon, and a listing tells what is plugged in at pi."""

from __future__ import annotations

import re
from typing import Any

import pytest
from vm.faults import eventually
from vm.testbed.desk import BUS_NAME, ROOT, CallFailed, Desk
from vm.testbed.pi import BUSIDS, Pi
from vm.testbed.systems import PI_ADDRESS

pytestmark = pytest.mark.usefixtures("listed")

KEYS = {
    "busid": "s", "vendor-id": "q", "product-id": "q", "vendor": "s", "product": "s",
    "serial": "s", "speed": "d", "class": "y", "subclass": "y", "protocol": "y", "busnum": "u",
    "devnum": "u", "driver": "s", "configuration": "y", "hub": "b", "state": "s",
    "interfaces": "aa{sv}",
}  # fmt: skip
INTERFACE_KEYS = {
    "number": "y", "class": "y", "subclass": "y", "protocol": "y",
    "driver": "s", "name": "s", "nodes": "as",
}  # fmt: skip


def types(table: dict[str, Any]) -> dict[str, str]:
    return {key: value["type"] for key, value in table.items()}


def test_the_first_call_starts_the_daemon(desk: Desk) -> None:
    desk.stop_daemon()
    state = "systemctl show --value -p ActiveState usbipsshd"
    assert desk.shell(state).strip() == "inactive"
    words = ("get-property", BUS_NAME, ROOT, f"{BUS_NAME}.Manager", "VhciAvailable")
    assert desk.bus("bob", *words) is True
    # It tells systemd that it is ready about when it answers.
    eventually(lambda: desk.shell(state).strip() == "active", 60, "it is active")


def test_a_listing_is_complete_and_in_tree_order(pi: Pi, desk: Desk) -> None:
    # It may only just have been given back.
    node = pi.disk_of(BUSIDS["stick"]).removeprefix("/dev/")
    (raw,) = desk.manager("alice", "ListRemote", "pi", "")
    for device in raw:
        assert types(device) == KEYS
        for interface in device["interfaces"]["data"]:
            assert types(interface) == INTERFACE_KEYS

    devices = desk.list_remote("alice", "pi")
    assert [d["busid"] for d in devices] == ["1-1", "1-3", "1-3.1", "2-2"]
    found = {d["busid"]: d for d in devices}
    stick = found[BUSIDS["stick"]]
    assert {key: stick[key] for key in KEYS if key not in ("interfaces", "devnum")} == {
        "busid": "2-2", "vendor-id": 0x46F4, "product-id": 1, "vendor": "QEMU",
        "product": "QEMU USB HARDDRIVE", "serial": "STICK0001", "speed": 5000.0, "class": 0,
        "subclass": 0, "protocol": 0, "busnum": 2, "driver": "usb",
        "configuration": 1, "hub": False, "state": "available",
    }  # fmt: skip
    devnum = pi.run("cat", "/sys/bus/usb/devices/2-2/devnum")
    assert stick["devnum"] == int(devnum)
    (disk,) = stick["interfaces"]
    assert {**disk, "nodes": set(disk["nodes"])} == {
        "number": 0, "class": 8, "subclass": 6, "protocol": 0x50,
        "driver": "usb-storage", "name": "UMASS", "nodes": {node, "sg0"},
    }  # fmt: skip
    assert found["1-3"]["hub"] is True
    kinds = {busid: (d["interfaces"][0]["name"], d["speed"]) for busid, d in found.items()}
    assert kinds["1-1"] == ("kbd", 480.0)
    assert kinds["1-3"] == ("hub", 12.0)
    (port,) = found["1-3.1"]["interfaces"]
    assert (port["driver"], port["nodes"]) == ("ftdi_sio", ["ttyUSB0"])


def test_a_pattern_chooses(desk: Desk) -> None:
    def busids(pattern: str) -> list[str]:
        return [d["busid"] for d in desk.list_remote("alice", "pi", pattern)]

    assert busids("46f4:1") == ["2-2"]
    assert busids("030101") == ["1-1"]
    assert busids("!Hub") == ["1-1", "1-3.1", "2-2"]


def test_this_machines_own_devices(desk: Desk) -> None:
    devices = desk.list_local("bob")
    mice = [d for d in devices if d["serial"] == "MOUSE0002"]
    assert [(d["interfaces"][0]["name"], d["state"]) for d in mice] == [("mouse", "available")]


def test_who_may_look(desk: Desk) -> None:
    with pytest.raises(CallFailed) as refused:
        desk.list_remote("bob", "pi")
    assert refused.value.name == "org.freedesktop.DBus.Error.AccessDenied"
    with pytest.raises(CallFailed) as unasked:
        desk.list_remote("carol", "pi")
    assert unasked.value.name == "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired"


def the_session(desk: Desk) -> str:
    """Wait until there is one session, and none that still ends; its unit."""
    units: list[str] = []

    def one() -> bool:
        units[:] = desk.shell(
            "systemctl list-units --plain --no-legend 'usbipssh-session@*' | cut -d ' ' -f 1"
        ).split()
        return len(units) == 1

    eventually(one, 60, "there is one session")
    return units[0]


def test_what_talks_to_the_network_may_do_nothing_else(desk: Desk) -> None:
    desk.list_remote("alice", "pi")
    unit = the_session(desk)
    pid = desk.run("systemctl", "show", "--value", "-p", "MainPID", unit).strip()
    status = desk.run("cat", f"/proc/{pid}/status")
    uid = desk.run("id", "-u", "usbipssh").strip()
    assert uid != "0"
    assert re.search(rf"^Uid:\s+{uid}\s+{uid}\s+{uid}\s+{uid}$", status, re.MULTILINE)
    assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE)
    assert re.search(r"^CapBnd:\s+0+$", status, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
    # The connection to pi is the session's; the root process has none.
    daemon = desk.run("systemctl", "show", "--value", "-p", "MainPID", "usbipsshd").strip()
    links: list[str] = []

    def one_to_pi() -> bool:
        # One that was closed before is there until pi has closed it, too.
        links[:] = desk.run("ss", "-H", "-t", "-n", "-p").splitlines()
        return [f"pid={pid}," in line for line in links if f"{PI_ADDRESS}:22" in line] == [True]

    eventually(one_to_pi, 60, "the session's is the one connection to pi")
    assert not [line for line in links if f"pid={daemon}," in line]
    keys = desk.shell("grep -rl 'PRIVATE KEY' /var/lib/usbipsshd").split()
    assert keys
    for key in keys:
        assert desk.ssh.attempt("runuser", "-u", "usbipssh", "--", "cat", key).code != 0
