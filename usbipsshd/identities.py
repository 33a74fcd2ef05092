# SPDX-License-Identifier: GPL-3.0-or-later
"""Private keys that root's ssh configuration names, and their certificates.

Read when a connection is made, used in the root process, and forgotten with it.
"""

from __future__ import annotations

import base64
import binascii
import logging
import os
import stat
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from usbipsshd.signer import BadMessage, Reader, string

log = logging.getLogger(__name__)

MAX_FILE = 64 << 10
_SHA256, _SHA512 = 2, 4
"""Flags of a request to sign with an RSA key (draft-ietf-sshm-ssh-agent, section 5.1)."""


class Identity:
    """One private key; see :class:`usbipsshd.signer.SigningKey`."""

    def __init__(self, key: Any, blob: bytes, certificates: Sequence[bytes], comment: str) -> None:
        self._key = key
        self.blobs = (*certificates, blob)
        self.comment = comment

    def sign(self, data: bytes, flags: int) -> bytes:
        """A signature as it is sent (RFC 8709, 8332 and 5656)."""
        from cryptography.hazmat.primitives import hashes  # noqa: PLC0415
        from cryptography.hazmat.primitives.asymmetric import (  # noqa: PLC0415
            ec,
            ed25519,
            padding,
            rsa,
            utils,
        )

        key = self._key
        if isinstance(key, ed25519.Ed25519PrivateKey):
            return string(b"ssh-ed25519") + string(key.sign(data))
        if isinstance(key, rsa.RSAPrivateKey):
            if flags & _SHA512:
                name, digest = b"rsa-sha2-512", hashes.SHA512()
            elif flags & _SHA256:
                name, digest = b"rsa-sha2-256", hashes.SHA256()  # type: ignore[assignment]
            else:
                raise BadMessage("SHA-1 is not used any more")
            return string(name) + string(key.sign(data, padding.PKCS1v15(), digest))
        if isinstance(key, ec.EllipticCurvePrivateKey):
            bits = key.curve.key_size
            hashed = {256: hashes.SHA256(), 384: hashes.SHA384(), 521: hashes.SHA512()}[bits]
            r, s = utils.decode_dss_signature(key.sign(data, ec.ECDSA(hashed)))
            name = f"ecdsa-sha2-nistp{bits}".encode()
            return string(name) + string(string(_mpint(r)) + string(_mpint(s)))
        raise BadMessage("a kind of key that we do not know")


def _mpint(number: int) -> bytes:
    return number.to_bytes(number.bit_length() // 8 + 1, "big")


def load_identities(files: Sequence[Path], certificates: Sequence[Path]) -> list[Identity]:
    """The keys in ``files``, each with the certificates that are for it.

    A certificate is one of ``certificates``, or lies beside its key (``KEY-cert.pub``), as with
    ssh. What cannot be read is left out, and the log says why.
    """
    beside = [path.with_name(path.name + "-cert.pub") for path in files]
    found = [_certificate(path) for path in certificates]
    found += [_certificate(path) for path in beside if path.exists()]
    blobs = list(dict.fromkeys(blob for blob in found if blob))
    identities = []
    for path in files:
        try:
            identities.append(_load(path, blobs))
        except (OSError, ValueError, TypeError, BadMessage) as error:
            # The library's own words may quote the file.
            why = (
                error.strerror
                if isinstance(error, OSError)
                else "no private key without a passphrase"
            )
            log.warning("%s: this identity is left out: %s", path, why)
    return identities


def _load(path: Path, certificates: Sequence[bytes]) -> Identity:
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415

    text = _read(path, secret=True)
    try:
        if b"OPENSSH PRIVATE KEY" in text:
            key: Any = serialization.load_ssh_private_key(text, password=None)
        else:
            key = serialization.load_pem_private_key(text, password=None)
        line = key.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
    except UnsupportedAlgorithm:
        raise ValueError("a kind of key that we do not know") from None
    blob = base64.b64decode(line.split()[1])
    own = [c for c in certificates if _is_for(c, blob)]
    return Identity(key, blob, own, path.name)


def _certificate(path: Path) -> bytes:
    try:
        blob = base64.b64decode(_read(path).split()[1], validate=True)
        if b"-cert-v01@" not in Reader(blob).string():
            raise ValueError("no certificate")
    except (OSError, ValueError, IndexError, binascii.Error, struct.error):
        log.warning("%s: this certificate is left out: it cannot be read", path)
        return b""
    return blob


def _is_for(certificate: bytes, blob: bytes) -> bool:
    """Whether a certificate certifies a key (PROTOCOL.certkeys: kind, nonce, then the key)."""
    try:
        reader, plain = Reader(certificate), Reader(blob)
        kind = plain.string()
        if reader.string() != kind + b"-cert-v01@openssh.com":
            return False
        reader.string()
        return reader.rest().startswith(plain.rest())
    except (BadMessage, struct.error):
        return False


def _read(path: Path, *, secret: bool = False) -> bytes:
    with path.open("rb") as file:
        found = os.fstat(file.fileno())
        wrong = stat.S_IRWXG | stat.S_IRWXO if secret else stat.S_IWGRP | stat.S_IWOTH
        if not stat.S_ISREG(found.st_mode) or found.st_mode & wrong:
            raise PermissionError(1, "others than its owner may read or write it")
        if found.st_uid not in (0, os.geteuid()):
            raise PermissionError(1, "it does not belong to root")
        return file.read(MAX_FILE)
