# SPDX-License-Identifier: GPL-3.0-or-later
"""Attaching and detaching: what comes, what is told, what is given back."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator

import pytest
from fakekernel import BLUETOOTH, KEYBOARD, SERIAL_ADAPTER, STICK, FakeKernel
from integration.recorder import recording
from integration.world import ALICE, ATTACHMENT, BOB, MANAGER, NAME, ROOT, World, world


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    with world() as made:
        made.pi.plug("2-1", STICK)
        made.pi.plug("1-1", KEYBOARD)
        made.pi.plug("1-2", SERIAL_ADAPTER)
        made.add_remote()
        yield made


@pytest.fixture
def w(shared: World) -> Iterator[World]:
    yield shared
    shared.detach_all()
    shared.check_clean()


def free_ports(w: World) -> dict[str, int]:
    found: dict[str, int] = w.get(ROOT, MANAGER, "FreePorts")
    return found


def test_what_an_attachment_says_of_itself(w: World) -> None:
    before = time.time()
    path = w.attach("781:5581")
    values = w.get_all(path, ATTACHMENT)
    assert before * 1e6 < values.pop("AttachedAt") < time.time() * 1e6
    port = w.desk.state()["ports"][0]
    assert values == {
        "Remote": "pi",
        "Direction": "import",
        "Pattern": "781:5581",
        "RemoteBusId": "2-1",
        "VendorId": 0x0781,
        "ProductId": 0x5581,
        "Name": "SanDisk Ultra",
        "Serial": "4C531001550718",
        "Speed": 5000.0,
        "State": "attached",
        "LocalBusId": port["busid"],
        "Port": port["port"],
        "DeviceNodes": ["/dev/sda", "/dev/sda1"],
        "Keep": False,
        "Persist": False,
        "OwnerUid": ALICE,
        "Hub": "/",
        "RetryAt": 0,
        "LastError": ["", ""],
    }
    assert w.desk.state()["devices"][port["busid"]]["driver"] == "usb"


def test_bytes_go_through_and_are_counted(w: World) -> None:
    path = w.attach("2-1")
    port = w.get(path, ATTACHMENT, "Port")
    assert w.desk.transfer(port, 1_000_000) == 1_000_000
    counted = w.call(BOB, "GetStatistics", "a{sv}", "0", path=path, interface=ATTACHMENT)
    assert set(counted) == {"received", "sent"}
    assert counted["received"] >= 1_000_000
    assert counted["sent"] >= 1_000_000


def by_path(w: World, path: str) -> str:
    return path


def by_remote(w: World, path: str) -> str:
    return "pi/2-1"


def by_local_id(w: World, path: str) -> str:
    found: str = w.get(path, ATTACHMENT, "LocalBusId")
    return found


def everything(w: World, path: str) -> str:
    return "all"


@pytest.mark.parametrize("target", [by_path, by_remote, by_local_id, everything])
def test_detach_by_every_kind_of_target(w: World, target: Callable[[World, str], str]) -> None:
    path = w.attach("2-1")
    assert w.call(ALICE, "Detach", "sa{sv}", target(w, path), "0") == 1
    w.check_clean()
    assert w.attachments() == []
    assert w.pi.state()["devices"]["2-1"]["driver"] == "usb"
    assert w.list(pattern="2-1")[0]["state"] == "available"


def test_the_attachments_own_detach(w: World) -> None:
    path = w.attach("2-1")
    assert w.call(ALICE, "Detach", "a{sv}", "0", path=path, interface=ATTACHMENT) is None
    w.check_clean()
    w.refused("UnknownObject", ALICE, "Detach", "a{sv}", "0", path=path, interface=ATTACHMENT)


def test_all_counts_what_there_was(w: World) -> None:
    assert w.call(ALICE, "Detach", "sa{sv}", "all", "0") == 0
    for busid in ("2-1", "1-1", "1-2"):
        w.attach(busid)
    assert len(w.attachments()) == 3
    assert w.call(ALICE, "Detach", "sa{sv}", "all", "0") == 3


def test_without_rebind_the_device_keeps_no_driver_there(w: World) -> None:
    w.attach("2-1", ALICE, "pi", "rebind", "b", "false")
    w.call(ALICE, "Detach", "sa{sv}", "pi/2-1", "0")
    assert w.pi.state()["devices"]["2-1"]["driver"] == ""
    w.pi.unplug("2-1")
    w.pi.plug("2-1", STICK)
    assert w.pi.state()["devices"]["2-1"]["driver"] == "usb"


def test_ports_are_counted_by_speed(w: World) -> None:
    before = free_ports(w)
    w.attach("2-1")
    assert free_ports(w) == {**before, "ss": before["ss"] - 1}
    w.attach("1-1")
    assert free_ports(w) == {"hs": before["hs"] - 1, "ss": before["ss"] - 1}
    w.call(ALICE, "Detach", "sa{sv}", "all", "0")
    assert free_ports(w) == before
    assert w.get(ROOT, MANAGER, "VhciAvailable") is True


def test_everything_is_told_from_the_root_object(w: World) -> None:
    with recording(w.bus, NAME) as recorder:
        path = w.attach("2-1")
        recorder.wait_value(path, "State", "attached")
        w.call(ALICE, "Detach", "sa{sv}", path, "0")
        gone = recorder.wait_removed(path)
        recorder.wait(lambda _: len(recorder.values(ROOT, "FreePorts")) >= 2)
    tree = [s for s in recorder.signals if s.interface == "org.freedesktop.DBus.ObjectManager"]
    assert [(s.path, s.member, s.body[0]) for s in tree] == [
        (ROOT, "InterfacesAdded", path),
        (ROOT, "InterfacesRemoved", path),
    ]
    added = tree[0].body[1]
    assert set(gone) == set(added)
    assert added[ATTACHMENT]["State"] == "connecting"
    assert added[ATTACHMENT]["OwnerUid"] == ALICE
    assert recorder.values(path, "State") == ["connecting", "attached", "detaching"]
    assert ["/dev/sda", "/dev/sda1"] in recorder.values(path, "DeviceNodes")
    ports = recorder.values(ROOT, "FreePorts")
    assert len(ports) == 2
    assert ports[1]["ss"] == ports[0]["ss"] + 1


def test_an_attachment_ends_when_its_device_is_pulled_out(w: World) -> None:
    w.pi.plug("2-2", STICK)
    with recording(w.bus, NAME) as recorder:
        path = w.attach("2-2")
        other = w.attach("1-2")
        w.pi.unplug("2-2")
        recorder.wait_removed(path)
    name, message = recorder.values(path, "LastError")[-1]
    assert name == "org.usbipssh1.Error.DeviceFailed"
    assert message.endswith(".")
    assert "pi" in message
    assert w.attachments() == [other]
    assert w.desk.transfer(w.get(other, ATTACHMENT, "Port"), 1000) == 1000


def test_an_attachment_ends_when_another_program_detaches_its_port(w: World) -> None:
    with recording(w.bus, NAME) as recorder:
        path = w.attach("2-1")
        port = w.get(path, ATTACHMENT, "Port")
        (w.desk.root / "devices/platform/vhci_hcd.0/detach").write_text(str(port))
        recorder.wait_removed(path)
    w.check_clean()


def test_an_attachment_ends_when_the_other_kernel_ends_it(w: World) -> None:
    with recording(w.bus, NAME) as recorder:
        path = w.attach("2-1")
        w.pi.end_connection("2-1")
        recorder.wait_removed(path)
    w.check_clean()


def test_detaching_ends_what_is_under_way(w: World) -> None:
    w.pi.answer("2-1", "stall")
    with recording(w.bus, NAME) as recorder:
        attach = w.begin(ALICE, "Attach", "ssa{sv}", "pi", "2-1", "0")
        path = recorder.wait(lambda s: next((x.body[0] for x in s if "Added" in x.member), None))
        w.desk.wait(lambda s: s["ports"])
        w.call(ALICE, "Detach", "sa{sv}", path, "0")
    answer = attach.answer()
    w.pi.answer("2-1", "")
    assert answer.error == "org.usbipssh1.Error.Cancelled"
    assert answer.message.endswith(".")
    w.check_clean()


def test_a_caller_that_leaves_takes_its_waiting_call_along(w: World) -> None:
    w.pi.answer("2-1", "stall")
    with recording(w.bus, NAME) as recorder:
        attach = w.begin(ALICE, "Attach", "ssa{sv}", "pi", "2-1", "0")
        path = recorder.wait(lambda s: next((x.body[0] for x in s if "Added" in x.member), None))
        w.desk.wait(lambda s: s["ports"])
        attach.leave()
        recorder.wait_removed(path)
    w.pi.answer("2-1", "")
    w.check_clean()


def test_an_attachment_outlives_its_caller(w: World) -> None:
    path = w.attach("2-1")  # busctl is gone by now
    assert w.call(BOB, "GetStatistics", "a{sv}", "0", path=path, interface=ATTACHMENT)
    assert w.get(path, ATTACHMENT, "State") == "attached"


def test_several_at_once(w: World) -> None:
    calls = [w.begin(ALICE, "Attach", "ssa{sv}", "pi", b, "0") for b in ("2-1", "1-1", "1-2")]
    paths = {c.value() for c in calls}
    assert len(paths) == 3
    for path in paths:
        assert w.desk.transfer(w.get(path, ATTACHMENT, "Port"), 10_000) == 10_000


def test_other_programs_devices_are_let_through_for_as_long_as_one_of_ours_is_there(
    w: World,
) -> None:
    path = w.attach("1-2")
    state = w.desk.state()
    (bus,) = [n for n, v in state["authorized_default"].items() if int(v) == 0]
    w.desk.plug(f"{bus}-7", BLUETOOTH)
    assert w.desk.wait(lambda s: s["devices"][f"{bus}-7"]["authorized"])
    w.call(ALICE, "Detach", "sa{sv}", path, "0")
    w.desk.wait(lambda s: int(s["authorized_default"][bus]) == 1)
    w.desk.unplug(f"{bus}-7")


def test_other_programs_devices_wait_while_no_daemon_runs(w: World) -> None:
    w.attach("1-2")
    (bus,) = [n for n, v in w.desk.state()["authorized_default"].items() if int(v) == 0]
    w.stop_daemon(signal.SIGKILL)
    w.desk.plug(f"{bus}-7", BLUETOOTH)
    w.check_clean(held=True)
    assert not w.desk.state()["devices"][f"{bus}-7"]["authorized"]
    w.start_daemon()
    assert w.desk.wait(lambda s: s["devices"][f"{bus}-7"]["authorized"])
    w.check_clean()
    w.desk.unplug(f"{bus}-7")


def test_a_kernel_before_4_13() -> None:
    with world(desk=FakeKernel(status="old")) as w:
        w.pi.plug("2-1", STICK)
        w.pi.plug("1-1", KEYBOARD)
        w.add_remote()
        path = w.attach("1-1")
        assert w.desk.transfer(w.get(path, ATTACHMENT, "Port"), 1000) == 1000
        # There are no ports for USB 3 on such a kernel.
        w.refused("NoFreePort", ALICE, "Attach", "ssa{sv}", "pi", "2-1", "0")
        w.call(ALICE, "Detach", "sa{sv}", path, "0")
        w.check_clean()
