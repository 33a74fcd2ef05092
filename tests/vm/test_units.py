# SPDX-License-Identifier: GPL-3.0-or-later
"""What the two processes may not do, on a real systemd: hostile code in one of them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from vm.faults import eventually
from vm.testbed.desk import Desk
from vm.testbed.pi import BUSIDS

pytestmark = pytest.mark.usefixtures("listed")

PROBE = Path(__file__).with_name("hostile_session.py")
PLACE = "/usr/local/lib/hostile_session.py"
DROP_IN = "/run/systemd/system/usbipssh-session@.service.d/hostile.conf"

# Connects to the session's socket, which starts one, and waits for what it says.
_START = """
import socket, sys
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
    sock.settimeout(240)
    sock.connect("/run/usbipssh-session.sock")
    print(sock.recv(200000).decode())
"""
# The same code with no cage around it: root, with a socket of the same kind.
_UNCAGED = """
import socket, subprocess, sys
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
subprocess.run(["/usr/bin/python3", "-I", *sys.argv[1:]], stdin=theirs, timeout=240)
print(ours.recv(200000).decode())
"""


@contextmanager
def in_the_place_of_a_session(desk: Desk, *command: str) -> Iterator[None]:
    """Sessions run ``command`` in their unit meanwhile, with everything else as it is."""
    text = f"[Service]\nExecStart=\nExecStart={' '.join(command)}\n"
    desk.shell(
        'mkdir -p "${1%/*}"; printf %s "$2" >"$1"; systemctl daemon-reload'
        "; systemctl start usbipssh-session.socket",
        DROP_IN,
        text,
    )
    try:
        yield
    finally:
        desk.shell('rm -rf "${1%/*}"; systemctl daemon-reload', DROP_IN)


@contextmanager
def things_to_reach(desk: Desk) -> Iterator[None]:
    """Something that everybody may read or run."""
    desk.run("sh", "-c", f"cat >{PLACE}", data=PROBE.read_bytes())
    desk.shell(
        "install -m 4755 /usr/bin/id /usr/local/bin/setuid-id; chmod 755 /home/alice\n"
        "for f in /home/alice/for-everybody /tmp/for-everybody; do\n"
        'echo a >"$f"; chmod 644 "$f"; done'
    )
    try:
        yield
    finally:
        desk.shell(
            'rm -f "$1" /usr/local/bin/setuid-id /home/alice/for-everybody /tmp/for-everybody',
            PLACE,
        )


def another_session(desk: Desk) -> str:
    """The process id of the session that is connected to pi, once no other is left."""
    desk.list_remote("alice", "pi")
    pids: list[str] = []

    def one() -> bool:
        pids[:] = desk.ssh.attempt("pgrep", "-u", "usbipssh").out.split()
        return len(pids) == 1

    eventually(one, 60, "there is one session")
    return pids[0]


def test_hostile_code_in_a_session_reaches_nothing_but_the_network(desk: Desk) -> None:
    # With something attached it does not end for idleness, however long this takes.
    path = desk.attach("alice", BUSIDS["keyboard"])
    victim = another_session(desk)
    arguments = (PLACE, victim, "pi:22")
    with things_to_reach(desk):
        # Every attempt works where nothing keeps it from working; else it would prove nothing.
        free: dict[str, Any] = json.loads(
            desk.run("python3", "-c", _UNCAGED, *arguments, timeout=300)
        )
        with in_the_place_of_a_session(desk, "/usr/bin/python3", "-I", *arguments):
            said = desk.run("python3", "-c", _START, timeout=300)
        caged: dict[str, Any] = json.loads(said)
    greeting = {"greeting": "SSH-"}
    assert (free.pop("allowed"), caged.pop("allowed")) == (greeting, greeting)
    assert [name for name, reached in free.items() if not reached] == []
    assert {name: reached for name, reached in caged.items() if reached} == {}
    # The other one has seen nothing of it.
    assert another_session(desk) == victim
    assert desk.detach("alice", path) == 1


@pytest.mark.parametrize("unit", ["usbipsshd.service", "usbipssh-session@*.service"])
def test_what_systemd_says_is_exposed(desk: Desk, unit: str) -> None:
    another_session(desk)
    (name,) = desk.run("systemctl", "list-units", "--plain", "--no-legend", unit).split()[:1]
    said = desk.run("systemd-analyze", "security", "--no-pager", name)
    (level,) = re.findall(r"Overall exposure level for \S+: ([0-9.]+)", said)
    print(f"{name}: {level}")
    assert float(level) <= 2.0, said


def test_the_daemon_cannot_load_modules_itself_and_has_systemd_do_it(desk: Desk) -> None:
    desk.stop_daemon()
    desk.run("modprobe", "-r", "vhci-hcd")
    # Started anew, it finds the module; taken away under it, it has it loaded again.
    assert desk.properties("/org/usbipssh1", "org.usbipssh1.Manager")["VhciAvailable"] is True
    pid = desk.run("systemctl", "show", "-P", "MainPID", "usbipsshd").strip()
    assert re.search(r"^CapBnd:\s+0+$", desk.run("cat", f"/proc/{pid}/status"), re.MULTILINE)
    desk.run("modprobe", "-r", "vhci-hcd")
    path = desk.attach("alice", "46f4:1")
    assert desk.detach("alice", path) == 1
