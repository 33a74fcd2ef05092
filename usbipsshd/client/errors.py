# SPDX-License-Identifier: GPL-3.0-or-later
"""What goes wrong between a client and the daemon, in sentences for people."""

from __future__ import annotations

from usbipsshd.bus.values import BusError, Disconnected


class ClientError(Exception):
    """What the daemon or the bus answered: ``name`` is the D-Bus error, the text for people."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name
        self.message = message

    @property
    def code(self) -> str:
        """The last part of the name, such as DeviceNotFound."""
        return self.name.rpartition(".")[2]


_WORDS = {
    "ServiceUnknown": "usbipsshd is not installed here, or cannot be started; "
    "journalctl -u usbipsshd says why.",
    "NameHasNoOwner": "usbipsshd does not run.",
    "NoReply": "usbipsshd went away in the middle; try again.",
}
"""What a bus says for a service that is not there, for people."""


def explained(error: BusError | Disconnected | TimeoutError) -> ClientError:
    """What became of a call, for people."""
    if isinstance(error, BusError):
        last = error.name.rpartition(".")[2]
        if error.name.startswith("org.freedesktop.DBus.Error.Spawn"):
            last = "ServiceUnknown"
        return ClientError(error.name, _WORDS.get(last, error.message))
    if isinstance(error, TimeoutError):
        return ClientError(
            "org.freedesktop.DBus.Error.NoReply", "usbipsshd did not answer in time; try again."
        )
    return ClientError(
        "org.freedesktop.DBus.Error.Disconnected", "There is no system bus to talk to usbipsshd."
    )
