# SPDX-License-Identifier: GPL-3.0-or-later
"""``usbipsshd``: the daemon's command line."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from usbipsshd import __version__, journal
from usbipsshd.bus.connection import SYSTEM_BUS
from usbipsshd.bus.values import BusError, Disconnected
from usbipsshd.daemon import Daemon
from usbipsshd.kmod import modprobe
from usbipsshd.launcher import (
    AgentLauncher,
    Launcher,
    SpawnAgent,
    SpawnLauncher,
    SystemdAgent,
    SystemdLauncher,
)
from usbipsshd.letgo import let_go
from usbipsshd.network import watch_network
from usbipsshd.notify import Notifier, stored_descriptors
from usbipsshd.settings import Paths, Settings
from usbipsshd.udev import Udev

SESSION_SOCKET = Path("/run/usbipssh-session.sock")
AGENT_SOCKET = Path("/run/usbipssh-here.sock")
SESSION_USER = "usbipssh"


def _set_up_logging(*, verbose: bool) -> None:
    handler: logging.Handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("usbipsshd: %(message)s"))
    if "JOURNAL_STREAM" in os.environ and journal.SOCKET.exists():
        handler = journal.JournalHandler()
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler])
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def _launcher() -> Launcher:
    if SESSION_SOCKET.exists():
        return SystemdLauncher(SESSION_SOCKET)
    return SpawnLauncher(SESSION_USER)


def _agent_launcher() -> AgentLauncher:
    return SystemdAgent(AGENT_SOCKET) if AGENT_SOCKET.exists() else SpawnAgent()


def main() -> int:
    """Run the daemon; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="usbipsshd",
        description="Uses the USB devices of other machines over ssh. Runs as root, on the "
        "system bus as org.usbipssh1; started on demand by D-Bus or systemd.",
    )
    parser.add_argument("--version", action="version", version=f"usbipsshd {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="log every step")
    parser.add_argument(
        "--let-go",
        action="store_true",
        help="give the virtual USB buses back after a daemon that is not started again, and end",
    )
    arguments = parser.parse_args()
    _set_up_logging(verbose=arguments.verbose)
    if os.geteuid() != 0:
        logging.error("usbipsshd must run as root; it is started by D-Bus when it is called")
        return 1
    os.umask(0o077)
    if arguments.let_go:
        return _let_go()
    launcher = _launcher()
    notify_socket = os.environ.get("NOTIFY_SOCKET", "")
    under_systemd = isinstance(launcher, SystemdLauncher) and bool(notify_socket)
    settings = Settings(
        bus_address=os.environ.get("DBUS_SYSTEM_BUS_ADDRESS", SYSTEM_BUS),
        launcher=launcher,
        agent_launcher=_agent_launcher(),
        event_source=Udev(),
        modprobe=None if under_systemd else modprobe,
        notifier=Notifier(notify_socket, int(os.environ.get("WATCHDOG_USEC", "0")) / 1e6),
        now=time.time,
        watch_network=watch_network,
        descriptors=stored_descriptors(os.environ, os.getpid()),
        can_hand_over=under_systemd,
    )
    status = 0
    try:
        asyncio.run(_run(settings))
    except* (OSError, BusError, Disconnected) as group:
        # What goes wrong while the daemon runs comes in a group of its own.
        for error in _leaves(group):
            logging.error("usbipsshd ends: %s", error)  # noqa: TRY400
        status = 1
    return status


def _let_go() -> int:
    try:
        return 0 if let_go(Paths()) else 1
    except OSError as error:
        logging.error("nothing is given back: %s", error)  # noqa: TRY400
        return 1


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


async def _run(settings: Settings) -> None:
    await Daemon(settings).run()


if __name__ == "__main__":
    sys.exit(main())
