# SPDX-License-Identifier: GPL-3.0-or-later
"""``--wait``: stay for as long as an attachment lasts, and tell systemd how it is."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from usbipsshd.client.daemon import Client
from usbipsshd.client.errors import ClientError
from usbipsshd.client.snapshot import Attachment, Hub, Snapshot
from usbipsshd.ctl.exitcodes import Exit
from usbipsshd.notify import Notifier

RESTART_SECONDS = 60.0
"""How long a daemon may take to come back; what was attached comes back with it."""


def _find(snapshot: Snapshot, path: str) -> Attachment | Hub | None:
    every: list[Attachment | Hub] = [*snapshot.attachments, *snapshot.hubs]
    return next((one for one in every if one.path == path), None)


def _known(snapshot: Snapshot) -> bool:
    """Whether it is known what there is: the daemon is there, and has told."""
    return snapshot.present and bool(snapshot.manager.version)


async def hold(client: Client, path: str, said: Callable[[], None]) -> Exit | None:
    """Wait until what is attached at ``path`` has ended: None. At a signal detach it: OK.

    ``said`` is called once a signal would be noticed. Raises :exc:`ClientError` when the daemon or
    the bus has gone.
    """
    notifier = Notifier(os.environ.get("NOTIFY_SOCKET", ""))

    def tell() -> None:
        found = _find(client.snapshot, path)
        if found is not None:
            here = found.local_bus_id if isinstance(found, Attachment) else ""
            notifier.send(f"STATUS={found.state} {here}".rstrip())

    told = asyncio.Event()
    stop = client.listen(tell)
    tasks = [
        asyncio.create_task(_ended(client, path)),
        asyncio.create_task(client.disconnected()),
        asyncio.create_task(told.wait()),
    ]
    ended, lost, _ = tasks
    try:
        with _on_signals(told.set):
            said()
            tell()
            notifier.send("READY=1")
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            notifier.send("STOPPING=1")
            if told.is_set():
                await _detach(client, path)
                return Exit.OK
            if lost.done():
                raise ClientError(
                    "org.freedesktop.DBus.Error.Disconnected", "The system bus is gone."
                )
            ended.result()
            return None
    finally:
        stop()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _detach(client: Client, path: str) -> None:
    try:
        await client.detach(path)
    except ClientError as error:
        # It ended at the same moment.
        if error.code != "NotAttached":
            raise


async def _ended(client: Client, path: str) -> None:
    while True:
        await client.wait_until(
            lambda s: not s.present or (_known(s) and _find(s, path) is None), None
        )
        if client.snapshot.present:
            return
        try:
            await client.wait_until(_known, RESTART_SECONDS)
        except TimeoutError:
            raise ClientError(
                "org.freedesktop.DBus.Error.NameHasNoOwner", "usbipsshd does not run any more."
            ) from None


@contextmanager
def _on_signals(handler: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
