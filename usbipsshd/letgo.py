# SPDX-License-Identifier: GPL-3.0-or-later
"""``usbipsshd --let-go``: gives the virtual buses back after a daemon that is not started again.

What is attached when a daemon is killed goes on, and its bus stays held for the next one. Where
there will be none, because it failed for good or is being removed, this waits until the last device
of ours has left, and then does what the next one would have done.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from usbipsshd.daemon import only_one
from usbipsshd.hold import Hold
from usbipsshd.importer import Importer
from usbipsshd.localusb import LocalUsb
from usbipsshd.settings import Paths
from usbipsshd.takenports import TakenPorts
from usbipsshd.udev import Events
from usbipsshd.vhci import Vhci

log = logging.getLogger(__name__)

SECONDS = 60.0
"""How long sessions that have lost their daemon may take to give their devices back."""
LOOK_SECONDS = 0.25


async def _no_modprobe(_: str) -> bool:
    return False


def let_go(
    paths: Paths,
    *,
    seconds: float = SECONDS,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Wait until no device of ours is left here, and give the buses back; whether that went well.

    Detaches nothing. Buses with none of ours are given back at once, the others not
    before their last has left. Raises :exc:`BlockingIOError` if a daemon runs.
    """
    if not paths.run.is_dir():
        return True
    with only_one(paths.run / "lock"):
        importer = Importer(
            Vhci(paths.sys),
            LocalUsb(paths.sys),
            Hold(paths.sys, paths.run / "authorized_default.json"),
            Events(),
            _no_modprobe,
            taken_ports=TakenPorts(paths.run / "taken-ports.json"),
        )
        importer.recover()
        deadline = clock() + seconds
        while not importer.all_left():
            if clock() >= deadline:
                log.warning("devices are still attached: new ones on their buses stay held")
                return False
            sleep(LOOK_SECONDS)
    return True
