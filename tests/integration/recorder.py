# SPDX-License-Identifier: GPL-3.0-or-later
"""Records the daemon's signals as a program on the bus gets them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from integration.busfixtures import SystemBus, bus_call

T = TypeVar("T")


@dataclass(frozen=True)
class Signal:
    """One signal; values without the types of variants."""

    path: str
    interface: str
    member: str
    body: list[Any]
    at: float = field(default_factory=time.time, compare=False)
    """When it came, in seconds since the epoch."""


class Recorder:
    """What has come so far, in order."""

    def __init__(self) -> None:
        self.signals: list[Signal] = []
        self._changed = threading.Condition()

    def put(self, signal: Signal) -> None:
        """Note a signal."""
        with self._changed:
            self.signals.append(signal)
            self._changed.notify_all()

    def wait(self, find: Callable[[list[Signal]], T | None], seconds: float = 60) -> T:
        """Wait until ``find`` finds something in all the signals so far, and return that."""
        end = time.monotonic() + seconds
        with self._changed:
            while not (found := find(self.signals)):
                if not self._changed.wait(end - time.monotonic()):
                    raise AssertionError(f"it never came; there were {self.signals}")
        return found

    def values(self, path: str, name: str) -> list[Any]:
        """Every value that a property had: first as it was added, then each as it changed."""
        found = []
        with self._changed:
            for signal in self.signals:
                if signal.member == "InterfacesAdded" and signal.body[0] == path:
                    found += [v[name] for v in signal.body[1].values() if name in v]
                elif signal.member == "PropertiesChanged" and signal.path == path:
                    found += [signal.body[1][name]] if name in signal.body[1] else []
        return found

    def wait_value(self, path: str, name: str, wanted: Any) -> None:
        """Wait until a property's last told value is ``wanted``."""
        self.wait(lambda _: self.values(path, name)[-1:] == [wanted])

    def wait_removed(self, path: str) -> list[str]:
        """Wait until an object is told to be gone; the interfaces that were named."""
        return self.wait(
            lambda signals: next(
                (
                    s.body[1]
                    for s in signals
                    if s.member == "InterfacesRemoved" and s.body[0] == path
                ),
                None,
            )
        )


def _plain(value: Any) -> Any:
    if hasattr(value, "signature") and hasattr(value, "value"):
        return _plain(value.value)
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return value


@contextmanager
def recording(bus: SystemBus, name: str) -> Iterator[Recorder]:
    """Record what the owner of ``name`` signals, in a thread with a connection of its own."""
    recorder = Recorder()
    ready = threading.Event()
    stop: list[Callable[[], object]] = []

    async def listen() -> None:
        client = bus.connect()
        await client.connect()
        try:
            owner = (await bus_call(client, "GetNameOwner", "s", name)).body[0]

            def seen(message: Any) -> None:
                if message.sender == owner and message.message_type.name == "SIGNAL":
                    body = [_plain(v) for v in message.body]
                    recorder.put(Signal(message.path, message.interface, message.member, body))

            client.add_message_handler(seen)
            await bus_call(client, "AddMatch", "s", f"type='signal',sender='{name}'")
            over = asyncio.Event()
            loop = asyncio.get_running_loop()
            stop.append(lambda: loop.call_soon_threadsafe(over.set))
            ready.set()
            await over.wait()
        finally:
            client.disconnect()

    thread = threading.Thread(target=lambda: asyncio.run(listen()))
    thread.start()
    try:
        assert ready.wait(30)
        yield recorder
    finally:
        for end in stop:
            end()
        thread.join()
