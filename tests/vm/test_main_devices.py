# SPDX-License-Identifier: GPL-3.0-or-later
"""Other kinds of devices, and several at once."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from vm.testbed.desk import Desk
from vm.testbed.keys import KeyEvent, key_events
from vm.testbed.pair import Pair
from vm.testbed.pi import BUSIDS, Pi
from vm.testbed.systems import stick_files

pytestmark = pytest.mark.usefixtures("listed")

KEY_A, KEY_B, KEY_LEFTSHIFT = 30, 48, 42

# Reads a number of bytes from a serial port and sends them back in reverse order.
_REVERSE = """
import os, sys, termios, tty
port = os.open(sys.argv[1], os.O_RDWR | os.O_NOCTTY)
tty.setraw(port)
print("open", flush=True)
data = b""
while len(data) < int(sys.argv[2]):
    data += os.read(port, 4096)
data = data[::-1]
while data:
    data = data[os.write(port, data):]
termios.tcdrain(port)
"""


def test_what_is_typed_at_pi_arrives(pi: Pi, desk: Desk) -> None:
    path = desk.attach("alice", "030101")
    node = desk.node(path, "/dev/input/event")
    with key_events(desk, node) as events:
        pi.press("a")
        assert [next(events), next(events)] == [KeyEvent(KEY_A, 1), KeyEvent(KEY_A, 0)]
    # Nobody reads for a while: the kernel would put it to sleep after 2 s if it were allowed to,
    # as udev wishes, which may come to it only now.
    desk.shell(
        'udevadm settle --timeout=60; cd "/sys/bus/usb/devices/$1/power"; i=0\n'
        'until [ "$(cat control)" = on ]; do\n'
        "i=$((i+1)); [ $i -lt 600 ] || exit 1; sleep 0.1; done\n"
        'sleep 3; [ "$(cat runtime_status)" = active ]',
        desk.attachment(path)["LocalBusId"],
        timeout=150,
    )
    with key_events(desk, node) as events:
        pi.press("shift", "b")
        pressed = [next(events) for _ in range(4)]
    assert sorted((e.code, e.value) for e in pressed) == [
        (KEY_LEFTSHIFT, 0), (KEY_LEFTSHIFT, 1), (KEY_B, 0), (KEY_B, 1),
    ]  # fmt: skip
    assert desk.detach("alice", path) == 1
    assert pi.interface_drivers(BUSIDS["keyboard"]) == {"1-1:1.0": "usbhid"}


def test_a_serial_adapter_carries_every_byte_both_ways(pi: Pi, desk: Desk) -> None:
    data = bytes(range(256)) * 6
    path = desk.attach("alice", BUSIDS["adapter"])
    node = desk.node(path, "/dev/ttyUSB")
    with (
        pi.adapter_line() as line,
        desk.ssh.start("timeout", "60", "python3", "-c", _REVERSE, node, str(len(data))) as program,
    ):
        assert program.stdout is not None
        assert program.stdout.readline() == b"open\n"
        line.sendall(data)
        back = b""
        while len(back) < len(data):
            more = line.recv(65536)
            assert more
            back += more
        assert back == data[::-1]
        assert program.wait(timeout=60) == 0
    assert desk.detach("alice", path) == 1
    assert pi.interface_drivers(BUSIDS["adapter"]) == {"1-3.1:1.0": "ftdi_sio"}


def test_two_at_once(machines: Pair) -> None:
    pi, desk = machines.pi, machines.desk
    with ThreadPoolExecutor() as pool:
        stick, keyboard = pool.map(
            lambda name: desk.attach("alice", BUSIDS[name]), ("stick", "keyboard")
        )
    assert sorted(port.hub for port in desk.taken_ports()) == ["hs", "ss"]
    disk, keys = desk.node(stick), desk.node(keyboard, "/dev/input/event")

    def read() -> dict[str, str]:
        with desk.mounted(disk) as folder:
            return desk.checksums(folder)

    # Typing goes on while the disk is read.
    with ThreadPoolExecutor() as pool, key_events(desk, keys) as events:
        reading = pool.submit(read)
        for _ in range(3):
            pi.press("a")
            assert [next(events), next(events)] == [KeyEvent(KEY_A, 1), KeyEvent(KEY_A, 0)]
        sums = reading.result()
    for name, content in stick_files().items():
        assert sums[name] == hashlib.sha256(content).hexdigest()
    # One of them goes, and the other stays.
    assert desk.detach("alice", keyboard) == 1
    assert [port.hub for port in desk.taken_ports()] == ["ss"]
    assert desk.detach("alice", "all") == 1
    assert machines.devices_left() == []
    assert pi.driver(BUSIDS["keyboard"]) == pi.driver(BUSIDS["stick"]) == "usb"
