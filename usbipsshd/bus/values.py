# SPDX-License-Identifier: GPL-3.0-or-later
"""What passes between the bus and the rest of the daemon: plain values and errors.

Nothing here knows the D-Bus library, so that every part of the daemon may use it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from usbipsshd.errors import Code, UsbipError

BUS = "org.freedesktop.DBus"
BUS_PATH = "/org/freedesktop/DBus"
"""The bus itself (D-Bus specification)."""


def close_fds(fds: list[int]) -> None:
    """Close the descriptors that nobody has taken."""
    for index, fd in enumerate(fds):
        if fd >= 0:
            fds[index] = -1
            os.close(fd)


@dataclass(frozen=True, slots=True)
class Variant:
    """A value together with its D-Bus type, as in ``a{sv}``."""

    signature: str
    value: object


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: a unique bus name, never a process id, and the uid that the bus vouches for."""

    name: str
    uid: int


class BusError(Exception):
    """The error that another bus name answered with; never shown to a caller as it is."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}")
        self.name = name
        self.message = message


class Disconnected(Exception):
    """There is no connection to the bus any more."""


class StandardError(Exception):
    """An answer with one of the standard D-Bus errors that the contract's list does not name.

    ``error`` is the last part of the name: UnknownMethod, UnknownInterface, UnknownProperty,
    PropertyReadOnly (D-Bus specification, "Standard errors" of the reference library).
    """

    def __init__(self, error: str, message: str) -> None:
        super().__init__(message)
        self.dbus_name = "org.freedesktop.DBus.Error." + error
        self.message = message


@dataclass(slots=True)
class Call:
    """One method call that arrived.

    ``args`` are plain values; variants are :class:`Variant`, so ``a{sv}`` is a dictionary of
    names to :class:`Variant`. A value of type ``h`` is an index into ``fds``.
    """

    caller: Caller
    path: str
    interface: str
    """Empty if the caller named none, until the object tree has found the one that is meant."""
    member: str
    signature: str
    args: tuple[object, ...]
    interactive: bool
    """Whether the caller allows that somebody is asked for a password."""
    fds: list[int] = field(default_factory=list, repr=False)
    """Descriptors that came along. They are closed when the call ends."""

    def take(self, index: int) -> int:
        """Descriptor number ``index``, now the taker's to close; raise InvalidArgs for none."""
        if not 0 <= index < len(self.fds) or self.fds[index] < 0:
            raise UsbipError(Code.INVALID_ARGS, "A descriptor that the call names was not sent.")
        fd, self.fds[index] = self.fds[index], -1
        return fd


@dataclass(frozen=True, slots=True)
class Reply:
    """What a call is answered with: a signature and one value for each of its types."""

    signature: str = ""
    body: Sequence[object] = ()


class CallFunction(Protocol):
    """Calls a method of another bus name.

    Raises :exc:`BusError` for its error answer, :exc:`Disconnected` without a bus, and
    :exc:`TimeoutError` when nothing came within ``timeout`` seconds. The message is queued before
    the first suspension; cancelling only stops waiting for the answer.
    """

    async def __call__(  # noqa: D102, PLR0917
        self,
        destination: str,
        path: str,
        interface: str,
        member: str,
        signature: str = "",
        body: Sequence[object] = (),
        *,
        timeout: float = 25.0,  # noqa: ASYNC109
    ) -> tuple[object, ...]: ...


def options(given: object, known: Mapping[str, str]) -> dict[str, object]:
    """The values of an ``a{sv}`` argument whose keys and types must be among ``known``.

    Raises InvalidArgs for an unknown key or a wrong type: a typo must never weaken anything.
    """
    if not isinstance(given, dict):
        raise UsbipError(Code.INVALID_ARGS, "The options are not a dictionary.")
    values: dict[str, object] = {}
    for name, variant in given.items():
        if name not in known:
            allowed = ", ".join(sorted(known)) or "none"
            raise UsbipError(
                Code.INVALID_ARGS, f"There is an unknown option; this method knows: {allowed}."
            )
        if not isinstance(variant, Variant) or variant.signature != known[name]:
            raise UsbipError(
                Code.INVALID_ARGS, f"The option {name} must have the D-Bus type {known[name]}."
            )
        values[name] = variant.value
    return values
