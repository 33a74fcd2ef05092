# SPDX-License-Identifier: GPL-3.0-or-later
"""The daemon's own ssh key: made on first start, kept in a file, used for signatures only.

Two files, in OpenSSH's formats. ``id_ed25519`` is the key; ``id_ed25519.pub`` is there for people,
and is made anew from the other where it does not fit. A key that is damaged, or is somebody
else's, is never replaced: the machines that know it would not know the new one.
"""

from __future__ import annotations

import base64
import binascii
import logging
import os
import socket
import stat
import struct
from pathlib import Path
from typing import TYPE_CHECKING

from usbipsshd.signer import BadMessage, Reader, string
from usbipsshd.statefile import write_whole

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

log = logging.getLogger(__name__)

KEY_TYPE = b"ssh-ed25519"
COMMENT = "usbipsshd"
MAX_FILE = 16 << 10
_MAGIC = b"openssh-key-v1\0"
_BEGIN, _END = b"-----BEGIN OPENSSH PRIVATE KEY-----", b"-----END OPENSSH PRIVATE KEY-----"


class KeyTrouble(OSError):
    """Why there is no key to use, and what root can do about it."""


class Key:
    """The daemon's own ed25519 key, kept in ``folder``. One process at a time may :meth:`load`."""

    def __init__(self, folder: Path) -> None:
        self._private = folder / "id_ed25519"
        self._public = folder / "id_ed25519.pub"
        self.comment = COMMENT
        self.blob = b""
        """The public key as it is sent (RFC 8709, section 4)."""
        self.line = ""
        """The public key as one line of OpenSSH's format, without a newline."""

    def load(self) -> None:
        """Read the key, or make it on first start; raise :exc:`KeyTrouble`."""
        if not os.path.lexists(self._private):
            self._make()
        self.blob = public_blob(self._read())
        if not self.blob:
            raise KeyTrouble(
                f"{self._private} is damaged; put it back from a copy, or move it away: then "
                "there will be a new key, which each remote has to be told."
            )
        self.line = self._known_line()
        if not self.line:
            encoded = base64.b64encode(self.blob).decode()
            self.line = f"{KEY_TYPE.decode()} {encoded} {COMMENT}@{socket.gethostname()}"
            try:
                write_whole(self._public, (self.line + "\n").encode(), 0o644)
            except OSError as error:
                # It is for people only; PublicKey has it, too.
                log.warning("%s cannot be written: %s", self._public, error.strerror)

    @property
    def blobs(self) -> tuple[bytes]:
        """See :class:`usbipsshd.signer.SigningKey`."""
        return (self.blob,)

    def sign(self, data: bytes, flags: int = 0) -> bytes:
        """A signature as it is sent (RFC 8709, section 6)."""
        return string(KEY_TYPE) + string(self._open().sign(data))

    def _make(self) -> None:
        from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
        from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415

        private = ed25519.Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
        try:
            write_whole(self._private, private, 0o600)
        except OSError as error:
            raise KeyTrouble(
                f"the ssh key cannot be made: {self._private} cannot be written: {error.strerror}."
            ) from None

    def _read(self) -> bytes:
        try:
            fd = os.open(self._private, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                self._check(fd)
                return os.read(fd, MAX_FILE)
            finally:
                os.close(fd)
        except KeyTrouble:
            raise
        except OSError as error:
            raise KeyTrouble(f"{self._private} cannot be read: {error.strerror}.") from None

    def _check(self, fd: int) -> None:
        """It has to be a file of root's; one that others could read is closed to them."""
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise KeyTrouble(f"{self._private} is no file; move it away.")
        if found.st_uid not in (0, os.geteuid()):
            raise KeyTrouble(
                f"{self._private} belongs to somebody else, who knows it; move it away, and there "
                "will be a new key."
            )
        if found.st_mode & 0o077:
            log.warning(
                "%s could be read by others (mode %o), and is made root's alone; if somebody may "
                "have read it, move it away: then there will be a new key",
                self._private, stat.S_IMODE(found.st_mode),
            )  # fmt: skip
            os.fchmod(fd, 0o600)

    def _known_line(self) -> str:
        """What the file for people says, if it is this key; else empty."""
        try:
            with self._public.open("rb") as file:
                line = file.read(MAX_FILE).decode().rstrip("\n")
            words = line.split(" ")
            known = base64.b64decode(words[1], validate=True)
        except (OSError, ValueError, IndexError):
            return ""
        fits = words[0] == KEY_TYPE.decode() and known == self.blob and line.isprintable()
        return line if fits else ""

    # cryptography is imported where it is used: it costs an idle daemon 6 MB.
    def _open(self) -> Ed25519PrivateKey:
        from cryptography.hazmat.primitives import serialization  # noqa: PLC0415
        from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415

        key = serialization.load_ssh_private_key(self._private.read_bytes(), password=None)
        if not isinstance(key, ed25519.Ed25519PrivateKey):
            raise TypeError(f"{self._private} holds no ed25519 key")
        return key


def public_blob(text: bytes) -> bytes:
    """The public key of an ed25519 private key without a passphrase, in OpenSSH's format
    (PROTOCOL.key); empty if ``text`` is none.
    """
    body = text.strip()
    if not (body.startswith(_BEGIN) and body.endswith(_END)):
        return b""
    try:
        data = base64.b64decode(body[len(_BEGIN) : -len(_END)].replace(b"\n", b""), validate=True)
        reader = Reader(data)
        head = (reader.take(len(_MAGIC)), reader.string(), reader.string(), reader.string())
        if head != (_MAGIC, b"none", b"none", b"") or reader.take(4) != struct.pack(">I", 1):
            return b""
        blob, secret = reader.string(), Reader(reader.string())
        reader.end()
        if secret.take(4) != secret.take(4) or secret.string() != KEY_TYPE:
            return b""
        public, both = secret.string(), secret.string()
    except (binascii.Error, BadMessage, struct.error):
        return b""
    fits = len(public) == 32 and len(both) == 64 and both[32:] == public
    return blob if fits and blob == string(KEY_TYPE) + string(public) else b""
