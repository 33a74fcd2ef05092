# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of a session's socket on a made-up machine, moment by moment."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from unit.made import (
    KEYBOARD,
    STICK,
    configure,
    fill,
    here,
    plug,
    raw_descriptors,
    refused,
    run,
    settle,
    status_text,
    vhci_tree,
)

import usbipsshd.importer
import usbipsshd.usable
from usbipsshd.device import Device
from usbipsshd.errors import Code
from usbipsshd.hold import Hold
from usbipsshd.importer import Imported, Importer, check_socket
from usbipsshd.localusb import LocalUsb
from usbipsshd.takenports import TakenPorts
from usbipsshd.udev import Events
from usbipsshd.vhci import Vhci

ASSIGNED = "005 000 00000000 000000 0-0"


class Kernel(Events):
    """Does the next thing that the kernel would do whenever somebody waits for news."""

    def __init__(self, *steps: Callable[[], None]) -> None:
        super().__init__()
        self._steps = list(steps)
        self.idle = asyncio.Event()

    async def wait(self, seconds: float) -> None:
        if self._steps:
            self._steps.pop(0)()
            await asyncio.sleep(0)
            return
        self.idle.set()
        await asyncio.sleep(0.005)


class Machine:
    """A made-up machine with an importer."""

    def __init__(self, root: Path) -> None:
        self.sys = root / "sys"
        self.udev = root / "udev"
        self.vhci = vhci_tree(self.sys)
        self.devices = self.sys / "bus/usb/devices"
        self.hold = Hold(self.sys, root / "held.json")
        self.loaded: list[str] = []
        self.taken: list[Imported] = []

    def importer(self, *steps: Callable[[], None]) -> tuple[Importer, Kernel]:
        kernel = Kernel(*steps)

        async def modprobe(name: str) -> bool:
            self.loaded.append(name)
            return True

        usb = LocalUsb(self.sys, self.udev)
        taken_ports = TakenPorts(self.sys.parent / "taken-ports.json")
        made = Importer(Vhci(self.sys), usb, self.hold, kernel, modprobe, taken_ports=taken_ports)
        return made, kernel

    def status(self, **used: str) -> None:
        """Ports by name, ``p2="006 …"``."""
        text = status_text({int(name[1:]): rest for name, rest in used.items()})
        fill(self.vhci, status=text)

    def take(self, imported: Imported) -> None:
        """A port was written to ``attach``: it is no longer free."""
        if not self.taken:
            self.status(**{f"p{imported.port}": ASSIGNED})
        self.taken.append(imported)

    def take_beside(self, imported: Imported, **used: str) -> None:
        """Likewise, while other ports are ``used``."""
        if not imported.local_busid:
            self.status(**{f"p{imported.port}": ASSIGNED}, **used)

    def used(self, approved: Device, busid: str) -> str:
        return f"006 005 {approved.devid:08x} 000003 {busid}"

    def arrives(self, device: Device) -> None:
        """A stick's port is in use: the device enumerated, and waits for its authorization."""
        self.status(p2=self.used(STICK, device.busid))
        plug(self.sys, device, authorized=False)

    def becomes(self, device: Device) -> None:
        """The same port has another device now."""
        plug(self.sys, device)

    def binds(self, device: Device) -> None:
        """The kernel binds drivers to what is authorized, and to nothing else."""
        if self.authorized(device.busid) == "1":
            configure(self.sys, device)

    def authorized(self, busid: str) -> str:
        return (self.devices / busid / "authorized").read_text().strip()

    def leaves(self, busid: str) -> None:
        """The port is free, and the device has gone."""
        self.status()
        shutil.rmtree(self.devices / busid, ignore_errors=True)

    def detached(self) -> str:
        return (self.vhci / "detach").read_text().strip()

    def default(self, bus: int) -> str:
        return (self.devices / f"usb{bus}" / "authorized_default").read_text().strip()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def fd() -> Iterator[int]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours.fileno()


ARRIVED = here(STICK, "4-1")


def test_the_approved_device_is_usable_when_attach_returns(machine: Machine, fd: int) -> None:
    async def main() -> None:
        importer, _ = machine.importer(
            lambda: machine.arrives(ARRIVED), lambda: machine.binds(ARRIVED)
        )
        imported = await importer.attach(fd, STICK, machine.take)
        assert imported == Imported(2, STICK.devid, "4-1")
        assert machine.taken == [Imported(2, STICK.devid, ""), imported]
        written = (machine.vhci / "attach").read_text().split()
        assert written == ["2", str(fd), str(STICK.devid), "5"]
        assert machine.authorized("4-1") == "1"
        assert importer.nodes("4-1") == ["/dev/sda", "/dev/sg0"]
        assert importer.present(imported)
        # For as long as it is attached: after a reset it may be anything.
        assert machine.default(4) == "0"
        importer.detach(imported)
        importer.settle()
        assert machine.default(4) == "0"
        machine.leaves("4-1")
        importer.settle()
        assert machine.default(4) == "1"

    run(main())


