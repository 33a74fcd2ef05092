# SPDX-License-Identifier: GPL-3.0-or-later
"""What carries an attachment is killed while its file system is being written: it comes back."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

import pytest
from vm.faults import DEAD_PEER_SECONDS, PERSON, STICK, Remote, Scene
from vm.testbed.desk import Desk

from usbipsshd.journal import Happening

Victim = Callable[[Desk, Remote], Callable[[], None]]
"""Finds out whom to kill, and returns what kills it."""


def _sshd(desk: Desk, remote: Remote) -> Callable[[], None]:
    victim = remote.sshd()
    return lambda: remote.kill(victim)


def _agent(desk: Desk, remote: Remote) -> Callable[[], None]:
    victims = remote.agent()
    return lambda: remote.kill(*victims)


def _session(desk: Desk, remote: Remote) -> Callable[[], None]:
    def kill() -> None:
        desk.run("systemctl", "kill", "-s", "KILL", "usbipssh-session@*")

    return kill


@pytest.mark.parametrize(
    ("fault", "victim"),
    [
        ("sshd killed on the remote", _sshd),
        ("agent killed on the remote", _agent),
        ("ssh session killed here", _session),
    ],
    ids=["sshd", "agent", "session"],
)
def test_killed(fault: str, victim: Victim, scene: Scene) -> None:
    desk, stick, log = scene.desk, scene.stick, scene.log
    attachment = desk.attach(PERSON, STICK, keep=True)
    stick.begin(attachment)
    kill = victim(desk, scene.remote)
    with scene.times.row(fault) as row:
        begun = monotonic()
        kill()
        row.noticed = log.wait(Happening.LOST, STICK, since=begun) - begun
        count = stick.failed()
        row.usable = log.wait(Happening.RESTORED, STICK, since=begun, seconds=120) - begun
        assert row.noticed < DEAD_PEER_SECONDS
        stick.check_again(attachment, count)
        row.outcome = "attached again, every block that was written is there"
    assert desk.detach(PERSON, "all") == 1
