# SPDX-License-Identifier: GPL-3.0-or-later
"""AES-GCM for ssh packets (RFC 5647), with one context per direction.

asyncssh sets up AES anew for every packet, and the cryptography package before its release 42
takes some 20 µs for one besides. So: the AESGCM object is kept, and with such an older
release OpenSSL is called directly (EVP_EncryptInit(3), "AEAD Interface").
"""

from __future__ import annotations

import ctypes
import os
from typing import Any, Protocol

import cryptography
from asyncssh.encryption import Encryption, GCMEncryption
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

TAG_SIZE = 16
_LIBRARIES = ("libcrypto.so.3", "libcrypto.so.1.1")
_SET_TAG, _GET_TAG = 0x11, 0x10  # EVP_CTRL_AEAD_*, openssl/evp.h
_SLOW_BEFORE = 42


class Aead(Protocol):
    """AES-GCM with a 12-byte nonce; the tag follows the text."""

    def seal(self, nonce: bytes, data: bytes, header: bytes) -> bytes:
        """The header as it is, the encrypted data and the tag over both."""

    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes) -> bytes:
        """The text; raise InvalidTag."""


class _Kept:
    """One OpenSSL context with its key schedule; only the nonce changes."""

    def __init__(self, lib: ctypes.CDLL, key: bytes, *, encrypt: bool) -> None:
        self._lib = lib
        self._context = ctypes.c_void_p(lib.EVP_CIPHER_CTX_new())
        cipher = lib.EVP_aes_128_gcm() if len(key) == 16 else lib.EVP_aes_256_gcm()
        if (
            not self._context
            or lib.EVP_CipherInit_ex(
                self._context, ctypes.c_void_p(cipher), None, key, None, int(encrypt)
            )
            != 1
        ):
            raise OSError("OpenSSL has no AES-GCM")
        self._length = ctypes.c_int()
        self._length_at = ctypes.byref(self._length)
        self._make_room(65536)
        self._tag = ctypes.create_string_buffer(TAG_SIZE)

    def __del__(self) -> None:
        if getattr(self, "_context", None):
            self._lib.EVP_CIPHER_CTX_free(self._context)

    def _make_room(self, size: int) -> None:
        """An output buffer for four bytes of header, ``size`` of text and the tag."""
        self._room = size
        self._out = ctypes.create_string_buffer(4 + size + TAG_SIZE)
        self._text_at = ctypes.c_void_p(ctypes.addressof(self._out) + 4)

    def _start(self, nonce: bytes, data: bytes, size: int, associated_data: bytes) -> None:
        if size > self._room:
            self._make_room(size)
        lib, context, length_at = self._lib, self._context, self._length_at
        if (
            lib.EVP_CipherInit_ex(context, None, None, None, nonce, -1) != 1
            or lib.EVP_CipherUpdate(context, None, length_at, associated_data, len(associated_data))
            != 1
            or lib.EVP_CipherUpdate(context, self._text_at, length_at, data, size) != 1
            or self._length.value != size
        ):
            raise OSError("OpenSSL failed")

    def seal(self, nonce: bytes, data: bytes, header: bytes) -> bytes:
        size = len(data)
        self._start(nonce, data, size, header)
        lib, context, out = self._lib, self._context, self._out
        if (
            lib.EVP_CipherFinal_ex(context, self._tag, self._length_at) != 1
            or lib.EVP_CIPHER_CTX_ctrl(
                context, _GET_TAG, TAG_SIZE, ctypes.addressof(out) + 4 + size
            )
            != 1
        ):
            raise OSError("OpenSSL failed")
        ctypes.memmove(out, header, 4)
        return ctypes.string_at(out, 4 + size + TAG_SIZE)

    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes) -> bytes:
        size = len(data) - TAG_SIZE
        if size < 0:
            raise InvalidTag
        self._start(nonce, data, size, associated_data)
        lib, context = self._lib, self._context
        if (
            lib.EVP_CIPHER_CTX_ctrl(context, _SET_TAG, TAG_SIZE, data[size:]) != 1
            or lib.EVP_CipherFinal_ex(context, self._tag, self._length_at) != 1
        ):
            raise InvalidTag
        return ctypes.string_at(self._text_at, size)


