# SPDX-License-Identifier: GPL-3.0-or-later
"""Who listens to signals of other services, and whether those are there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from usbipsshd.bus.values import BUS, BUS_PATH, BusError, CallFunction

SignalHandler = Callable[[tuple[object, ...]], None]


@dataclass(slots=True)
class _Listening:
    """Who listens to one signal."""

    name: str
    """The sender's well-known name."""
    owner: str
    """Who owns that name now; empty for nobody."""
    handler: SignalHandler
    owner_changed: Callable[[bool], None] | None


class Signals:
    """The signals that are listened to, by interface and member."""

    def __init__(self, call: CallFunction) -> None:
        self._call = call
        self._listening: dict[tuple[str, str], _Listening] = {}

    async def listen(
        self,
        name: str,
        path: str,
        interface: str,
        member: str,
        handler: SignalHandler,
        *,
        owner_changed: Callable[[bool], None] | None = None,
    ) -> bool:
        """Call ``handler`` with the values of each such signal from ``name``'s present owner.

        Returns whether there is one. It may come, go and be replaced, which ``owner_changed`` is
        told: whether there is one now.
        """
        listening = _Listening(name, "", handler, owner_changed)
        self._listening[interface, member] = listening
        rule = (
            f"type='signal',sender='{name}',path='{path}',interface='{interface}',member='{member}'"
        )
        await self._call(BUS, BUS_PATH, BUS, "AddMatch", "s", [rule])
        try:
            body = await self._call(BUS, BUS_PATH, BUS, "GetNameOwner", "s", [name])
        except BusError as error:
            if error.name != BUS + ".Error.NameHasNoOwner":
                raise
        else:
            listening.owner = str(body[0])
        return bool(listening.owner)

    def owner_changed(self, name: str, owner: str) -> None:
        """A well-known name has another owner; empty for none."""
        for listening in self._listening.values():
            if listening.name == name:
                listening.owner = owner
                if listening.owner_changed is not None:
                    listening.owner_changed(bool(owner))

    def find(self, interface: str, member: str, sender: str) -> SignalHandler | None:
        """Who gets this signal.

        One that is sent to us alone passes every rule, so the sender is looked at here.
        """
        found = self._listening.get((interface, member))
        return found.handler if found is not None and sender == found.owner else None