def test_a_stick_is_usable_only_with_its_disk(machine: Machine, fd: int) -> None:
    generic = replace(ARRIVED, interfaces=(replace(STICK.interfaces[0], nodes=("sg0",)),))

    async def main() -> None:
        importer, _ = machine.importer(
            lambda: machine.arrives(ARRIVED),
            lambda: machine.binds(generic),
            lambda: machine.binds(ARRIVED),
        )
        await importer.attach(fd, STICK, machine.take)
        assert importer.nodes("4-1") == ["/dev/sda", "/dev/sg0"]

    run(main())


def test_a_device_is_usable_only_when_udev_is_done_with_its_nodes(
    machine: Machine, fd: int
) -> None:
    machine.udev.mkdir()
    node = machine.udev / "c8:0"

    async def main() -> None:
        importer, _ = machine.importer(
            lambda: machine.arrives(ARRIVED), lambda: machine.binds(ARRIVED), node.touch
        )
        await importer.attach(fd, STICK, machine.take)
        assert node.exists()

    run(main())


def test_a_udev_that_is_never_done_is_no_failure(
    machine: Machine, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usbipsshd.importer, "UDEV_SECONDS", 0.05)
    machine.udev.mkdir()

    async def main() -> None:
        importer, _ = machine.importer(
            lambda: machine.arrives(ARRIVED), lambda: machine.binds(ARRIVED)
        )
        assert (await importer.attach(fd, STICK, machine.take)).local_busid == "4-1"

    run(main())


def test_no_driver_sees_a_device_before_it_was_looked_at(machine: Machine, fd: int) -> None:
    seen: list[tuple[str, str]] = []

    def look() -> None:
        machine.arrives(ARRIVED)
        seen.append((machine.default(4), machine.authorized("4-1")))

    async def main() -> None:
        importer, _ = machine.importer(look, lambda: machine.binds(ARRIVED))
        await importer.attach(fd, STICK, machine.take)
        assert seen == [("0", "0")]

    run(main())


IMPOSTOR = here(
    replace(STICK, descriptors=raw_descriptors(0x46F4, 1, (8, 6, 0x50), (3, 1, 1))), "4-1"
)


def test_another_device_than_the_approved_one_is_never_authorized(
    machine: Machine, fd: int
) -> None:
    async def main() -> None:
        importer, _ = machine.importer(lambda: machine.arrives(IMPOSTOR))
        with refused(Code.DEVICE_CHANGED):
            await importer.attach(fd, STICK, machine.take)
        assert machine.authorized("4-1") == "0"
        assert machine.detached() == "2"
        machine.leaves("4-1")
        importer.settle()
        assert machine.default(4) == "1"

    run(main())


def test_one_that_becomes_another_as_it_is_authorized_is_let_go(machine: Machine, fd: int) -> None:
    async def main() -> None:
        importer, _ = machine.importer(
            lambda: machine.arrives(ARRIVED), lambda: machine.becomes(IMPOSTOR)
        )
        with refused(Code.DEVICE_CHANGED):
            await importer.attach(fd, STICK, machine.take)
        assert machine.detached() == "2"

    run(main())


def test_one_that_becomes_another_later_is_noticed(machine: Machine, fd: int) -> None:
    async def main() -> None:
        importer, _ = machine.importer(
            lambda: machine.arrives(ARRIVED), lambda: machine.binds(ARRIVED)
        )
        imported = await importer.attach(fd, STICK, machine.take)
        assert importer.changed(imported) is None
        machine.becomes(IMPOSTOR)
        changed = importer.changed(imported)
        assert changed is not None
        assert changed.code is Code.DEVICE_CHANGED
        importer.detach(imported)
        assert machine.detached() == "2"
        assert importer.changed(imported) is None

    run(main())


