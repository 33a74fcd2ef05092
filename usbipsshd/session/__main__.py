# SPDX-License-Identifier: GPL-3.0-or-later
"""The session process: ``python3 -m usbipsshd.session``, with the control socket as fd 0.

It needs no privileges and has none: see usbipssh-session@.service. It ends when the
root process closes the control socket, says ``close`` or sends SIGTERM, and has
given every device back by then.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import importlib
import logging
import os
import signal
import socket
import sys
import warnings

# Debian 12's asyncssh names ciphers that its cryptography deprecates.
warnings.filterwarnings("ignore", module="asyncssh")

from usbipsshd.seqpacket import SeqPacket  # noqa: E402
from usbipsshd.session.service import Session  # noqa: E402

log = logging.getLogger("usbipsshd.session")

_PR_SET_DUMPABLE = 4  # linux/prctl.h


def _forbid_dumps() -> None:
    """No core file and no ptrace by the same uid: the memory holds session keys."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _new_loop() -> asyncio.AbstractEventLoop:
    """uvloop's where it is installed: a third less time for each packet."""
    try:
        loop: asyncio.AbstractEventLoop = importlib.import_module("uvloop").new_event_loop()
    except ImportError:
        return asyncio.new_event_loop()
    return loop


async def _run(sock: socket.socket, agent_sysfs: str | None) -> None:
    session = Session(SeqPacket(sock), agent_sysfs)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, session.stop)
    await session.run()


def main(argv: list[str] | None = None) -> int:
    """Run one session; the exit status."""
    parser = argparse.ArgumentParser(prog="usbipssh-session", description=__doc__)
    parser.add_argument(
        "--agent-sysfs", metavar="PATH", help="for tests: the remote's /sys is there"
    )
    options = parser.parse_args(argv)
    _forbid_dumps()
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(levelname)s: %(name)s: %(message)s"
    )
    logging.getLogger("asyncssh").setLevel(logging.ERROR)
    # asyncssh wants a local user name and a home, which a bare uid has not got. It reads nothing
    # there.
    os.environ.update(LOGNAME="usbipssh", HOME="/nonexistent")
    try:
        sock = socket.socket(fileno=os.dup(0))
        os.set_inheritable(sock.fileno(), False)
    except OSError as error:
        print(f"fd 0 is no socket: {error.strerror}", file=sys.stderr)
        return 2
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_SEQPACKET:
        print("fd 0 is not the control socket; usbipsshd starts this program", file=sys.stderr)
        return 2
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        runner.run(_run(sock, options.agent_sysfs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