class _Cryptography:
    """The cryptography package's own, quick enough in its newer releases."""

    def __init__(self, key: bytes) -> None:
        self._aead = AESGCM(key)

    def seal(self, nonce: bytes, data: bytes, header: bytes) -> bytes:
        sealed: bytes = self._aead.encrypt(nonce, data, header)
        return header + sealed

    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes) -> bytes:
        text: bytes = self._aead.decrypt(nonce, data, associated_data)
        return text


def load_openssl() -> ctypes.CDLL | None:
    """The system's libcrypto with what is used of it declared; None when there is none."""
    for name in _LIBRARIES:
        try:
            lib = ctypes.CDLL(name)
            pointer, integer, text = ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p
            for new in (lib.EVP_CIPHER_CTX_new, lib.EVP_aes_128_gcm, lib.EVP_aes_256_gcm):
                new.restype, new.argtypes = pointer, []
            lib.EVP_CIPHER_CTX_free.restype = None
            lib.EVP_CIPHER_CTX_free.argtypes = [pointer]
            lib.EVP_CipherInit_ex.argtypes = [pointer, pointer, pointer, text, text, integer]
            lib.EVP_CipherUpdate.argtypes = [pointer, pointer, pointer, text, integer]
            lib.EVP_CipherFinal_ex.argtypes = [pointer, pointer, pointer]
            lib.EVP_CIPHER_CTX_ctrl.argtypes = [pointer, integer, integer, pointer]
        except (OSError, AttributeError):
            continue
        return lib
    return None


_LIBRARY = load_openssl() if int(cryptography.__version__.split(".")[0]) < _SLOW_BEFORE else None


def make_aead(key: bytes, *, encrypt: bool) -> Aead:
    """The quickest AES-GCM there is here, for one direction."""
    if _LIBRARY is not None:
        try:
            return _Kept(_LIBRARY, key, encrypt=encrypt)
        except OSError:
            pass
    return _Cryptography(key)


class PacketGcm(Encryption):
    """Takes the place of asyncssh's GCMEncryption, going on from where ``other`` is."""

    def __init__(self, other: GCMEncryption, *, encrypt: bool) -> None:
        cipher: Any = other._cipher
        self._aead = make_aead(cipher._key, encrypt=encrypt)
        self._fixed: bytes = cipher._iv[:4]
        self._counter = int.from_bytes(cipher._iv[4:], "big")
        self._opened: bytes | None = None

    def _nonce(self) -> bytes:
        # RFC 5647, 7.1: four fixed bytes and a counter of packets.
        counter = self._counter
        self._counter = (counter + 1) & 0xFFFFFFFFFFFFFFFF
        return self._fixed + counter.to_bytes(8, "big")

    def seal(self, header: bytes, packet: bytes) -> bytes:
        """Header (four bytes), encrypted packet and tag."""
        return self._aead.seal(self._nonce(), packet, header)

    def open(self, header: bytes, sealed: bytes) -> bytes | None:
        """The packet in what is ``sealed``, which ends in its tag; None when that is wrong."""
        try:
            return self._aead.decrypt(self._nonce(), sealed, header)
        except InvalidTag:
            return None

    def put_back(self, packet: bytes) -> None:
        """Have the next ``decrypt_packet`` return this packet, which was opened already."""
        self._opened = packet

    def encrypt_packet(self, seq: int, header: bytes, packet: bytes) -> tuple[bytes, bytes]:
        """As asyncssh's own."""
        sealed = self.seal(header, packet)
        return sealed[:-TAG_SIZE], sealed[-TAG_SIZE:]

    def decrypt_header(self, seq: int, first_block: bytes, header_len: int) -> tuple[bytes, bytes]:
        """As asyncssh's own: the length is not encrypted."""
        return first_block, first_block[:header_len]

    def decrypt_packet(
        self, seq: int, first: bytes, rest: bytes, header_len: int, mac: bytes
    ) -> bytes | None:
        """As asyncssh's own."""
        if self._opened is not None:
            packet, self._opened = self._opened, None
            return packet
        return self.open(first[:header_len], first[header_len:] + rest + mac)


class Padding:
    """Random padding bytes, fetched from the kernel many at a time."""

    def __init__(self) -> None:
        self._pool = b""
        self._at = 0

    def take(self, size: int) -> bytes:
        """``size`` (< 256) bytes."""
        if self._at + size > len(self._pool):
            self._pool, self._at = os.urandom(8192), 0
        self._at += size
        return self._pool[self._at - size : self._at]