def test_a_rejected_device_stays_unauthorized_while_the_next_one_comes(
    machine: Machine, fd: int
) -> None:
    async def main() -> None:
        importer, kernel = machine.importer(lambda: machine.arrives(IMPOSTOR))
        with refused(Code.DEVICE_CHANGED):
            await importer.attach(fd, STICK, machine.take)
        # Its port is not free yet, and its folder still there: the kernel is not so fast.
        second = here(STICK, "4-2", 3)
        rejected = machine.used(STICK, "4-1")

        def next_one() -> None:
            machine.status(p2=rejected, p3=machine.used(STICK, "4-2"))
            plug(machine.sys, second, authorized=False)

        machine.status(p2=rejected)
        kernel._steps += [next_one, lambda: machine.binds(second)]
        await importer.attach(fd, STICK, lambda i: machine.take_beside(i, p2=rejected))
        assert machine.authorized("4-2") == "1"
        assert machine.authorized("4-1") == "0"

    run(main())


def test_a_cancelled_device_is_not_authorized(machine: Machine, fd: int) -> None:
    half = replace(ARRIVED, descriptors=b"")

    async def main() -> None:
        importer, kernel = machine.importer(lambda: machine.arrives(half))
        task = asyncio.create_task(importer.attach(fd, STICK, machine.take))
        await kernel.idle.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert machine.authorized("4-1") == "0"
        assert machine.detached() == "2"
        machine.leaves("4-1")
        importer.settle()
        assert machine.default(4) == "1"

    run(main())


