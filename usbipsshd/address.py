# SPDX-License-Identifier: GPL-3.0-or-later
"""What a remote is called and where its ssh server is: how callers and files write it."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field

from usbipsshd.errors import Code, UsbipError

DEFAULT_USER = "root"
DEFAULT_PORT = 22

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}", re.ASCII)
_USER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,31}\$?", re.ASCII)
_HOST = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,251}[A-Za-z0-9_.])?", re.ASCII)
_ADDRESS = re.compile(
    r"(?:(?P<user>[^@]*)@)?(?:\[(?P<six>[^\]]*)\]|(?P<host>[^\[\]:@]*))(?::(?P<port>[0-9]{1,5}))?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Address:
    """Where sshd is, and whom to log in as."""

    user: str
    host: str
    port: int
    user_given: bool = field(default=True, compare=False)
    port_given: bool = field(default=True, compare=False)
    """Whether they were written down, so that no configuration may say otherwise."""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == DEFAULT_PORT else f":{self.port}"
        return f"{self.user}@{host}{port}"

    @property
    def known_hosts_name(self) -> str:
        """The host as a known_hosts file has it (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT)."""
        return self.host if self.port == DEFAULT_PORT else f"[{self.host}]:{self.port}"


def is_name(text: str) -> bool:
    """Whether a remote may be listed under this name."""
    return _NAME.fullmatch(text) is not None


def parse_address(text: str) -> Address:
    """Parse ``[user@]host[:port]`` or ``[user@][v6addr][:port]``.

    Raises :exc:`UsbipError` (InvalidArgs).
    """
    match = _ADDRESS.fullmatch(text) if len(text) <= 320 else None
    if match is None:
        raise _bad_address()
    user = DEFAULT_USER if match["user"] is None else match["user"]
    port = int(match["port"] or DEFAULT_PORT)
    if match["six"] is not None:
        try:
            host = str(ipaddress.IPv6Address(match["six"]))
        except ValueError:
            raise _bad_address() from None
        if "%" in host and not re.fullmatch(r"[0-9a-f:.]+%[A-Za-z0-9_.-]{1,15}", host, re.ASCII):
            raise _bad_address()
    else:
        host = match["host"]
        if not _HOST.fullmatch(host):
            raise _bad_address()
    if not _USER.fullmatch(user) or not 0 < port < 65536:
        raise _bad_address()
    return Address(
        user, host, port, user_given=match["user"] is not None, port_given=match["port"] is not None
    )


def _bad_address() -> UsbipError:
    return UsbipError(
        Code.INVALID_ARGS,
        "An address is [user@]host[:port], or [user@][v6addr]:port.",
    )
