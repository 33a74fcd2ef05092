# SPDX-License-Identifier: GPL-3.0-or-later
"""Attached and detached again and again: nothing grows, on either side."""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic

import pytest
from vm.faults import KEYBOARD, PERSON, Scene, eventually

WARM_UP = 5
"""Rounds before anything is measured: what is needed once is there then."""
GROWTH_KIB = 4096
"""Of one process, in all rounds together; an allocator's pools are filled one by one."""

_ROUNDS = """
i=0
while [ "$i" -lt "$2" ]; do
    i=$((i + 1))
    made=$(busctl --timeout=120 call org.usbipssh1 /org/usbipssh1 org.usbipssh1.Manager \\
        Attach 'ssa{sv}' pi "$1" 0) || exit
    path=${made#o \\"}
    busctl --timeout=120 call org.usbipssh1 "${path%\\"}" org.usbipssh1.Attachment \\
        Detach 'a{sv}' 0 || exit
done
"""
_MEASURE = """
for pid; do
    while read -r name value _; do
        [ "$name" != VmRSS: ] || echo "$value $(ls "/proc/$pid/fd" | wc -l)"
    done <"/proc/$pid/status"
done
"""


@dataclass(frozen=True)
class _Size:
    """Memory (KiB) and descriptors of each process of ours, and how many processes pi has."""

    memory: tuple[int, ...]
    descriptors: tuple[int, ...]
    processes: int


def _size(scene: Scene) -> _Size:
    units = "usbipsshd.service", "usbipssh-session@*"
    pids = scene.desk.run("systemctl", "show", "-P", "MainPID", *units).split()
    assert len(pids) == 2, "the daemon and one session"
    agent = str(min(scene.remote.agent()))
    measured = scene.desk.shell(_MEASURE, *pids) + scene.pi.shell(_MEASURE, agent)
    rows = [line.split() for line in measured.splitlines()]
    memory, descriptors = (tuple(int(row[i]) for row in rows) for i in (0, 1))
    return _Size(memory, descriptors, scene.remote.processes())


def _attach_and_detach(scene: Scene, rounds: int) -> None:
    words = ("runuser", "-u", PERSON, "--", "sh", "-c", _ROUNDS, "sh", KEYBOARD, str(rounds))
    scene.desk.run(*words, timeout=60.0 * (rounds + 1))


@pytest.mark.long
@pytest.mark.parametrize("rounds", [10, 100])
def test_attached_and_detached(scene: Scene, rounds: int) -> None:
    _attach_and_detach(scene, WARM_UP)
    before = _size(scene)
    with scene.times.row(f"attached and detached {rounds} times") as row:
        begun = monotonic()
        _attach_and_detach(scene, rounds)
        row.usable = (monotonic() - begun) / rounds
        after = _size(scene)
        grown = [now - then for now, then in zip(after.memory, before.memory, strict=True)]
        assert max(grown) < GROWTH_KIB
        # What an earlier test has left to end by itself may end meanwhile.
        both = zip(after.descriptors, before.descriptors, strict=True)
        assert all(now <= then for now, then in both), (before, after)
        # The agent's last steps are processes of their own.
        eventually(
            lambda: scene.remote.processes() <= before.processes, 60, "no more processes there"
        )
        assert scene.settled(60) == []
        row.outcome = (
            "time of each; grown by {} KiB (daemon), {} KiB (session), {} KiB (agent), "
            "no descriptor, no process, no port".format(*grown)
        )
