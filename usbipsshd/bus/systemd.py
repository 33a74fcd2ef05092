# SPDX-License-Identifier: GPL-3.0-or-later
"""What systemd is doing to us (org.freedesktop.systemd1(5))."""

from __future__ import annotations

import asyncio
import os

from usbipsshd.bus.values import BusError, CallFunction, Disconnected, Variant

_NAME = "org.freedesktop.systemd1"
_PATH = "/org/freedesktop/systemd1"
_PROPERTIES = "org.freedesktop.DBus.Properties"
_SECONDS = 2.0
LOAD_SECONDS = 15.0
_LOOK_SECONDS = 0.1


async def load_module(call: CallFunction, module: str) -> bool:
    """Have systemd load a kernel module of this machine; whether it has done what it could.

    Its unit modprobe@.service has the right to, which the daemon's own does without.
    """
    # In a unit's name a dash would stand for a slash; modules have either.
    unit = f"modprobe@{module.replace('-', '_')}.service"
    try:
        async with asyncio.timeout(LOAD_SECONDS):
            (job,) = await call(
                _NAME, _PATH, f"{_NAME}.Manager", "RestartUnit", "ss", [unit, "replace"],
                timeout=LOAD_SECONDS,
            )  # fmt: skip
            while True:
                await asyncio.sleep(_LOOK_SECONDS)
                if not await _is_under_way(call, str(job)):
                    return True
    except (BusError, Disconnected, TimeoutError, ValueError):
        return False


async def _is_under_way(call: CallFunction, job: str) -> bool:
    try:
        await _get(call, job, f"{_NAME}.Job", "State")
    except BusError:
        return False  # a job that is done is no object any more
    return True


async def is_restarting(call: CallFunction) -> bool:
    """Whether the unit we run in is being restarted, so that another process follows this one."""
    try:
        (unit,) = await call(
            _NAME, _PATH, f"{_NAME}.Manager", "GetUnitByPID", "u", [os.getpid()], timeout=_SECONDS
        )
        job = await _get(call, str(unit), f"{_NAME}.Unit", "Job")
        if not isinstance(job, (list, tuple)) or len(job) != 2 or not job[0]:
            return False
        kind = await _get(call, str(job[1]), f"{_NAME}.Job", "JobType")
    except (BusError, Disconnected, TimeoutError, ValueError):
        return False
    return kind in ("restart", "try-restart")


async def _get(call: CallFunction, path: str, interface: str, name: str) -> object:
    (value,) = await call(
        _NAME, path, _PROPERTIES, "Get", "ss", [interface, name], timeout=_SECONDS
    )
    return value.value if isinstance(value, Variant) else value
