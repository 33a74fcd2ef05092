# SPDX-License-Identifier: GPL-3.0-or-later
"""Run one made-up machine: ``python3 -m fakekernel MOUNTPOINT CONTROL_SOCKET``."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from pathlib import Path

from fakekernel.machine import Machine
from fakekernel.mount import Mount
from fakekernel.server import Control, serve
from fakekernel.usbip_host import UsbipHost
from fakekernel.vhci import Vhci


def _end_with_input() -> None:
    """End when standard input does: whoever started this is gone."""
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """Mount, serve, and unmount at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mountpoint", type=Path)
    parser.add_argument("control", type=Path)
    parser.add_argument("--status", choices=("hub", "old"), default="hub")
    parser.add_argument("--controllers", type=int, default=2)
    parser.add_argument("--ports", type=int, default=8, help="ports of each virtual hub")
    parser.add_argument("--module", action="append", default=[], help="loaded from the start")
    parser.add_argument("--missing", action="append", default=[], help="a module not installed")
    parser.add_argument("--stay", action="store_true", help="outlive the process that starts this")
    options = parser.parse_args()
    if not options.stay:
        threading.Thread(target=_end_with_input, daemon=True).start()
    machine = Machine()
    host = UsbipHost(machine)
    vhci = Vhci(machine, options.status, options.controllers, options.ports)
    machine.missing_modules.update(m.replace("-", "_") for m in options.missing)
    for module in options.module:
        machine.load_module(module)
    machine.log.clear()
    serve(options.control, Control(machine, host, vhci))
    Mount(machine.root, machine.lock).run(str(options.mountpoint))


if __name__ == "__main__":
    main()