def test_a_rejected_device_is_detached_while_new_ones_are_held(
    machine: Machine, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[str] = []

    def detach(number: int) -> bool:
        held.append(machine.default(4))
        return True

    async def main() -> None:
        importer, _ = machine.importer(lambda: machine.arrives(IMPOSTOR))
        monkeypatch.setattr(importer.vhci, "detach", detach)
        with refused(Code.DEVICE_CHANGED):
            await importer.attach(fd, STICK, machine.take)
        assert held == ["0"]

    run(main())


def test_what_other_programs_attach_meanwhile_is_let_through(machine: Machine, fd: int) -> None:
    other = here(KEYBOARD, "4-2", 3)

    def both() -> None:
        machine.arrives(ARRIVED)
        plug(machine.sys, other, authorized=False)

    async def main() -> None:
        importer, _ = machine.importer(both, lambda: machine.binds(ARRIVED))
        await importer.attach(fd, STICK, machine.take)
        assert machine.authorized("4-2") == "1"

    run(main())


def test_a_machine_whose_policy_holds_new_devices_is_obeyed(
    machine: Machine, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usbipsshd.usable, "BIND_SECONDS", 0.05)
    fill(machine.vhci / "usb4", authorized_default=0)

    async def main() -> None:
        importer, _ = machine.importer(lambda: machine.arrives(ARRIVED))
        await importer.attach(fd, STICK, machine.take)
        assert machine.authorized("4-1") == "0"
        assert machine.default(4) == "0"

    run(main())


@pytest.mark.parametrize(
    "news",
    [
        pytest.param({}, id="the port is free again"),
        pytest.param({"p2": "007 000 00000000 000000 0-0"}, id="the port is in error"),
        pytest.param({"p2": "006 005 00090009 000003 4-1"}, id="the port is another's"),
    ],
)
def test_a_device_that_vanishes_while_it_starts(
    machine: Machine, fd: int, news: dict[str, str]
) -> None:
    async def main() -> None:
        importer, _ = machine.importer(lambda: machine.status(**news))
        with refused(Code.DEVICE_FAILED, "went away"):
            await importer.attach(fd, STICK, machine.take)
        machine.leaves("4-1")
        importer.settle()
        assert machine.default(4) == "1"

    run(main())


def test_a_device_that_never_answers(
    machine: Machine, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usbipsshd.importer, "APPEAR_SECONDS", 0.05)

    async def main() -> None:
        importer, _ = machine.importer()
        with refused(Code.TIMED_OUT):
            await importer.attach(fd, STICK, machine.take)
        assert machine.detached() == "2"
        machine.leaves("4-1")
        importer.settle()
        assert machine.default(4) == "1"

    run(main())


def test_a_missing_driver_is_no_failure(
    machine: Machine, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usbipsshd.usable, "BIND_SECONDS", 0.05)
    driverless = replace(ARRIVED, interfaces=(replace(STICK.interfaces[0], nodes=(), driver=""),))

    async def main() -> None:
        importer, _ = machine.importer(
            lambda: machine.arrives(ARRIVED), lambda: machine.binds(driverless)
        )
        assert (await importer.attach(fd, STICK, machine.take)).local_busid == "4-1"

    run(main())


@pytest.mark.parametrize(
    ("now", "detached"),
    [
        pytest.param(f"006 005 {STICK.devid:08x} 000003 4-1", "2", id="ours"),
        pytest.param("007 000 00000000 000000 0-0", "2", id="ours, in error"),
        pytest.param("006 005 00090009 000003 4-1", "", id="another's by now"),
        pytest.param("004 000 00000000 000000 0-0", "", id="free by now"),
    ],
)
def test_only_our_own_port_is_freed_and_only_once(
    machine: Machine, fd: int, now: str, detached: str
) -> None:
    async def main() -> None:
        importer, _ = machine.importer(
            lambda: machine.arrives(ARRIVED), lambda: machine.binds(ARRIVED)
        )
        imported = await importer.attach(fd, STICK, machine.take)
        machine.status(p2=now)
        importer.detach(imported)
        assert machine.detached() == detached
        # Whoever has the port from now on is somebody else.
        fill(machine.vhci, detach="")
        machine.status(p2=ASSIGNED)
        importer.detach(imported)
        assert machine.detached() == ""

    run(main())


def test_one_that_is_the_same_after_a_reset_is_started_again(machine: Machine, fd: int) -> None:
    async def main() -> None:
        importer, _ = machine.importer(
            lambda: machine.arrives(ARRIVED), lambda: machine.binds(ARRIVED)
        )
        imported = await importer.attach(fd, STICK, machine.take)
        plug(machine.sys, replace(ARRIVED, devnum=3), authorized=False)
        importer.settle()
        assert machine.authorized("4-1") == "0"
        assert importer.changed(imported) is None
        assert machine.authorized("4-1") == "1"
        # Whoever forbids it from now on is obeyed.
        fill(machine.devices / "4-1", authorized=0)
        assert importer.changed(imported) is None
        assert machine.authorized("4-1") == "0"

    run(main())


def test_one_that_is_another_after_a_reset_is_never_authorized(machine: Machine, fd: int) -> None:
    async def main() -> None:
        importer, _ = machine.importer(
            lambda: machine.arrives(ARRIVED), lambda: machine.binds(ARRIVED)
        )
        imported = await importer.attach(fd, STICK, machine.take)
        plug(machine.sys, replace(IMPOSTOR, devnum=3), authorized=False)
        importer.settle()
        changed = importer.changed(imported)
        assert changed is not None
        assert changed.code is Code.DEVICE_CHANGED
        importer.detach(imported)
        importer.settle()
        assert machine.authorized("4-1") == "0"
        machine.leaves("4-1")
        importer.settle()
        assert machine.default(4) == "1"

    run(main())


def test_while_it_enumerates_anew_it_is_ours_all_the_same(machine: Machine, fd: int) -> None:
    async def main() -> None:
        importer, _ = machine.importer(
            lambda: machine.arrives(ARRIVED), lambda: machine.binds(ARRIVED)
        )
        await importer.attach(fd, STICK, machine.take)
        machine.status(p2=ASSIGNED)
        plug(machine.sys, replace(IMPOSTOR, devnum=3), authorized=False)
        importer.settle()
        assert machine.authorized("4-1") == "0"

    run(main())


class Killed:
    """A daemon that was killed with a device on its port, and the one after it."""

    def __init__(self, machine: Machine, fd: int) -> None:
        self.machine, self._fd = machine, fd

    async def attached(self) -> Imported:
        importer, _ = self.machine.importer(
            lambda: self.machine.arrives(ARRIVED), lambda: self.machine.binds(ARRIVED)
        )
        return await importer.attach(self._fd, STICK, self.machine.take)

    def next_one(self) -> Importer:
        self.machine.hold = Hold(self.machine.sys, self.machine.sys.parent / "held.json")
        importer, _ = self.machine.importer()
        importer.recover()
        return importer


@pytest.fixture
def killed(machine: Machine, fd: int) -> Killed:
    return Killed(machine, fd)


def test_what_is_taken_over_stays_and_its_bus_held(machine: Machine, killed: Killed) -> None:
    async def main() -> None:
        imported = await killed.attached()
        other = here(KEYBOARD, "4-2", 3)
        plug(machine.sys, other, authorized=False)
        importer = killed.next_one()
        assert machine.default(4) == "0"
        assert importer.take_over(imported, STICK)
        importer.give_up_rest()
        assert machine.detached() == ""
        assert (machine.authorized("4-2"), machine.default(4)) == ("1", "0")
        importer.detach(imported)
        machine.leaves("4-1")
        importer.settle()
        assert machine.default(4) == "1"

    run(main())


def test_what_became_another_one_while_no_daemon_ran(machine: Machine, killed: Killed) -> None:
    async def main() -> None:
        imported = await killed.attached()
        plug(machine.sys, replace(IMPOSTOR, devnum=3), authorized=False)
        importer = killed.next_one()
        assert importer.take_over(imported, STICK)
        importer.give_up_rest()
        changed = importer.changed(imported)
        assert changed is not None
        assert changed.code is Code.DEVICE_CHANGED
        assert machine.authorized("4-1") == "0"

    run(main())


def test_what_nobody_takes_over_is_detached_before_anything_is_let_through(
    machine: Machine, killed: Killed
) -> None:
    async def main() -> None:
        await killed.attached()
        plug(machine.sys, replace(IMPOSTOR, devnum=3), authorized=False)
        importer = killed.next_one()
        importer.give_up_rest()
        assert machine.detached() == "2"
        assert (machine.authorized("4-1"), machine.default(4)) == ("0", "0")
        machine.leaves("4-1")
        importer.settle()
        assert machine.default(4) == "1"

    run(main())


def test_a_port_that_is_another_ones_by_now_is_left_alone(machine: Machine, killed: Killed) -> None:
    async def main() -> None:
        await killed.attached()
        machine.status(p2="006 005 00090009 000003 4-1")
        importer = killed.next_one()
        importer.give_up_rest()
        assert machine.detached() == ""
        assert machine.default(4) == "1"

    run(main())


def test_gone_waits_for_the_port_and_not_for_ever(machine: Machine) -> None:
    async def main() -> None:
        imported = Imported(2, STICK.devid, "4-1")
        machine.status(p2=machine.used(STICK, "4-1"))
        importer, _ = machine.importer(lambda: None, machine.status)
        await importer.gone(imported, 5)
        assert not importer.present(imported)
        machine.status(p2=machine.used(STICK, "4-1"))
        await importer.gone(imported, 0.05)
        assert importer.present(imported)

    run(main(), 3)


def test_prepare_loads_the_module_and_says_what_is_missing(machine: Machine) -> None:
    async def main() -> None:
        importer, _ = machine.importer()
        await importer.prepare(480)
        assert machine.loaded == []
        machine.status(p0=ASSIGNED, p1=ASSIGNED)
        with refused(Code.NO_FREE_PORT, "USB 2"):
            await importer.prepare(12)
        await importer.prepare(5000)
        (machine.vhci / "attach").unlink()
        with refused(Code.MODULE_UNAVAILABLE, "vhci-hcd"):
            await importer.prepare(480)
        assert machine.loaded == ["vhci-hcd"]

    run(main())


def test_network_interfaces_have_no_device_node(machine: Machine) -> None:
    interface = replace(STICK.interfaces[0], nodes=("net/eth1", "ttyACM0"))
    plug(machine.sys, replace(ARRIVED, interfaces=(interface,)))

    async def main() -> None:
        importer, _ = machine.importer()
        assert importer.nodes("4-1") == ["/dev/ttyACM0"]
        assert importer.nodes("4-7") == []

    run(main())


def _pair(kind: socket.SocketKind) -> list[socket.socket]:
    return list(socket.socketpair(socket.AF_UNIX, kind))


def _listening() -> list[socket.socket]:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(b"\0usbipsshd-unit-%d" % os.getpid())
    sock.listen()
    return [sock]


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: _pair(socket.SOCK_SEQPACKET), id="packets"),
        pytest.param(lambda: _pair(socket.SOCK_DGRAM), id="datagrams"),
        pytest.param(_listening, id="listening"),
        pytest.param(lambda: [socket.socket(socket.AF_UNIX)], id="not connected"),
        pytest.param(lambda: [socket.socket(socket.AF_INET)], id="not of this machine"),
    ],
)
def test_only_a_connected_stream_socket_goes_to_the_kernel(
    make: Callable[[], list[socket.socket]],
) -> None:
    sockets = make()
    try:
        with refused(Code.FAILED):
            check_socket(sockets[0].fileno())
        sockets[0].getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
    finally:
        for sock in sockets:
            sock.close()


def test_a_file_is_no_socket_and_what_is_refused_touches_nothing(
    machine: Machine, tmp_path: Path
) -> None:
    async def main() -> None:
        importer, _ = machine.importer()
        with (tmp_path / "file").open("w") as file, refused(Code.FAILED):
            await importer.attach(file.fileno(), STICK, machine.take)
        assert machine.taken == []
        assert (machine.vhci / "attach").read_text().strip() == ""
        await settle()

    run(main())


def test_a_connected_stream_socket_is_accepted_and_stays_open(fd: int) -> None:
    check_socket(fd)
    os.fstat(fd)
