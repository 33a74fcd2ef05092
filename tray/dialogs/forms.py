# SPDX-License-Identifier: GPL-3.0-or-later
"""What the dialogs ask and accept, without any widget."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from usbipssh_tray.text import _
from usbipsshd.address import DEFAULT_USER, is_name, parse_address
from usbipsshd.errors import UsbipError

NAME, ADDRESS = "name", "address"
"""The fields of :class:`AddRemote` that a problem can be about."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a form: the field to go to, and a sentence."""

    field: str
    sentence: str


@dataclass(frozen=True, slots=True)
class AddRemote:
    """A remote as a person typed it."""

    name: str = ""
    address: str = ""
    sudo: bool = False
    label: str = ""

    @classmethod
    def shown(cls, show: Mapping[str, object]) -> AddRemote:
        """The form as it is shown first."""
        return cls(
            str(show.get("name", "")),
            str(show.get("address", "")),
            show.get("sudo") is True,
            str(show.get("label", "")),
        )

    def problem(self, taken: Collection[str]) -> Problem | None:
        """Why this cannot be added, if it cannot; ``taken`` are the names of other remotes."""
        address, name = self.address.strip(), self.name.strip()
        if not address:
            return Problem(ADDRESS, _("Where is it? A host name is enough."))
        try:
            parse_address(address)
        except UsbipError:
            return Problem(ADDRESS, _("An address is host, user@host or user@host:port."))
        if not name:
            return Problem(NAME, _("It needs a name."))
        if not is_name(name):
            return Problem(NAME, _("A name has letters, digits, “.”, “_” and “-” only."))
        if name in taken:
            return Problem(NAME, _("There is a machine called {name} already.").format(name=name))
        return None

    def hint(self) -> str:
        """What a person may want to know about what is typed so far; may be empty."""
        try:
            user = parse_address(self.address.strip()).user
        except UsbipError:
            return ""
        if user == DEFAULT_USER or self.sudo:
            return ""
        return _("{user} can share devices only with sudo.").format(user=user)

    def answer(self) -> dict[str, object]:
        """The form as the tray gets it."""
        return {
            "name": self.name.strip(),
            "address": self.address.strip(),
            "sudo": self.sudo,
            "label": self.label,
        }


def suggested_name(address: str, taken: Collection[str]) -> str:
    """A free name for the machine at ``address``; empty if there is none to think of."""
    try:
        host = parse_address(address.strip()).host
    except UsbipError:
        return ""
    is_number = ":" in host or host.replace(".", "").isdigit()
    first = host.replace(":", "-") if is_number else host.partition(".")[0]
    names = [first, *(f"{first}-{number}" for number in range(2, 10))]
    return next((name for name in names if is_name(name) and name not in taken), "")


def paste_line(public_key: str) -> str:
    """The line that lets the daemon log in, for a shell on the remote."""
    return f"mkdir -p ~/.ssh && echo {shlex.quote(public_key)} >> ~/.ssh/authorized_keys"


def mnemonic(text: str) -> tuple[str, int]:
    """``&Add`` as its text and the place of the underlined letter; -1 if there is none."""
    before, mark, after = text.partition("&")
    return before + after, len(before) if mark and after else -1
