# SPDX-License-Identifier: GPL-3.0-or-later
"""Every way to connect on pi, with every shell, through every ssh server: which pairs work.

`make test` has a pair of each; `make test-pairs` has all of them and prints the table of
README.md.
"""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from vm.exports import PORT as DESKS_PORT
from vm.exports import SERIAL, busid_of, disk, export
from vm.testbed import systems
from vm.testbed.desk import Desk
from vm.testbed.pair import Pair
from vm.testbed.pi import BUSIDS, Pi

CONNECTORS = ("perl", "python3", "bash", "socat", "ncat", "busybox")
SHELLS = ("dash", "bash", "busybox")
SERVERS = ("openssh", "dropbear")
# Where the binary of each connector or shell really is on pi.
PROGRAMS = {
    "perl": "/run/testbed-pairs/perl",
    "python3": systems.HIDDEN_PYTHON,
    "bash": "/run/testbed-pairs/bash",
    "dash": "/run/testbed-pairs/dash",
    "socat": f"{systems.HIDDEN_PROGRAMS}/socat",
    "ncat": f"{systems.HIDDEN_PROGRAMS}/ncat",
    "busybox": f"{systems.HIDDEN_PROGRAMS}/busybox",
}
FOLDER = "/run/testbed-pairs"
PORT = 2222

# In a mount namespace of its own: sh is $1, and of all connectors only $2, which is $3, is there.
_SERVER = """
cd "$0"
mount --bind "$1" /usr/bin/dash
for name in perl bash; do [ "$name" = "$2" ] || mount --bind nothing "/usr/bin/$name"; done
mount -t tmpfs -o mode=755 none /usr/local/sbin
ln -s "$3" "/usr/local/sbin/$2"
shift 3
exec "$@"
"""

Way = tuple[str, str, str]
"""A connector, a shell and a server."""
# Each connector once, and each shell with each server.
SHORT = {
    (connector, *rest)
    for connector, rest in zip(CONNECTORS, itertools.product(SHELLS, SERVERS), strict=True)
}
WAYS = [
    pytest.param(way, id="-".join(way), marks=() if way in SHORT else pytest.mark.long)
    for way in itertools.product(CONNECTORS, SHELLS, SERVERS)
]


@dataclass
class Outcome:
    """What was tried, and what worked."""

    tried: set[Way] = field(default_factory=set)
    working: set[Way] = field(default_factory=set)


def table(outcome: Outcome) -> str:
    """What works, as it stands in README.md."""
    columns = list(itertools.product(SERVERS, SHELLS))
    lines = [
        "| | " + " | ".join(f"{server}, {shell}" for server, shell in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for connector in CONNECTORS:
        cells = []
        for server, shell in columns:
            way = (connector, shell, server)
            cells.append(
                "yes"
                if way in outcome.working
                else "**no**"
                if way in outcome.tried
                else "not tried"
            )
        lines.append(f"| {connector} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


@pytest.fixture(scope="module")
def outcome(machines: Pair, pytestconfig: pytest.Config) -> Iterator[Outcome]:
    """To be filled in; pi has what the servers need, and at the end the table is printed."""
    pi = machines.pi
    pi.shell(
        'mkdir -p "$1"; cd "$1"; : >nothing; chmod 644 nothing\n'
        "for name in perl bash dash; do cp /usr/bin/$name .; done\n"
        "dropbearkey -t ed25519 -f key",
        FOLDER,
        timeout=120,
    )
    found = Outcome()
    yield found
    reporter = pytestconfig.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.write_line("")
        reporter.write_line(table(found))
    pi.shell('rm -rf "$1"', FOLDER)


@contextmanager
def server(pi: Pi, way: Way) -> Iterator[str]:
    """An ssh server on pi with just these programs; the fingerprint of its key."""
    connector, shell, kind = way
    if kind == "openssh":
        command = ["/usr/sbin/sshd", "-D", "-e", "-p", str(PORT), "-o", "PidFile=none"]
        said = pi.run("ssh-keygen", "-lf", "/etc/ssh/ssh_host_ed25519_key.pub")
    else:
        key = f"{FOLDER}/key"
        command = ["dropbear", "-F", "-E", "-s", "-p", str(PORT), "-r", key, "-P", f"{key}.pid"]
        said = pi.run("dropbearkey", "-y", "-f", key)
    fingerprint = next(w for w in said.split() if w.startswith("SHA256:"))
    words = [
        "unshare", "--mount", "--propagation", "private", f"{FOLDER}/dash", "-euc", _SERVER, FOLDER,
        PROGRAMS[shell], connector, PROGRAMS[connector], *command,
    ]  # fmt: skip
    pi.shell(
        f"setsid {shlex.join(words)} >{FOLDER}/log 2>&1 </dev/null & echo $! >{FOLDER}/pid\n"
        f"i=0; until ss -Hltn sport = :{PORT} | grep -q .; do\n"
        f"i=$((i+1)); [ $i -lt 600 ] || {{ cat {FOLDER}/log; exit 1; }}; sleep 0.1; done",
        timeout=120,
    )
    try:
        yield fingerprint
    finally:
        pi.shell(
            f"kill $(cat {FOLDER}/pid)\n"
            f"i=0; while ss -Hltn sport = :{PORT} | grep -q .; do\n"
            "i=$((i+1)); [ $i -lt 600 ] || exit 1; sleep 0.1; done",
            timeout=120,
        )


@pytest.fixture(scope="module")
def stick(machines: Pair) -> Iterator[str]:
    """desk has a stick, to be lent; its bus id."""
    with machines.desk.spare_stick(SERIAL, DESKS_PORT):
        yield busid_of(machines.desk)


@pytest.mark.usefixtures("listed")
@pytest.mark.parametrize("way", WAYS)
def test_a_device_comes_and_goes(
    pi: Pi, desk: Desk, outcome: Outcome, way: Way, stick: str
) -> None:
    outcome.tried.add(way)
    name = "-".join(way)
    with server(pi, way) as fingerprint:
        desk.trust(name, f"root@{systems.PI_ADDRESS}:{PORT}", fingerprint)
        try:
            path = desk.attach("root", BUSIDS["keyboard"], name)
            assert desk.node(path, "/dev/input/event")
            assert desk.detach("root", path) == 1
            pi.wait_driver(BUSIDS["keyboard"], "usb")
            path = export(desk, SERIAL, "root", name)
            assert pi.run("head", "-c", "512", disk(desk, path), timeout=60)
            assert desk.detach("root", stick) == 1
            assert desk.interface_drivers(stick) == {f"{stick}:1.0": "usb-storage"}
        finally:
            desk.manager("root", "RemoveRemote", name, timeout=120)
    outcome.working.add(way)
