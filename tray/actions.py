# SPDX-License-Identifier: GPL-3.0-or-later
"""What a person can ask for, as plain values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Detach:
    """Detach the attachment or hub at ``path``."""

    path: str
    name: str = ""


@dataclass(frozen=True, slots=True)
class Retry:
    """Try the waiting attachment or hub at ``path`` again now."""

    path: str


@dataclass(frozen=True, slots=True)
class Attach:
    """Attach a device of a remote, and no other one than this."""

    remote: str
    busid: str
    vendor_id: int
    product_id: int
    name: str = ""
    keep: bool = False
    persist: bool = False


@dataclass(frozen=True, slots=True)
class AttachAll:
    """Attach whatever the remote has, now and later."""

    remote: str


@dataclass(frozen=True, slots=True)
class SetOptions:
    """Change what becomes of the attachment at ``path`` later; what is None stays as it is."""

    path: str
    name: str = ""
    keep: bool | None = None
    persist: bool | None = None


@dataclass(frozen=True, slots=True)
class Refresh:
    """Look again what a remote has; every remote if it is empty."""

    remote: str = ""


@dataclass(frozen=True, slots=True)
class AddRemote:
    """Ask which machine to add."""


@dataclass(frozen=True, slots=True)
class TrustKey:
    """Ask whether the fingerprint that a remote presents is its own."""

    remote: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Copy:
    """Put text on the clipboard."""

    text: str


@dataclass(frozen=True, slots=True)
class StartDaemon:
    """Start the daemon."""


@dataclass(frozen=True, slots=True)
class Quit:
    """End the tray; what is attached stays."""


Action = (
    Detach
    | Retry
    | Attach
    | AttachAll
    | SetOptions
    | Refresh
    | AddRemote
    | TrustKey
    | Copy
    | StartDaemon
    | Quit
)
