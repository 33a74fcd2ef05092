# SPDX-License-Identifier: GPL-3.0-or-later
"""What the daemon is made of from outside, so that a test can replace it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from usbipsshd.drivers import PLACES
from usbipsshd.launcher import AgentLauncher, Launcher
from usbipsshd.notify import Notifier
from usbipsshd.udev import EventSource


@dataclass(frozen=True, slots=True)
class Paths:
    """Where everything is; tests have other places."""

    sys: Path = Path("/sys")
    udev: Path = Path("/run/udev/data")
    config: Path = Path("/etc/usbipsshd")
    state: Path = Path("/var/lib/usbipsshd")
    run: Path = Path("/run/usbipsshd")
    machine_id: Path = Path("/etc/machine-id")
    modules: tuple[Path, ...] = PLACES
    os_release: Path = Path("/etc/os-release")
    mountinfo: Path = Path("/proc/self/mountinfo")
    known_hosts: tuple[Path, ...] = (
        Path("/etc/ssh/ssh_known_hosts"),
        Path("/root/.ssh/known_hosts"),
    )


@dataclass(frozen=True, slots=True)
class Settings:
    """What the daemon is made of from outside."""

    bus_address: str
    launcher: Launcher
    agent_launcher: AgentLauncher
    event_source: EventSource
    modprobe: Callable[[str], Awaitable[bool]] | None
    """Loads a kernel module; None where systemd does, and this process may not."""
    notifier: Notifier
    now: Callable[[], float]
    """Seconds since the epoch."""
    watch_network: Callable[[Callable[[], None]], Coroutine[None, None, None]]
    """Calls back after each change of the network, until cancelled."""
    descriptors: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """What an earlier process left with systemd, by name."""
    can_hand_over: bool = False
    """Whether sessions live on when this process ends, so that the next one can go on."""
    paths: Paths = field(default_factory=Paths)
