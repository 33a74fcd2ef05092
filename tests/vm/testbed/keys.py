# SPDX-License-Identifier: GPL-3.0-or-later
"""What is typed on a machine, read from its /dev/input."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from .host import TestbedError
from .machine import Machine

# struct input_event on 64 bits (linux/input.h): two longs of time, type, code, value.
_EVENT = struct.Struct("<16xHHi")
_TYPE_KEY = 1
_REPEATED = 2

# The first line tells that the device is open: nothing typed from then on is missed. The script
# ends with its input, and takes the reader with it.
_READER = 'exec 3< "$1"; echo open; cat <&3 & read -r end; kill $!'


@dataclass(frozen=True)
class KeyEvent:
    """A key that went down (value 1) or up (0); codes are linux/input.h's."""

    code: int
    value: int


@contextmanager
def key_events(machine: Machine, node: str) -> Iterator[Iterator[KeyEvent]]:
    """Keys from an input device such as /dev/input/event1, while the block runs.

    A key that is let go late repeats (value 2); how often is a matter of the machine's speed, so
    that is left out. The iterator ends after 90 seconds: a test that waits for a key in vain fails.
    """
    with machine.ssh.start("timeout", "90", "sh", "-c", _READER, "sh", node) as reader:
        assert reader.stdout is not None
        assert reader.stdin is not None
        stream = reader.stdout
        try:
            if stream.readline() != b"open\n":
                raise TestbedError(f"{node} cannot be read on {machine.name}")

            def events() -> Iterator[KeyEvent]:
                while len(raw := stream.read(_EVENT.size)) == _EVENT.size:
                    kind, code, value = _EVENT.unpack(raw)
                    if kind == _TYPE_KEY and value != _REPEATED:
                        yield KeyEvent(code, value)

            yield events()
        finally:
            reader.stdin.close()
            reader.wait(timeout=120)
