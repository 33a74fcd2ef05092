# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is on the bus: the uid behind a unique name, and who has left."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from usbipsshd.bus.values import BUS, BUS_PATH, BusError, Caller, CallFunction

_LOG = logging.getLogger(__name__)


class Callers:
    """What is known of the unique names that have called us.

    Names are never used twice on one bus (D-Bus specification, "Bus names"), so what is
    learned about one holds until it leaves.
    """

    def __init__(self, call: CallFunction) -> None:
        self._call = call
        self._uids: dict[str, int] = {}
        self._asking: dict[str, asyncio.Future[int]] = {}
        self._watches: dict[str, dict[object, Callable[[], None]]] = {}

    def __len__(self) -> int:
        return len(self._uids) + len(self._watches)

    def uid(self, name: str) -> int | None:
        """The uid behind ``name``, if it is known already."""
        return self._uids.get(name)

    async def get(self, name: str) -> Caller:
        """The caller behind ``name``; raise :exc:`BusError` if it has left, or as the bus fails."""
        uid = self._uids.get(name)
        if uid is None:
            uid = await self._ask(name)
        return Caller(name, uid)

    async def _ask(self, name: str) -> int:
        running = self._asking.get(name)
        if running is not None:
            return await asyncio.shield(running)
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        # Somebody else may be waiting or not; an answer that nobody reads is no accident.
        future.add_done_callback(lambda f: f.cancelled() or f.exception())
        self._asking[name] = future
        try:
            body = await self._call(BUS, BUS_PATH, BUS, "GetConnectionUnixUser", "s", [name])
            if not (len(body) == 1 and isinstance(body[0], int)):
                raise BusError(BUS + ".Error.Failed", "not a uid")
        except BaseException as error:
            if not future.done():
                future.set_exception(
                    error
                    if isinstance(error, Exception)
                    else BusError(BUS + ".Error.Failed", "asking was cancelled")
                )
            raise
        else:
            uid = body[0]
            if not future.done():
                future.set_result(uid)
                # Who left while we asked is not remembered: nobody would forget it again.
                self._uids[name] = uid
            return uid
        finally:
            if self._asking.get(name) is future:
                del self._asking[name]

    def watch(self, name: str, gone: Callable[[], None]) -> Callable[[], None]:
        """Call ``gone`` once when ``name`` leaves, at once if it is not here.

        Returns a function that ends the watch. ``name`` must have called us before.
        """
        if name not in self._uids:
            asyncio.get_running_loop().call_soon(gone)
            return lambda: None
        key = object()
        self._watches.setdefault(name, {})[key] = gone

        def unwatch() -> None:
            watches = self._watches.get(name, {})
            watches.pop(key, None)
            if not watches:
                self._watches.pop(name, None)

        return unwatch

    def left(self, name: str) -> None:
        """Take note that ``name`` is no longer on the bus."""
        self._uids.pop(name, None)
        future = self._asking.pop(name, None)
        if future is not None and not future.done():
            future.set_exception(BusError(BUS + ".Error.NameHasNoOwner", "it has left"))
        for gone in self._watches.pop(name, {}).values():
            try:
                gone()
            except Exception:
                _LOG.exception("a watch on a leaving bus name failed")
