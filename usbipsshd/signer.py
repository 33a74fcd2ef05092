# SPDX-License-Identifier: GPL-3.0-or-later
"""The little ssh-agent through which a session uses private keys.

A session never sees the private key: it asks for signatures over a socket, in the
ssh-agent protocol (draft-ietf-sshm-ssh-agent), and gets them for ssh logins only.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Sequence
from typing import Protocol

log = logging.getLogger(__name__)

REQUEST_IDENTITIES = 11
IDENTITIES_ANSWER = 12
SIGN_REQUEST = 13
SIGN_RESPONSE = 14
EXTENSION = 27
SUCCESS = 6
FAILURE = 5
SESSION_BIND = b"session-bind@openssh.com"

MAX_MESSAGE = 8192
MAX_SIGNATURES = 8
"""For one connection: one login needs one, jump hosts and retries a few more."""
_USERAUTH_REQUEST = 50


class BadMessage(ValueError):
    """Not a message of the ssh-agent protocol, or nothing that we sign."""


def string(data: bytes) -> bytes:
    """``data`` with its length before it (RFC 4251, section 5)."""
    return struct.pack(">I", len(data)) + data


class Reader:
    """Takes ssh's wire format apart (RFC 4251, section 5); raises :exc:`BadMessage`."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def rest(self) -> bytes:
        """What was not taken yet."""
        return self._data

    def take(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        if count > len(self._data):
            raise BadMessage("cut short")
        head, self._data = self._data[:count], self._data[count:]
        return head

    def string(self) -> bytes:
        """The next string."""
        return self.take(struct.unpack(">I", self.take(4))[0])

    def end(self) -> None:
        """Nothing may be left."""
        if self._data:
            raise BadMessage("too long")


def check_login(data: bytes, blob: bytes) -> str:
    """The user that a signature over ``data`` would log in; raise :exc:`BadMessage` for
    anything but a login with key ``blob`` (RFC 4252, section 7).
    """
    reader = Reader(data)
    if not 16 <= len(reader.string()) <= 64:
        raise BadMessage("no session identifier")
    if reader.take(1)[0] != _USERAUTH_REQUEST:
        raise BadMessage("not a login")
    user = reader.string()
    if (reader.string(), reader.string(), reader.take(1)) != (
        b"ssh-connection",
        b"publickey",
        b"\x01",
    ):
        raise BadMessage("not a login by public key")
    if reader.string() not in _algorithms(blob) or reader.string() != blob:
        raise BadMessage("another key")
    reader.end()
    return user.decode("utf-8", "replace")


def check_binding(body: bytes) -> None:
    """Raise :exc:`BadMessage` unless an extension is what ties an agent to the login that follows.

    OpenSSH's PROTOCOL.agent, section 1: the host's key, the session identifier and the host's
    signature over it, and that nothing is forwarded.
    """
    reader = Reader(body)
    if reader.string() != SESSION_BIND:
        raise BadMessage("another extension")
    reader.string()
    if not 16 <= len(reader.string()) <= 64:
        raise BadMessage("no session identifier")
    reader.string()
    if reader.take(1) != b"\0":
        raise BadMessage("an agent that is passed on")
    reader.end()


def _algorithms(blob: bytes) -> tuple[bytes, ...]:
    """How a login may be signed with a key or a certificate (RFC 8332, section 3)."""
    kind = Reader(blob).string()
    end = b"-cert-v01@openssh.com"
    if kind.removesuffix(end) == b"ssh-rsa":
        tail = end if kind.endswith(end) else b""
        return b"rsa-sha2-256" + tail, b"rsa-sha2-512" + tail
    return (kind,)


class SigningKey(Protocol):
    """A private key of which only signatures are to be had."""

    @property
    def blobs(self) -> Sequence[bytes]:
        """Its certificates and its public key, as they are sent, in the order to try them."""

    comment: str

    def sign(self, data: bytes, flags: int) -> bytes:
        """A signature as it is sent; raise :exc:`BadMessage` for flags that ask for a weak one."""


class Signer:
    """Answers one session's requests for signatures on a connected socket."""

    def __init__(self, keys: Sequence[SigningKey], remote: str) -> None:
        self._keys = keys
        self.remote = remote
        """Named in the log."""
        self._left = MAX_SIGNATURES

    async def serve(self, sock: socket.socket) -> None:
        """Answer until the other end closes or sends what is no message; closes ``sock``."""
        reader, writer = await asyncio.open_unix_connection(sock=sock)
        try:
            while True:
                size = struct.unpack(">I", await reader.readexactly(4))[0]
                if not 1 <= size <= MAX_MESSAGE:
                    break
                writer.write(string(await self.reply(await reader.readexactly(size))))
                await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()

    async def reply(self, message: bytes) -> bytes:
        """The answer to one message, which may take a while to find."""
        return self.answer(message)

    def offered(self) -> list[tuple[bytes, str]]:
        """The keys that are offered, with their comments."""
        return [(blob, key.comment) for key in self._keys for blob in key.blobs]

    def key(self, blob: bytes) -> SigningKey | None:
        """Our own private key for a public one or a certificate."""
        return next((k for k in self._keys if blob in k.blobs), None)

    def spend(self) -> bool:
        """Whether one more signature is allowed; it counts."""
        self._left -= 1
        return self._left >= 0

    def answer(self, message: bytes) -> bytes:
        """The answer to one message: what we don't do is answered with FAILURE."""
        try:
            if message[0] == REQUEST_IDENTITIES:
                return identities_answer(self.offered())
            if message[0] == SIGN_REQUEST:
                blob, data, flags = read_sign_request(message[1:])
                key = self.key(blob)
                if key is None:
                    raise BadMessage("another key")
                if self.spend():
                    return bytes([SIGN_RESPONSE]) + string(key.sign(data, flags))
        except (BadMessage, struct.error) as error:
            log.warning("%s: refused a signature: %s", self.remote, error)
        except Exception as error:
            log.error("%s: cannot use a key: %s", self.remote, error)  # noqa: TRY400
        return bytes([FAILURE])


def identities_answer(offered: Sequence[tuple[bytes, str]]) -> bytes:
    """The list of keys, each with a comment, as an agent answers it."""
    entries = [string(blob) + string(comment.encode()) for blob, comment in offered]
    return bytes([IDENTITIES_ANSWER]) + struct.pack(">I", len(entries)) + b"".join(entries)


def read_sign_request(body: bytes) -> tuple[bytes, bytes, int]:
    """Key, data and flags of a request to sign; raise :exc:`BadMessage` or struct.error for
    anything but a login (see :func:`check_login`).
    """
    rest = Reader(body)
    blob, data = rest.string(), rest.string()
    flags = struct.unpack(">I", rest.take(4))[0] if rest.rest() else 0
    check_login(data, blob)
    return blob, data, flags
