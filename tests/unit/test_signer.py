# SPDX-License-Identifier: GPL-3.0-or-later
"""The key, and the agent that signs logins with it and nothing else."""

from __future__ import annotations

import asyncio
import socket
import struct
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.made import run

from usbipsshd.ownkey import Key
from usbipsshd.signer import (
    FAILURE,
    IDENTITIES_ANSWER,
    MAX_MESSAGE,
    MAX_SIGNATURES,
    REQUEST_IDENTITIES,
    SIGN_REQUEST,
    SIGN_RESPONSE,
    BadMessage,
    Signer,
    check_binding,
    check_login,
)


def string(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def strings(data: bytes) -> list[bytes]:
    found = []
    while data:
        size = struct.unpack(">I", data[:4])[0]
        assert len(data) >= 4 + size
        found.append(data[4 : 4 + size])
        data = data[4 + size :]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("key")
    Key(folder).load()
    return folder


@pytest.fixture
def key(folder: Path) -> Key:
    key = Key(folder)
    key.load()
    return key


def login(
    blob: bytes,
    *,
    session: bytes = b"s" * 32,
    kind: bytes = b"\x32",
    user: bytes = b"root",
    service: bytes = b"ssh-connection",
    method: bytes = b"publickey",
    signed: bytes = b"\x01",
    algorithm: bytes = b"ssh-ed25519",
    more: bytes = b"",
) -> bytes:
    """What a signature for a login is over (RFC 4252, section 7)."""
    head = string(session) + kind + string(user) + string(service) + string(method) + signed
    return head + string(algorithm) + string(blob) + more


def request(blob: bytes, data: bytes) -> bytes:
    return bytes([SIGN_REQUEST]) + string(blob) + string(data) + struct.pack(">I", 0)


def test_a_login_is_signed_and_the_signature_verifies(key: Key) -> None:
    data = login(key.blob)
    assert check_login(data, key.blob) == "root"
    answer = Signer([key], "pi").answer(request(key.blob, data))
    assert answer[0] == SIGN_RESPONSE
    [signature] = strings(answer[1:])
    kind, raw = strings(signature)
    assert kind == b"ssh-ed25519"
    public = serialization.load_ssh_public_key(key.line.encode())
    assert isinstance(public, ed25519.Ed25519PublicKey)
    public.verify(raw, data)


OTHER = string(b"ssh-ed25519") + string(b"\x07" * 32)


@pytest.mark.parametrize(
    "change",
    [
        {"session": b""},
        {"session": b"s" * 15},
        {"session": b"s" * 65},
        {"kind": b"\x33"},
        {"service": b"ssh-userauth"},
        {"method": b"hostbased"},
        {"method": b"publickey-hostbound-v00@openssh.com"},
        {"signed": b"\x00"},
        {"algorithm": b"rsa-sha2-512"},
        {"more": b"x"},
        {"blob": OTHER},
    ],
    ids=str,
)
def test_what_is_no_login_with_this_key_is_not_signed(key: Key, change: dict[str, bytes]) -> None:
    data = login(**({"blob": key.blob} | change))
    with pytest.raises(BadMessage):
        check_login(data, key.blob)
    assert Signer([key], "pi").answer(request(key.blob, data)) == bytes([FAILURE])


@pytest.mark.parametrize(
    "data",
    [b"", b"sshsig", b"SSHSIG" + string(b"file") * 4, b"x" * 200, b"\xff" * 64],
    ids=["nothing", "short", "a file's signature", "text", "noise"],
)
def test_nothing_else_is_signed(key: Key, data: bytes) -> None:
    assert Signer([key], "pi").answer(request(key.blob, data)) == bytes([FAILURE])


def test_a_login_cut_short_at_any_byte_is_not_signed(key: Key) -> None:
    data = login(key.blob)
    for size in range(len(data)):
        with pytest.raises((BadMessage, struct.error)):
            check_login(data[:size], key.blob)


def test_another_key_is_not_ours_to_sign_with(key: Key) -> None:
    assert Signer([key], "pi").answer(request(OTHER, login(key.blob))) == bytes([FAILURE])


def test_only_so_many_signatures_for_one_connection(key: Key) -> None:
    signer = Signer([key], "pi")
    asked = request(key.blob, login(key.blob))
    refused = request(key.blob, b"no login")
    assert signer.answer(refused) == bytes([FAILURE])
    kinds = [signer.answer(asked)[0] for _ in range(MAX_SIGNATURES + 2)]
    assert kinds == [SIGN_RESPONSE] * MAX_SIGNATURES + [FAILURE] * 2
    assert Signer([key], "pi").answer(asked)[0] == SIGN_RESPONSE


def test_the_key_is_named(key: Key) -> None:
    answer = Signer([key], "pi").answer(bytes([REQUEST_IDENTITIES]))
    assert answer[:5] == bytes([IDENTITIES_ANSWER, 0, 0, 0, 1])
    assert strings(answer[5:])[0] == key.blob


@pytest.mark.parametrize(
    "kind", [k for k in range(256) if k not in (REQUEST_IDENTITIES, SIGN_REQUEST)]
)
def test_other_requests_fail(key: Key, kind: int) -> None:
    assert Signer([key], "pi").answer(bytes([kind]) + string(key.blob)) == bytes([FAILURE])


@settings(max_examples=150)
@given(st.binary(min_size=1, max_size=80))
def test_any_message_gets_an_answer(folder: Path, noise: bytes) -> None:
    key = Key(folder)
    key.load()
    for message in (noise, bytes([SIGN_REQUEST]) + noise, request(key.blob, noise)):
        assert Signer([key], "pi").answer(message)[0] in {FAILURE, IDENTITIES_ANSWER}


def test_served_over_a_socket_until_it_closes(key: Key) -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        serving = asyncio.create_task(Signer([key], "pi").serve(ours))
        reader, writer = await asyncio.open_unix_connection(sock=theirs)
        # Byte by byte and two at once: it is a stream.
        message = string(bytes([REQUEST_IDENTITIES]))
        for byte in message[:-1]:
            writer.write(bytes([byte]))
            await asyncio.sleep(0)
        writer.write(message[-1:] + message)
        for _ in range(2):
            size = struct.unpack(">I", await reader.readexactly(4))[0]
            assert (await reader.readexactly(size))[0] == IDENTITIES_ANSWER
        writer.write(b"\x00\x00")
        writer.close()
        await writer.wait_closed()
        await serving

    run(main())


@pytest.mark.parametrize("size", [0, MAX_MESSAGE + 1, 0xFFFFFFFF])
def test_a_message_of_no_sensible_size_ends_it(key: Key, size: int) -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        serving = asyncio.create_task(Signer([key], "pi").serve(ours))
        reader, writer = await asyncio.open_unix_connection(sock=theirs)
        writer.write(struct.pack(">I", size))
        assert await reader.read() == b""
        await serving
        writer.close()

    run(main())


SESSION = b"s" * 32


@pytest.mark.parametrize(
    ("fits", "body"),
    [
        (True, [b"session-bind@openssh.com", b"key", SESSION, b"signature", None]),
        (False, [b"session-bind@example.org", b"key", SESSION, b"signature", None]),
        (False, [b"restrict-destination-v00@openssh.com", b"key", SESSION, b"signature", None]),
        (False, [b"session-bind@openssh.com", b"key", b"short", b"signature", None]),
        (False, [b"session-bind@openssh.com", b"key", b"s" * 65, b"signature", None]),
        (False, [b"session-bind@openssh.com", b"key", SESSION, None]),
        (False, [b"session-bind@openssh.com", b"key", SESSION, b"signature"]),
        (False, [b"session-bind@openssh.com", b"key", SESSION, b"signature", b"\1"]),
        (False, [b"session-bind@openssh.com", b"key", SESSION, b"signature", None, None]),
        (False, []),
    ],
)
def test_what_ties_an_agent_to_a_login(fits: bool, body: list[bytes | None]) -> None:
    """Nothing else that an agent may be asked for passes as that; None is "not forwarded"."""
    message = b"".join(
        b"\0" if part is None else part if part == b"\1" else string(part) for part in body
    )
    if fits:
        check_binding(message)
    else:
        with pytest.raises(BadMessage):
            check_binding(message)


def test_an_agent_of_keys_only_says_that_it_is_not_tied_to_anything(key: Key) -> None:
    message = string(b"session-bind@openssh.com") + string(b"k") + string(SESSION) + string(b"s")
    assert Signer([key], "pi").answer(b"\x1b" + message + b"\0") == bytes([FAILURE])
