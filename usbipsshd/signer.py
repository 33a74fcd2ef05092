# SPDX-License-Identifier: GPL-3.0-or-later
"""The daemon's ssh key, and the little ssh-agent through which a session uses it.

A session never sees the private key: it asks for signatures over a socket, in the
ssh-agent protocol (draft-ietf-sshm-ssh-agent), and gets them for ssh logins only.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

log = logging.getLogger(__name__)

REQUEST_IDENTITIES = 11
IDENTITIES_ANSWER = 12
SIGN_REQUEST = 13
SIGN_RESPONSE = 14
FAILURE = 5

MAX_MESSAGE = 8192
MAX_SIGNATURES = 8
"""For one connection: one login needs one, jump hosts and retries a few more."""
KEY_TYPE = b"ssh-ed25519"
_USERAUTH_REQUEST = 50
COMMENT = "usbipsshd"


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


class Key:
    """The daemon's own ed25519 key, kept in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._private = folder / "id_ed25519"
        self._public = folder / "id_ed25519.pub"
        self.comment = COMMENT
        self.line = ""
        """The public key as one line of OpenSSH's format, without a newline."""

    def load(self) -> None:
        """Read the key, or make it on first start; raise :exc:`OSError` or ValueError."""
        if not self._private.exists():
            self._make()
        if not self._public.exists():
            self._write(self._public, self._public_line(self._open()), 0o644)
        self.line = self._public.read_text().strip()
        words = self.line.split(" ")
        if words[0] != KEY_TYPE.decode() or len(words) < 2 or not self.line.isprintable():
            raise ValueError(f"{self._public} holds no ed25519 key")
        if len(self.blob) != 4 + len(KEY_TYPE) + 4 + 32:
            raise ValueError(f"{self._public} holds no ed25519 key")

    @property
    def blob(self) -> bytes:
        """The public key as it is sent (RFC 8709, section 4)."""
        return base64.b64decode(self.line.split()[1])

    @property
    def blobs(self) -> tuple[bytes]:
        """See :class:`SigningKey`."""
        return (self.blob,)

    def sign(self, data: bytes, flags: int = 0) -> bytes:
        """A signature as it is sent (RFC 8709, section 6)."""
        return string(KEY_TYPE) + string(self._open().sign(data))

    def _make(self) -> None:
        from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
        from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415

        key = ed25519.Ed25519PrivateKey.generate()
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
        self._public.unlink(missing_ok=True)
        self._write(self._private, private.decode(), 0o600)

    # cryptography is imported where it is used: it costs an idle daemon 6 MB.
    def _open(self) -> Ed25519PrivateKey:
        from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
        from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415

        key = serialization.load_ssh_private_key(self._private.read_bytes(), password=None)
        if not isinstance(key, ed25519.Ed25519PrivateKey):
            raise TypeError(f"{self._private} holds no ed25519 key")
        return key

    @staticmethod
    def _public_line(key: Ed25519PrivateKey) -> str:
        from cryptography.hazmat.primitives import serialization  # noqa: PLC0415

        raw = key.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
        return f"{raw.decode()} {COMMENT}@{socket.gethostname()}\n"

    @staticmethod
    def _write(path: Path, text: str, mode: int) -> None:
        # Whole or not at all, also across a power cut.
        new = path.with_name(path.name + ".new")
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        with os.fdopen(fd, "w") as file:
            os.fchmod(fd, mode)
            file.write(text)
            file.flush()
            os.fsync(fd)
        new.replace(path)


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
