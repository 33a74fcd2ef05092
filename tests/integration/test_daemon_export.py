# SPDX-License-Identifier: GPL-3.0-or-later
"""A device of this machine on a remote: what Export does, and that nothing of it is left."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakekernel import HUB, KEYBOARD, SERIAL_ADAPTER, STICK
from integration.world import ALICE, ATTACHMENT, BOB, CAROL, World, command_lines, wait_until, world


@pytest.fixture(scope="module")
def running() -> Iterator[World]:
    with world() as one:
        one.add_remote()
        yield one


@pytest.fixture
def w(running: World) -> Iterator[World]:
    with contextlib.ExitStack() as stack:
        for kernel in (running.desk, running.pi):
            kernel.reset()
            stack.callback(kernel.reset)
        stack.callback(running.detach_all)
        yield running


def export(w: World, pattern: str, *options: str, uid: int = ALICE) -> str:
    count = str(len(options) // 3)
    path: str = w.call(uid, "Export", "ssa{sv}", "pi", pattern, count, *options)
    return path


def shown(w: World, path: str) -> dict[str, Any]:
    return w.get_all(path, ATTACHMENT)


def test_a_device_appears_there_works_and_comes_back(w: World) -> None:
    w.desk.plug("1-1", STICK)
    path = export(w, "1-1")
    told = shown(w, path)
    assert told["Direction"] == "export"
    assert told["State"] == "attached"
    assert told["LocalBusId"] == "1-1"
    there = told["RemoteBusId"]
    device = w.pi.state()["devices"][there]
    assert device["virtual"]
    assert any(n.startswith("/dev/sd") for n in told["DeviceNodes"])
    assert w.pi.transfer(told["Port"], 200_000) == 200_000
    w.call(ALICE, "Detach", "sa{sv}", "1-1", "0")
    assert w.attachments() == []
    w.pi.wait(lambda s: not s["ports"])
    assert w.desk.state()["devices"]["1-1"]["driver"] == "usb"
    w.check_clean()


def test_who_may(w: World) -> None:
    w.desk.plug("1-1", KEYBOARD)
    w.refused("AccessDenied", BOB, "Export", "ssa{sv}", "pi", "1-1", "0", says="export")
    code = "InteractiveAuthorizationRequired"
    w.refused(code, CAROL, "Export", "ssa{sv}", "pi", "1-1", "0", says="authenticate")
    assert w.attachments() == []
    assert "bind 1-1" not in w.desk.state()["log"]
    path = export(w, "1-1")
    w.refused("AccessDenied", BOB, "Detach", "sa{sv}", path, "0", says="detach-others")


@pytest.mark.parametrize(
    ("pattern", "code", "says"),
    [
        ("1-9", "DeviceNotFound", "1-9"),
        ("nothing like it", "DeviceNotFound", "this machine"),
        ("1-3", "DeviceNotFound", "hubs"),
        ("", "MultipleDevices", "1-1, 1-2"),
    ],
)
def test_what_is_not_there_or_never_exported(w: World, pattern: str, code: str, says: str) -> None:
    w.desk.plug("1-1", STICK)
    w.desk.plug("1-2", KEYBOARD)
    w.desk.plug("1-3", HUB)
    w.refused(code, ALICE, "Export", "ssa{sv}", "pi", pattern, "0", says=says)


def test_what_is_attached_from_elsewhere_stays(w: World) -> None:
    w.pi.plug("1-1", KEYBOARD)
    path = w.attach("1-1")
    busid = shown(w, path)["LocalBusId"]
    w.refused("DeviceNotFound", ALICE, "Export", "ssa{sv}", "pi", busid, "0", says="elsewhere")
    # The other way round: what is exported from here is no device of the remote's.
    w.desk.plug("1-2", STICK)
    there = shown(w, export(w, "1-2"))["RemoteBusId"]
    w.refused("DeviceNotFound", ALICE, "Attach", "ssa{sv}", "pi", there, "0", says="elsewhere")


def test_it_is_listed_as_exported_and_nobody_exports_it_again(w: World) -> None:
    w.desk.plug("1-1", STICK)
    path = export(w, "1-1")
    (device,) = w.call(BOB, "ListLocal", "sa{sv}", "1-1", "0")
    assert (device["state"], device["attachment"]) == ("exported", path)
    w.refused("AlreadyAttached", ALICE, "Export", "ssa{sv}", "pi", "1-1", "0", says="pi")
    assert w.call(0, "Unbind", "ssa{sv}", "", "", "0") == ["1-1"]
    assert w.attachments() == []


def test_it_is_detached_by_where_it_is_there(w: World) -> None:
    w.desk.plug("1-1", KEYBOARD)
    there = shown(w, export(w, "1-1"))["RemoteBusId"]
    assert w.call(ALICE, "Detach", "sa{sv}", f"pi/{there}", "0") == 1
    assert w.attachments() == []


def test_without_rebind_it_is_left_without_a_driver(w: World) -> None:
    w.desk.plug("1-1", KEYBOARD)
    path = export(w, "1-1", "rebind", "b", "false")
    w.call(ALICE, "Detach", "sa{sv}", path, "0")
    assert w.desk.state()["devices"]["1-1"]["driver"] == ""
    w.desk.unplug("1-1")


def test_only_the_expected_one(w: World) -> None:
    w.desk.plug("1-1", KEYBOARD)
    options = ("1", "expect-vendor-id", "q", "1")
    w.refused("DeviceChanged", ALICE, "Export", "ssa{sv}", "pi", "1-1", *options)
    export(w, "1-1", "expect-vendor-id", "q", str(KEYBOARD.vendor_id))


def test_the_remote_lacks_the_module_or_a_port(w: World) -> None:
    w.desk.plug("1-1", KEYBOARD)
    w.desk.plug("2-1", STICK)
    paths = [export(w, "1-1")]
    w.pi.fail("attach", "EBUSY", -1)
    w.refused("NoFreePort", ALICE, "Export", "ssa{sv}", "pi", "2-1", "0", says="pi")
    w.pi.fail("attach", "EBUSY", 0)
    wait_until(lambda: w.attachments() == paths, "the attachment is left")
    # Taken by another program between looking and attaching: the next one is tried.
    w.pi.fail("attach", "EBUSY", 1)
    paths.append(export(w, "2-1"))
    assert len({shown(w, path)["Port"] for path in paths}) == 2
    assert w.desk.state()["devices"]["2-1"]["driver"] == "usbip-host"


def test_the_doctor_looks_at_what_it_needs(w: World) -> None:
    def found() -> dict[str, dict[str, Any]]:
        told = w.call(ALICE, "Preflight", "sa{sv}", "pi", "0")
        assert {one["ok"] for one in told if one["id"].startswith("export-")} == {"ok"}
        return {f"{one['machine']} {one['id']}": one for one in told}

    def free(findings: dict[str, dict[str, Any]], kind: str) -> int:
        summary = findings[f"there export-ports-{kind}"]["summary"]
        return next(int(word) for word in summary.split() if word.isdigit())

    w.desk.plug("1-1", KEYBOARD)
    # Both modules are loaded by now.
    path = export(w, "1-1")
    during = found()
    assert "vhci-hcd" in during["there export-module"]["summary"]
    assert "usbip-host" in during["here export-module"]["summary"]
    w.call(ALICE, "Detach", "sa{sv}", path, "0")
    after = found()
    assert free(after, "hs") == free(during, "hs") + 1
    assert free(after, "ss") == free(during, "ss") > 0


def test_pulled_out_it_ends_and_leaves_nothing(w: World) -> None:
    w.desk.plug("1-1", STICK)
    export(w, "1-1")
    w.desk.unplug("1-1")
    wait_until(lambda: not w.attachments(), "the attachment is left")
    w.check_clean()


def test_kept_it_comes_back_in_another_port(w: World) -> None:
    w.desk.plug("1-1", STICK)
    path = export(w, "SanDisk", "keep", "b", "true")
    w.desk.unplug("1-1")
    wait_until(lambda: shown(w, path)["State"] == "waiting", "it is not waited for")
    w.pi.wait(lambda s: not s["ports"])
    w.desk.plug("1-4", STICK)
    wait_until(lambda: shown(w, path)["State"] == "attached", "it is not back")
    assert shown(w, path)["LocalBusId"] == "1-4"
    w.call(ALICE, "Detach", "sa{sv}", path, "0")
    w.check_clean()


def test_another_device_in_its_place_is_not_exported(w: World) -> None:
    w.desk.plug("1-1", STICK)
    path = export(w, "1-1", "keep", "b", "true")
    w.desk.unplug("1-1")
    w.desk.plug("1-1", KEYBOARD)
    changed = "org.usbipssh1.Error.DeviceChanged"
    wait_until(lambda: shown(w, path)["LastError"][0] == changed, "nobody noticed")
    assert w.desk.state()["devices"]["1-1"]["driver"] == "usb"


def test_what_carries_the_network_takes_the_place_of_nothing_else(w: World) -> None:
    w.driver("kernel/drivers/net/usb/asix.ko", "v061Dp0002d*dc*dsc*dp*ic*isc*ip*in*")
    serial = SERIAL_ADAPTER.but(vendor_id=0x061D, product_id=1, product="Box")
    w.desk.plug("1-1", serial)
    path = export(w, "FTDI Box", "keep", "b", "true")
    w.desk.unplug("1-1")
    w.desk.plug("1-1", serial.but(product_id=2))
    changed = "org.usbipssh1.Error.DeviceChanged"
    wait_until(lambda: shown(w, path)["LastError"][0] == changed, "nobody noticed")
    assert w.desk.state()["devices"]["1-1"]["driver"] == "usb"
    w.call(ALICE, "Detach", "sa{sv}", path, "0")
    # Exported as what it is, it comes back.
    path = export(w, "FTDI Box", "keep", "b", "true")
    w.desk.unplug("1-1")
    wait_until(lambda: shown(w, path)["State"] == "waiting", "it is not waited for")
    w.desk.plug("1-1", serial.but(product_id=2))
    wait_until(lambda: shown(w, path)["State"] == "attached", "it is not back")


def test_detached_by_somebody_there_it_ends(w: World) -> None:
    w.desk.plug("1-1", KEYBOARD)
    told = shown(w, export(w, "1-1"))
    port = w.pi.root / "devices/platform/vhci_hcd.0/detach"
    port.write_text(str(told["Port"]))
    wait_until(lambda: not w.attachments(), "the attachment is left")
    w.check_clean()


def test_bytes_are_counted(w: World) -> None:
    w.desk.plug("1-1", STICK)
    path = export(w, "1-1")
    w.pi.transfer(shown(w, path)["Port"], 50_000)
    told = w.call(ALICE, "GetStatistics", "a{sv}", "0", path=path, interface=ATTACHMENT)
    assert told["received"] >= 50_000
    assert told["sent"] >= 50_000


def test_what_goes_wrong_on_the_way_is_undone(w: World) -> None:
    w.desk.plug("1-1", STICK)
    for kernel, operation in ((w.desk, "bind"), (w.desk, "sockfd"), (w.pi, "enumerate")):
        kernel.fail(operation, "EIO", 1)
        answer = w.ask(ALICE, "Export", "ssa{sv}", "pi", "1-1", "0")
        assert answer.error, operation
        assert answer.message.endswith("."), answer.message
        wait_until(lambda: not w.attachments(), "the attachment is left")
        w.check_clean()
    export(w, "1-1")


def agents_here(w: World) -> list[int]:
    """The processes of the agent of this machine."""
    return [p for p, words in command_lines() if words[-2:-1] == [os.fsencode(w.desk.root)]]


def folders_here(w: World) -> set[Path]:
    """What agents of this machine have made in /run, where other tests' come and go."""
    found = set()
    for note in Path("/run").glob("usbipssh.*/held/agent"):
        with contextlib.suppress(FileNotFoundError):
            if os.fspath(w.desk.root) in note.read_text():
                found.add(note.parent.parent)
    return found


