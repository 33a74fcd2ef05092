# SPDX-License-Identifier: GPL-3.0-or-later
"""Which host keys are trusted, and how one is named: known_hosts matching, fingerprints.

Matching is asyncssh's own (hashed names, ports, patterns, @cert-authority, @revoked; see
sshd(8), SSH_KNOWN_HOSTS FILE FORMAT), by the name that was asked for only and never by the
address that it resolved to, as OpenSSH does it without CheckHostIP.
"""

from __future__ import annotations

import base64
import hashlib
import logging
from collections.abc import Sequence
from typing import Any

import asyncssh

log = logging.getLogger(__name__)

MAX_KNOWN_HOSTS = 4 * 1024 * 1024

# In OpenSSH's order of preference; no SHA-1 and no DSA.
KEY_FAMILIES: tuple[tuple[str, ...], ...] = (
    ("ssh-ed25519",),
    ("ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521"),
    ("rsa-sha2-512", "rsa-sha2-256"),
)
_PLAIN = tuple(name for family in KEY_FAMILIES for name in family)
_CERTIFICATES = tuple(f"{name}-cert-v01@openssh.com" for name in _PLAIN)


def fingerprint(key: bytes) -> str:
    """``SHA256:…`` of a public key in ssh wire format, as ssh-keygen -l prints it."""
    digest = base64.b64encode(hashlib.sha256(key).digest())
    return "SHA256:" + digest.rstrip(b"=").decode()


def key_text(key: bytes) -> str:
    """``type base64`` of a public key in ssh wire format, as in a .pub file (RFC 4253, 6.6)."""
    size = int.from_bytes(key[:4], "big")
    return f"{key[4 : 4 + size].decode('ascii', 'replace')} {base64.b64encode(key).decode()}"


def _load(data: bytes) -> asyncssh.SSHKnownHosts:
    known = asyncssh.SSHKnownHosts()
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
        try:
            known.load(line)
        except Exception:
            # One bad line must not make every host unknown, whatever asyncssh trips over: at what
            # looks like X.509 it raises NameError where there is no pyOpenSSL.
            log.warning("known_hosts line %d is malformed, left out", number)
    return known


class TrustedKeys:
    """The keys that ``data``, in known_hosts format, holds for one host."""

    def __init__(self, data: bytes, host: str, port: int) -> None:
        known = _load(data)
        self._host = host
        asked = None if port == 22 else port
        # asyncssh, as OpenSSH, falls back to the entry without a port.
        self.match = known.match(host, "", asked)
        own = known.match(f"[{host}]:{port}" if asked else host, "", None)
        self.known = bool(own[0] or own[1] or own[2])
        """Whether there is any entry for exactly this host and port."""

    def lookup(self, host: str, addr: str, port: int | None) -> Any:
        """What asyncssh's ``known_hosts`` option takes: a function of host, address and port."""
        return self.match

    def algorithms(self) -> Sequence[str]:
        """Host key algorithms to offer: those of the keys we know first, so that a server which
        has several keys shows one of them."""
        keys, authorities = self.match[0], self.match[1]
        known: list[str] = []
        for key in keys:
            names = (a.decode("ascii", "replace") for a in key.sig_algorithms)
            known += [n for n in names if n in _PLAIN and n not in known]
        rest = [n for n in _PLAIN if n not in known]
        return [*(_CERTIFICATES if authorities else ()), *known, *rest]
