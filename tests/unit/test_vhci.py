# SPDX-License-Identifier: GPL-3.0-or-later
"""vhci's ports as several kernels show them, and what is written to its files."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.made import CAPTURES, captured, fill, link, refused, status_text, vhci_tree

import usbipsshd.vhci
from usbipsshd.errors import Code
from usbipsshd.vhci import ASSIGNED, ERROR, FREE, USED, Port, Vhci, parse_status, speed_code

NEW = """hub port sta spd dev      sockfd local_busid
hs  0000 006 003 00010002 000003 3-1
hs  0001 005 000 00000000 000000 0-0
ss  0008 004 000 00000000 000000 0-0
ss  0009 007 000 00000000 000000 0-0
"""
# Linux 4.13 to 4.18 without the hub column's later friends: a socket's address, not its number.
ADDRESS = """hub port sta spd dev      socket           local_busid
hs  0000 006 002 00030004 ffff8800c5a7bb80 5-1
hs  0001 004 000 00000000 0000000000000000 0-0
"""
# Before 4.13: one pool, and a used line has a column less than the header says.
OLD = """prt sta spd bus dev socket           local_busid
000 006 003 00010002 ffff8800c5a7bb80 3-1.2
001 004 000 000 000 0000000000000000 0-0
002 005 000 000 000 0000000000000000 0-0
"""


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        (
            NEW,
            [
                Port(0, False, USED, 0x10002, "3-1", 7),
                Port(1, False, ASSIGNED, 0, "", 7),
                Port(8, True, FREE, 0, "", 7),
                Port(9, True, ERROR, 0, "", 7),
            ],
        ),
        (ADDRESS, [Port(0, False, USED, 0x30004, "5-1", 7), Port(1, False, FREE, 0, "", 7)]),
        (
            OLD,
            [
                Port(0, False, USED, 0x10002, "3-1.2", 7),
                Port(1, False, FREE, 0, "", 7),
                Port(2, False, ASSIGNED, 0, "", 7),
            ],
        ),
        ("", []),
        ("hub port sta spd dev      sockfd local_busid\n", []),
        (NEW.splitlines()[0] + "\nhs 0000 006\n\nhs x 004 000 0 0 0-0\nnonsense\nhs\n", []),
        (NEW.splitlines()[0] + "\nhs 0000 006 003 zz 000003 3-1\n", []),
    ],
)
def test_status_of_several_kernels(text: str, ports: list[Port]) -> None:
    assert parse_status(text, 7) == ports


@settings(max_examples=150)
@given(st.text(max_size=80) | st.text(alphabet="hs 0123456789-.\n", max_size=120))
def test_any_status_is_read(noise: str) -> None:
    for text in (noise, NEW + noise, "\n" + noise):
        for port in parse_status(text):
            assert port.state == USED or port.devid == 0


@pytest.mark.parametrize(
    ("name", "used"),
    [
        ("desk-loaded", {}),
        ("desk-one", {23: (True, 0x20002, "4-9")}),
        (
            "desk-three",
            {
                0: (False, 0x10002, "3-1"),
                1: (False, 0x10004, "3-2"),
                23: (True, 0x20002, "4-9"),
            },
        ),
    ],
)
def test_a_real_kernel(tmp_path: Path, name: str, used: dict[int, tuple[bool, int, str]]) -> None:
    assert CAPTURES.is_dir()
    vhci = Vhci(captured(name, tmp_path))
    ports = vhci.ports()
    assert len(ports) == 240
    assert [p.number for p in ports] == list(range(240))
    found = {p.number: (p.super_speed, p.devid, p.local_busid) for p in ports if p.state == USED}
    assert found == used
    fast = sum(f for f, _, _ in used.values())
    assert vhci.free() == {"hs": 120 - len(used) + fast, "ss": 120 - fast}
    for port in (ports[0], ports[15], ports[30], ports[239]):
        bus = vhci.bus(port)
        assert bus is not None
        assert bus.parent.name == f"vhci_hcd.{port.controller}"
        assert (bus / "speed").read_text() == ("5000\n" if port.super_speed else "480\n")


def test_a_machine_without_the_module(tmp_path: Path) -> None:
    vhci = Vhci(tmp_path)
    assert (vhci.available, vhci.ports(), vhci.free()) == (False, [], {"hs": 0, "ss": 0})
    assert not vhci.detach(0)
    with refused(Code.MODULE_UNAVAILABLE, "vhci-hcd"):
        vhci.candidates(480)
    with refused(Code.MODULE_UNAVAILABLE):
        vhci.attach([], 3, 1, 480)


@pytest.mark.parametrize("state", ["coming", "going"])
def test_a_module_that_is_being_loaded_is_not_looked_at(tmp_path: Path, state: str) -> None:
    vhci_tree(tmp_path)
    vhci = Vhci(tmp_path)
    assert (vhci.loading, vhci.available) == (False, True)
    fill(tmp_path / "module/vhci_hcd", initstate=state)
    # To read its status now could take the kernel down.
    assert (vhci.loading, vhci.available) == (True, False)
    assert vhci.ports() == []
    assert vhci.free() == {"hs": 0, "ss": 0}
    fill(tmp_path / "module/vhci_hcd", initstate="live")
    assert (vhci.loading, vhci.available) == (False, True)
    assert len(vhci.ports()) == 4


def test_an_old_kernels_folder(tmp_path: Path) -> None:
    folder = fill(tmp_path / "devices/platform/vhci_hcd", attach="", detach="", status=OLD)
    hub = fill(folder / "usb3", speed=480)
    link(tmp_path / "bus/usb/devices/usb3", hub)
    vhci = Vhci(tmp_path)
    port = vhci.port(1)
    assert port is not None
    assert vhci.candidates(480) == [port]
    assert vhci.bus(port) == hub
    with refused(Code.NO_FREE_PORT):
        vhci.candidates(5000)


@pytest.mark.parametrize(
    ("speed", "code"), [(1.5, 1), (12, 2), (480, 3), (5000, 5), (10000, 5), (20000, 5)]
)
def test_the_speeds_that_vhci_knows(speed: float, code: int) -> None:
    assert speed_code(speed) == code


@pytest.mark.parametrize("speed", [0, 53.3, 40000, -1])
def test_an_unknown_speed_is_refused(speed: float, tmp_path: Path) -> None:
    vhci_tree(tmp_path)
    with refused(Code.DEVICE_FAILED, f"{speed:g} Mbit/s"):
        Vhci(tmp_path).candidates(speed)


@pytest.mark.parametrize(
    ("speed", "numbers"), [(1.5, [0, 1]), (480, [0, 1]), (5000, [2, 3]), (20000, [2, 3])]
)
def test_each_speed_has_its_own_ports(tmp_path: Path, speed: float, numbers: list[int]) -> None:
    vhci_tree(tmp_path)
    assert [p.number for p in Vhci(tmp_path).candidates(speed)] == numbers


class Refusing:
    """Stands for the kernel behind ``attach``: refuses with the errors it is given."""

    def __init__(self, folder: Path, *errors: int, taken: dict[int, str] | None = None) -> None:
        self.errors = list(errors)
        self.written: list[str] = []
        self._folder = folder
        self._taken = taken or {}

    def __call__(self, path: Path, text: str) -> None:
        self.written.append(f"{path.name} {text}")
        if self.errors:
            number = self.errors.pop(0)
            fill(self._folder, status=status_text(self._taken))
            raise OSError(number, "refused")


TAKEN = "006 003 00090009 000003 3-1"


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EINVAL])
def test_a_port_that_was_taken_meanwhile_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    kernel = Refusing(vhci_tree(tmp_path), number, taken={0: TAKEN})
    vhci = Vhci(tmp_path)
    ports = vhci.candidates(480)
    monkeypatch.setattr(usbipsshd.vhci, "write", kernel)
    assert vhci.attach(ports, 9, 0x10002, 480) == ports[1]
    assert kernel.written == ["attach 0 9 65538 3", "attach 1 9 65538 3"]


def test_every_port_was_taken_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = {0: TAKEN, 1: TAKEN}
    kernel = Refusing(vhci_tree(tmp_path), errno.EBUSY, errno.EBUSY, taken=taken)
    vhci = Vhci(tmp_path)
    ports = vhci.candidates(480)
    monkeypatch.setattr(usbipsshd.vhci, "write", kernel)
    with refused(Code.NO_FREE_PORT):
        vhci.attach(ports, 9, 0x10002, 480)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBUSY, errno.ENOMEM])
def test_a_kernel_that_refuses_a_free_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    kernel = Refusing(vhci_tree(tmp_path), number)
    vhci = Vhci(tmp_path)
    ports = vhci.candidates(480)
    monkeypatch.setattr(usbipsshd.vhci, "write", kernel)
    with refused(Code.DEVICE_FAILED, "refused"):
        vhci.attach(ports, 9, 0x10002, 480)
    assert len(kernel.written) == 1


def test_detaching_writes_the_port_without_a_newline(tmp_path: Path) -> None:
    folder = vhci_tree(tmp_path)
    (folder / "detach").write_bytes(b"")
    assert Vhci(tmp_path).detach(3)
    assert (folder / "detach").read_bytes() == b"3"


def test_detaching_a_free_port_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usbipsshd.vhci, "write", Refusing(vhci_tree(tmp_path), errno.EINVAL))
    assert not Vhci(tmp_path).detach(3)
