# SPDX-License-Identifier: GPL-3.0-or-later
"""Tries a caller's regular expression where it can do no harm: in a process of its own.

An expression can take for ever and any amount of memory, whichever engine runs
it, and a thread cannot be stopped. So a child does it, under hard limits, and is
started only for patterns that are neither a bus id, a vid:pid nor plain words.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence

from usbipsshd.device import Device
from usbipsshd.errors import Code, UsbipError
from usbipsshd.pattern import Pattern, subject

MATCH_SECONDS = 0.25
"""Of the processor, for all the devices of one listing together, once the child has started."""
CHILD_SECONDS = 20.0
"""By the clock, start-up included; slow and busy machines take some seconds for that."""
CHILD_BYTES = 256 << 20
MAX_CHILDREN = 4

_CHILD = f"""
import json, re, resource, signal, sys
resource.setrlimit(resource.RLIMIT_AS, ({CHILD_BYTES}, {CHILD_BYTES}))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
expression, subjects = json.load(sys.stdin)
signal.setitimer(signal.ITIMER_PROF, {MATCH_SECONDS})
search = re.compile(expression).search
json.dump([search(s) is not None for s in subjects], sys.stdout)
"""


class Matcher:
    """Selects devices by pattern."""

    def __init__(self, python: str = sys.executable) -> None:
        self._command = (python, "-I", "-S", "-c", _CHILD)
        self._children = asyncio.Semaphore(MAX_CHILDREN)

    async def select(self, pattern: Pattern, devices: Sequence[Device]) -> list[Device]:
        """The devices that match, in their order.

        Raises :exc:`UsbipError` (InvalidArgs) if an expression takes longer than
        ``MATCH_SECONDS`` or too much memory. Cancelling ends the child.
        """
        if not pattern.expression:
            return pattern.select(devices)
        found = await self._search(pattern.expression, [subject(d) for d in devices])
        return [d for d, hit in zip(devices, found, strict=True) if hit is not pattern.negated]

    async def _search(self, expression: str, subjects: list[str]) -> list[bool]:
        async with self._children:
            child = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
            try:
                async with asyncio.timeout(CHILD_SECONDS):
                    out, _ = await child.communicate(json.dumps([expression, subjects]).encode())
            except TimeoutError:
                out = b""
            finally:
                if child.returncode is None:
                    child.kill()
                    await child.wait()
        if child.returncode != 0 or not out:
            raise UsbipError(
                Code.INVALID_ARGS, "The pattern takes too long to match; write it simpler."
            )
        return [hit is True for hit in json.loads(out)]
