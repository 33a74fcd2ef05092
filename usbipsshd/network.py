# SPDX-License-Identifier: GPL-3.0-or-later
"""Notices that this machine's network has changed, so that waiting may be cut short.

Only that something came is used, never what: rtnetlink(7).
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

log = logging.getLogger(__name__)

SETTLE_SECONDS = 0.5
_RTMGRP_IPV4_IFADDR = 0x10
_RTMGRP_IPV4_ROUTE = 0x40
_RTMGRP_IPV6_IFADDR = 0x100
_RTMGRP_IPV6_ROUTE = 0x400


@asynccontextmanager
async def watching(changed: Callable[[], None]) -> AsyncIterator[None]:
    """Call ``changed`` once the network has settled after each change, while the context lasts."""
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle | None = None
    try:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        sock.bind(
            (
                0,
                _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV4_ROUTE | _RTMGRP_IPV6_IFADDR | _RTMGRP_IPV6_ROUTE,
            )
        )
    except OSError as error:
        log.info("changes of the network are not noticed: %s", error)
        yield
        return
    sock.setblocking(False)

    def readable() -> None:
        nonlocal timer
        try:
            while sock.recv(65536):
                pass
        except OSError:
            # EAGAIN: all read. ENOBUFS: some were lost, which is a change, too.
            pass
        if timer is not None:
            timer.cancel()
        timer = loop.call_later(SETTLE_SECONDS, changed)

    loop.add_reader(sock, readable)
    try:
        yield
    finally:
        loop.remove_reader(sock)
        sock.close()
        if timer is not None:
            timer.cancel()
