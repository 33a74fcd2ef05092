# SPDX-License-Identifier: GPL-3.0-or-later
"""Work that is finished whoever is cancelled meanwhile."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")


async def to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Await ``work``; cancelled meanwhile, let it finish first, then be cancelled.

    ``work`` must bound its own time. If it fails after a cancellation, that is only logged.
    """
    task = asyncio.create_task(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        if not task.cancelled() and task.exception() is not None:
            log.info("while being cancelled: %s", task.exception())
        raise asyncio.CancelledError
    return task.result()


async def ended(task: asyncio.Task[Any]) -> None:
    """Wait until ``task`` has ended; cancelled meanwhile, cancel it, and wait all the same."""
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        task.cancel()
        raise
    finally:
        await to_the_end(asyncio.wait([task]))
