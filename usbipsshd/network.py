# SPDX-License-Identifier: GPL-3.0-or-later
"""Notices that this machine's network has changed, so that waiting may be cut short.

Only that something came is used, never what: rtnetlink(7).
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable

log = logging.getLogger(__name__)

SETTLE_SECONDS = 0.5
_RTMGRP_IPV4_IFADDR = 0x10
_RTMGRP_IPV4_ROUTE = 0x40
_RTMGRP_IPV6_IFADDR = 0x100
_RTMGRP_IPV6_ROUTE = 0x400


async def watch_network(changed: Callable[[], None]) -> None:
    """Call ``changed`` once the network has settled after each change, until cancelled.

    Returns at once where that cannot be noticed.
    """
    groups = _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV4_ROUTE | _RTMGRP_IPV6_IFADDR | _RTMGRP_IPV6_ROUTE
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock:
        try:
            sock.bind((0, groups))
        except OSError as error:
            log.info("changes of the network are not noticed: %s", error)
            return
        sock.setblocking(False)
        came = asyncio.Event()

        def read() -> None:
            # What is left unread would call this again and again.
            _drain(sock)
            came.set()

        loop.add_reader(sock, read)
        try:
            while True:
                await came.wait()
                await asyncio.sleep(SETTLE_SECONDS)
                came.clear()
                changed()
        finally:
            loop.remove_reader(sock)


def _drain(sock: socket.socket) -> None:
    try:
        while sock.recv(65536):
            pass
    except OSError:
        # EAGAIN: all read. ENOBUFS: some were lost, which is a change, too.
        return
