# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of exports share: a stick of desk's, and a program on pi that writes to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vm.faults import eventually
from vm.testbed import systems
from vm.testbed.desk import Desk
from vm.testbed.pi import Pi

SERIAL = "DESK0001"
PORT = "2"
STATUS = "/run/testbed-export"
WRITER = """
node=$1 status=$2 conv=fsync,nocreat,notrunc n=0
# Whoever reads it finds it whole.
tell() { echo "$n $1" >"$status.new" && mv "$status.new" "$status"; }
while [ ! -e "$status.stop" ]; do
    dd if=/dev/zero of="$node" bs=4096 count=1 seek=$((n % 2048)) conv=$conv 2>/dev/null ||
        { tell failed; exit; }
    n=$((n + 1))
    tell runs
done
tell stopped
"""


def busid_of(desk: Desk) -> str:
    """Wait until desk has the stick."""
    found: list[str] = []

    def there() -> bool:
        found[:] = [d["busid"] for d in desk.list_local("alice", SERIAL)]
        return bool(found)

    eventually(there, 60, "desk's stick is there")
    desk.disk_of(found[0])
    return found[0]


def export(
    desk: Desk, pattern: str, user: str = "alice", remote: str = "pi", **options: bool
) -> str:
    given: dict[str, tuple[str, object]] = {k: ("b", v) for k, v in options.items()}
    (path,) = desk.manager(user, "Export", remote, pattern, options=given, timeout=180)
    return str(path)


def disk(desk: Desk, path: str) -> str:
    """Wait for the stick's disk on pi; its node there."""
    return desk.node(path)


def written(pi: Pi) -> tuple[int, str]:
    """How many blocks were written there, and how the writer is."""
    number, _, told = pi.shell('cat "$1" 2>/dev/null || echo 0 runs', STATUS).strip().partition(" ")
    return int(number), told


def goes_on(pi: Pi, blocks: int = 5) -> None:
    """Wait until that many more blocks are written."""
    begun = written(pi)[0]
    eventually(lambda: written(pi)[0] >= begun + blocks, 60, f"blocks are written: {written(pi)}")


@contextmanager
def being_written(pi: Pi, node: str) -> Iterator[None]:
    """A program on pi writes block after block while the block runs."""
    pi.shell(
        # The one before has ended, but its name may still be taken.
        "systemctl stop testbed-export 2>/dev/null\n"
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


# Python's: every free port of that pool is taken, by sockets that nobody answers.
_TAKING = """
import glob, socket, sys
taken = []
for path in sorted(glob.glob("/sys/devices/platform/vhci_hcd.0/status*")):
    for line in open(path):
        words = line.split()
        if words[:1] == ["ss"] and words[2] == "004":
            one, other = socket.socketpair()
            with open("/sys/devices/platform/vhci_hcd.0/attach", "w") as file:
                file.write(f"{int(words[1])} {one.fileno()} {1 << 16 | 2} 5")
            one.close()
            taken.append(other)
print(len(taken), flush=True)
sys.stdin.read()
"""


@contextmanager
def every_port_taken(pi: Pi) -> Iterator[None]:
    """Another program on pi has all of vhci's ports for fast devices while the block runs."""
    pi.run("modprobe", "vhci-hcd")
    with pi.ssh.start(systems.HIDDEN_PYTHON, "-c", _TAKING) as taking:
        assert taking.stdin is not None
        assert taking.stdout is not None
        try:
            assert int(taking.stdout.readline()) > 0
            yield
        finally:
            taking.stdin.close()
    eventually(lambda: pi.taken_ports() == [], 120, "the ports are free again")
