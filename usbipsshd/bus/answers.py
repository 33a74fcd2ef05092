# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may answer a call of ours: nobody but whom we have asked.

An answer names the call that it is for by a number, which is easily guessed. The system bus lets
nobody answer what they were not asked (``send_requested_reply``, dbus-daemon(1)); a root process
that acts on polkit's word does not leave it at that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

from usbipsshd.bus.values import BUS


@dataclass(slots=True, eq=False, weakref_slot=True)
class Waiting:
    """A call that is not answered yet."""

    destination: str
    answer: asyncio.Future[Any]
    at_once: Callable[[tuple[object, ...]], None] | None = None
    """Gets the values before anything that arrives after them is looked at."""
    senders: frozenset[str] | None = None
    """Who may answer it; None for whomever the bus lets."""

    def may_come_from(self, sender: str) -> bool:
        """Whether an answer of ``sender`` is the one that is waited for."""
        return self.senders is None or sender in self.senders


class Answers:
    """Knows who owns the names that we call, from the bus's own word, and from the first call on.

    ``ask`` asks the bus for a name's owner, before anything else that is sent afterwards, and tells
    what it says if there is one. Later owners are told to :meth:`owner_is`.
    """

    def __init__(self, ask: Callable[[str, Callable[[str], None]], None]) -> None:
        self._ask = ask
        self._owners: dict[str, str] = {}
        self._waiting: WeakSet[Waiting] = WeakSet()

    def expect(self, waiting: Waiting) -> None:
        """Decide who may answer a call that is about to be sent.

        Who owns its destination now, whoever comes to own it before there is an answer (a service
        that the bus starts for this), and the bus itself, which says that there will be none.
        """
        name = waiting.destination
        if name == BUS or name.startswith(":"):
            waiting.senders = frozenset({BUS, name})
            return
        waiting.senders = frozenset({BUS, self._owners.get(name, BUS)})
        self._waiting.add(waiting)
        if name not in self._owners:
            self._owners[name] = BUS
            self._ask(name, lambda owner: self.owner_is(name, owner))

    def owner_is(self, name: str, owner: str) -> None:
        """A name has another owner now, or none."""
        if name not in self._owners:
            return
        self._owners[name] = owner or BUS
        for waiting in self._waiting:
            if waiting.destination == name and waiting.senders is not None and owner:
                waiting.senders |= {owner}
