# SPDX-License-Identifier: GPL-3.0-or-later
"""Loads a kernel module on this machine."""

from __future__ import annotations

import asyncio

MODPROBE_SECONDS = 15.0


async def modprobe(module: str) -> bool:
    """Load ``module`` and its dependencies; whether modprobe said that it worked."""
    try:
        child = await asyncio.create_subprocess_exec(
            "modprobe",
            "--quiet",
            module,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        )
    except OSError:
        return False
    try:
        async with asyncio.timeout(MODPROBE_SECONDS):
            return await child.wait() == 0
    except TimeoutError:
        return False
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
