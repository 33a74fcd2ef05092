# SPDX-License-Identifier: GPL-3.0-or-later
"""Work that is finished whoever is cancelled meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine


async def to_the_end(work: Coroutine[None, None, None]) -> None:
    """Do ``work`` to its end, however often this is cancelled; then be cancelled.

    ``work`` must bound its own time.
    """
    task = asyncio.create_task(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
    task.result()
    if cancelled:
        raise asyncio.CancelledError
