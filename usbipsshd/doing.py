# SPDX-License-Identifier: GPL-3.0-or-later
"""What is done for one attachment, whichever way it goes: the one thing that each direction does
in its own way.

:mod:`usbipsshd.importing` brings a remote's device here, :mod:`usbipsshd.exporting`
a device of this machine there; :mod:`usbipsshd.attachments` knows neither.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from usbipsshd.attachment import Attachment
from usbipsshd.control import Session
from usbipsshd.errors import UsbipError
from usbipsshd.importer import Imported
from usbipsshd.link import Link


@dataclass(frozen=True, slots=True)
class Lent:
    """A device of this machine on a port of a remote's vhci."""

    busid: str
    """Its bus id on this machine."""
    there: str
    """Its bus id on the remote."""
    port: int
    nodes: tuple[str, ...] = ()
    """Its nodes there, as paths."""


Where = Imported | Lent
"""Where an attached device is: what another process needs to go on with it."""


class Table(Protocol):
    """What one attachment knows of the others."""

    def at(self, remote: str, busid: str) -> Attachment | None:
        """The attachment of a remote's device."""

    def lent(self, busid: str) -> Attachment | None:
        """The attachment of a device of this machine."""

    def changed(self, attachment: Attachment) -> None:
        """Something published of it has changed."""


class Doing(ABC):
    """One attachment's I/O. What was done is known here until it is given back."""

    waits_for_remote = True
    """Whether what it waits for appears on the remote."""

    def __init__(self, attachment: Attachment, table: Table) -> None:
        self.attachment = attachment
        self.table = table
        self.where: Where | None = None
        self.session: Session | None = None
        """The session that has its part in it; None before it was asked to."""
        self.failed: tuple[str, int] | None = None
        """Bus id and device number of what failed although it was there: trying changes it,
        so that what changes there is no good news before it is plugged in anew."""
        self.ended: asyncio.Future[UsbipError] = asyncio.get_running_loop().create_future()
        """Done when the device or its connection is gone, with why."""

    def end(self, error: UsbipError) -> None:
        """The device or its connection is gone."""
        if self.session is not None and not self.ended.done():
            self.ended.set_result(error)

    async def give_back(self) -> None:
        """Undo whatever was done; bounds its own time."""
        where, self.where = self.where, None
        session, self.session = self.session, None
        self.ended = asyncio.get_running_loop().create_future()
        await self.undo(where, session)

    @abstractmethod
    async def attach(self, link: Link, *, again: bool) -> str:
        """Do everything until the device is usable; where it is, in words for the log.

        ``again``: find the device first, which may be elsewhere now, or gone. Raises
        :exc:`UsbipError`.
        """

    @abstractmethod
    async def undo(self, where: Where | None, session: Session | None) -> None:
        """See :meth:`give_back`."""

    @abstractmethod
    def take_over(self, where: Where) -> bool:
        """Own what an earlier process attached; whether it is still there."""

    @abstractmethod
    def look(self) -> None:
        """Something changed on this machine while it was attached."""

    def look_there(self) -> None:  # noqa: B027 - an import has nothing to see there
        """Something changed on the remote while it was attached."""

    def appeared_here(self) -> bool:
        """Whether something was plugged in on this machine that it may be waiting for."""
        return False

    @abstractmethod
    async def statistics(self) -> tuple[int, int]:
        """Bytes received from and sent to the remote; raise :exc:`UsbipError`."""


Craft = Callable[[Attachment, Table], Doing]
"""Makes the :class:`Doing` of an attachment."""
