# SPDX-License-Identifier: GPL-3.0-or-later
"""Questions to a person, each in a process of its own: Tk never shares the tray's.

``python3 -m usbipssh_tray.dialogs NAME`` reads what to show as one JSON object from its input and
writes the answer as one to its output, with status 0. Cancelled is status 1 and no answer.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import Mapping
from typing import Any

log = logging.getLogger(__name__)

_TERMINATE_SECONDS = 5.0


async def ask(
    name: str, show: Mapping[str, object], environment: Mapping[str, str] | None = None
) -> dict[str, Any] | None:
    """Ask the question ``name`` (add-remote, trust, copy) and wait for the answer.

    None if it was cancelled, or could not be shown: without a display, or without Tk. Cancelling
    this closes the dialog.
    """
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "usbipssh_tray.dialogs", name,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, **(environment or {})},
    )  # fmt: skip
    try:
        output, _errors = await child.communicate(json.dumps(show).encode())
    finally:
        if child.returncode is None:
            await _end(child)
    if child.returncode != 0:
        if child.returncode != 1:
            log.warning("the dialog %s ended with status %s", name, child.returncode)
        return None
    answer = json.loads(output)
    return answer if isinstance(answer, dict) else None


async def _end(child: asyncio.subprocess.Process) -> None:
    child.terminate()
    try:
        async with asyncio.timeout(_TERMINATE_SECONDS):
            await child.wait()
    except TimeoutError:
        child.kill()
        await child.wait()
