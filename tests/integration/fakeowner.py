# SPDX-License-Identifier: GPL-3.0-or-later
"""A made-up service on the private bus: owns a name, answers calls, sends signals."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from integration.busfixtures import SystemBus, bus_call

from usbipsshd.bus.wire import library


class FakeOwner:
    """Owns ``name`` as root; :meth:`answer` is what others make of it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: Any = None
        self._stop: Callable[[], object] = lambda: None

    def answer(self, path: str, member: str, body: list[Any]) -> tuple[str, list[Any]]:
        """Signature and values for a call; runs in the service's thread."""
        raise NotImplementedError

    def descriptors(self, member: str) -> list[int]:
        """Descriptors that go with the answer; they are the service's to close."""
        return []

    def emit(self, path: str, interface: str, member: str, signature: str, *body: object) -> None:
        """Send a signal."""
        message = library("message").Message.new_signal(
            path, interface, member, signature, list(body)
        )
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._client.send, message)

    def _on_message(self, message: Any) -> Any:
        if message.message_type.name != "METHOD_CALL":
            return None
        made = library("message").Message
        try:
            signature, body = self.answer(message.path, message.member, message.body)
        except NotImplementedError:
            return made.new_error(message, "org.freedesktop.DBus.Error.UnknownMethod", "no")
        reply = made.new_method_return(message, signature, body)
        reply.unix_fds = self.descriptors(message.member)
        return reply

    async def serve(self, bus: SystemBus, ready: threading.Event) -> None:
        """Serve until stopped."""
        self._loop = asyncio.get_running_loop()
        over = asyncio.Event()
        self._stop = lambda: self._loop and self._loop.call_soon_threadsafe(over.set)
        self._client = bus.connect()
        await self._client.connect()
        try:
            self._client.add_message_handler(self._on_message)
            await bus_call(self._client, "RequestName", "su", self.name, 4)
            ready.set()
            await over.wait()
        finally:
            self._client.disconnect()
            await self._client.wait_for_disconnect()

    def stop(self) -> None:
        """End :meth:`serve`."""
        self._stop()


@contextmanager
def owning(bus: SystemBus, service: FakeOwner) -> Iterator[FakeOwner]:
    """Run a service in a thread while the context lasts. The private bus must allow its name."""
    ready = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(service.serve(bus, ready)))
    thread.start()
    try:
        assert ready.wait(30)
        yield service
    finally:
        service.stop()
        thread.join()