@pytest.mark.parametrize("where", ["here", "there"])
def test_an_agent_is_killed(w: World, where: str) -> None:
    w.desk.plug("1-1", STICK)
    path = export(w, "1-1", "keep", "b", "true")
    since = shown(w, path)["AttachedAt"]
    agents = agents_here(w) if where == "here" else w.agents()
    assert agents
    for pid in agents:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def is_back() -> bool:
        told = shown(w, path)
        return bool(told["State"] == "attached" and told["AttachedAt"] > since)

    wait_until(is_back, "it did not come back")
    w.call(ALICE, "Detach", "sa{sv}", path, "0")
    w.check_clean()


def test_nothing_runs_here_for_what_is_exported_no_longer(w: World) -> None:
    w.desk.plug("1-1", STICK)
    w.desk.plug("1-2", KEYBOARD)
    paths = [export(w, "1-1"), export(w, "1-2")]
    (folder,) = folders_here(w)
    w.call(ALICE, "Detach", "sa{sv}", paths[0], "0")
    assert agents_here(w)
    w.call(ALICE, "Detach", "sa{sv}", paths[1], "0")
    wait_until(lambda: not agents_here(w), "an agent is left")
    assert not folder.exists()


def test_its_caller_leaves(w: World) -> None:
    w.desk.plug("1-1", KEYBOARD)
    export(w, "1-1", "bind-to-caller", "b", "true")
    # busctl has left the bus when it ends.
    wait_until(lambda: not w.attachments(), "the attachment is left")
    w.check_clean()
