# SPDX-License-Identifier: GPL-3.0-or-later
"""The relay between a channel and a socket, with a channel that a test plays; its AES-GCM."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Coroutine
from typing import Any, cast

import pytest
from asyncssh.crypto.cipher import GCMCipher
from asyncssh.encryption import GCMEncryption

from usbipsshd.session import gcm, relay
from usbipsshd.session.relay import READ_SIZE, Relay


class FakeChannel:
    """The far side's channel; ``full_at`` bytes make it ask for a pause, as asyncssh does."""

    def __init__(self, full_at: int = 1 << 60) -> None:
        self.written = bytearray()
        self.paused = False
        self.eof = False
        self.closed = False
        self.full_at = full_at
        self.relay: Relay | None = None
        self.changed = asyncio.Event()

    def write(self, data: bytes) -> None:
        self.written += data
        self.changed.set()
        if len(self.written) >= self.full_at and self.relay is not None:
            self.relay.pause_writing()

    def write_eof(self) -> None:
        self.eof = True
        self.changed.set()

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False
        self.changed.set()

    def close(self) -> None:
        self.closed = True
        self.changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(30):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


class FakeConnection:
    congested = False

    def __init__(self) -> None:
        self.watchers: list[Callable[[bool], None]] = []

    def watch_congestion(self, watcher: Callable[[bool], None]) -> Callable[[], None]:
        self.watchers.append(watcher)
        return lambda: self.watchers.remove(watcher)


class Setting:
    def __init__(self, full_at: int = 1 << 60) -> None:
        self.chan = FakeChannel(full_at)
        self.conn = FakeConnection()
        self.near, ours = socket.socketpair()
        self.near.setblocking(False)
        self.ends: list[str] = []
        self.relay = Relay(cast(Any, self.chan), cast(Any, self.conn), ours, self.ends.append)
        self.chan.relay = self.relay

    async def read(self, size: int) -> bytes:
        loop = asyncio.get_running_loop()
        data = b""
        async with asyncio.timeout(30):
            while len(data) < size and (more := await loop.sock_recv(self.near, 65536)):
                data += more
        return data

    async def read_end(self) -> bytes:
        async with asyncio.timeout(30):
            return await asyncio.get_running_loop().sock_recv(self.near, 1)


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())


def test_bytes_go_both_ways_and_are_counted() -> None:
    async def main() -> None:
        s = Setting()
        s.near.send(b"to the remote")
        await s.chan.until(lambda: s.chan.written == b"to the remote")
        s.relay.data_received(b"from it")
        assert await s.read(7) == b"from it"
        assert (s.relay.received, s.relay.sent) == (7, 13)
        s.relay.end()
        s.near.close()

    run(main)


def test_a_socket_that_is_not_read_pauses_the_channel() -> None:
    async def main() -> None:
        s = Setting()
        data = os.urandom(READ_SIZE)
        count = 0
        while not s.chan.paused:
            s.relay.data_received(data)
            count += 1
            assert count < 100
        assert await s.read(len(data) * count) == data * count
        await s.chan.until(lambda: not s.chan.paused)
        assert not s.relay.holding
        s.relay.end()
        s.near.close()

    run(main)


def test_what_was_decoded_before_the_pause_keeps_its_place() -> None:
    async def main() -> None:
        s = Setting()
        while not s.chan.paused:
            s.relay.data_received(b"a" * READ_SIZE)
        s.relay.data_received(b"bcd")
        assert (await s.read(s.relay.received)).endswith(b"abcd")
        s.relay.end()
        s.near.close()

    run(main)


@pytest.mark.parametrize("who", ["channel", "network"])
def test_a_full_channel_or_network_stops_the_reading(who: str) -> None:
    async def main() -> None:
        s = Setting(full_at=100_000 if who == "channel" else 1 << 60)
        if who == "network":
            s.conn.watchers[0](True)
        sent = 0
        with pytest.raises(BlockingIOError):
            while sent < 200_000_000:
                sent += s.near.send(bytes(65536))
                await asyncio.sleep(0)
        most = 100_000 + READ_SIZE if who == "channel" else 0
        assert len(s.chan.written) <= most
        if who == "channel":
            s.chan.full_at = 1 << 60
            s.relay.resume_writing()
        else:
            s.conn.watchers[0](False)
        await s.chan.until(lambda: len(s.chan.written) == sent)
        s.relay.end()
        s.near.close()

    run(main)


def test_the_end_of_the_channel_comes_after_its_bytes() -> None:
    async def main() -> None:
        s = Setting()
        while not s.chan.paused:
            s.relay.data_received(b"x" * READ_SIZE)
        s.relay.eof_received()
        assert len(await s.read(s.relay.received)) == s.relay.received
        assert await s.read_end() == b""
        assert not s.chan.closed
        s.near.send(b"last words")
        s.near.close()
        await s.chan.until(lambda: s.chan.closed)
        assert s.chan.written == b"last words"
        assert s.ends == [""]

    run(main)


def test_the_end_of_the_socket_is_passed_on_and_closes_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(relay, "HALF_CLOSED_LIMIT", 0.05)

    async def main() -> None:
        s = Setting()
        s.near.send(b"bye")
        s.near.shutdown(socket.SHUT_WR)
        await s.chan.until(lambda: s.chan.eof)
        s.relay.data_received(b"you too")
        assert await s.read(7) == b"you too"
        # The far side never ends: the grace does.
        await s.chan.until(lambda: s.chan.closed)
        assert await s.read_end() == b""
        assert s.ends == [""]
        s.near.close()

    run(main)


def test_a_socket_that_is_closed_with_bytes_waiting_ends_the_relay() -> None:
    async def main() -> None:
        s = Setting()
        while not s.chan.paused:
            s.relay.data_received(b"x" * READ_SIZE)
        s.near.close()
        await s.chan.until(lambda: s.chan.closed)
        assert s.ends == [""]
        assert s.conn.watchers == []
        s.relay.data_received(b"late")
        s.relay.end("again")
        assert s.ends == [""]

    run(main)


@pytest.mark.parametrize("size", [0, 1, 48, 32768, 200_000])
@pytest.mark.parametrize("key", [16, 32])
def test_our_gcm_is_asyncsshs(size: int, key: int) -> None:
    secret, iv = os.urandom(key), os.urandom(4) + b"\xff" * 8
    name = f"aes{key * 8}-gcm"
    theirs = GCMEncryption(GCMCipher(name, secret, iv))
    seal = gcm.PacketGcm(GCMEncryption(GCMCipher(name, secret, iv)), encrypt=True)
    unseal = gcm.PacketGcm(GCMEncryption(GCMCipher(name, secret, iv)), encrypt=False)
    for number in range(3):
        header, packet = size.to_bytes(4, "big"), os.urandom(size)
        expected = b"".join(theirs.encrypt_packet(number, header, packet))
        sealed = seal.seal(header, packet)
        assert sealed == expected
        assert unseal.open(header, sealed[4:]) == packet


def test_a_forged_packet_is_not_opened() -> None:
    secret, iv = os.urandom(16), os.urandom(12)
    header = b"\0\0\0\x10"

    def fresh(*, encrypt: bool) -> gcm.PacketGcm:
        return gcm.PacketGcm(GCMEncryption(GCMCipher("aes128-gcm", secret, iv)), encrypt=encrypt)

    sealed = fresh(encrypt=True).seal(header, bytes(16))[4:]
    for at in range(len(sealed)):
        forged = bytearray(sealed)
        forged[at] ^= 1
        assert fresh(encrypt=False).open(header, bytes(forged)) is None
    assert fresh(encrypt=False).open(b"\0\0\0\x11", sealed) is None
    assert fresh(encrypt=False).open(header, sealed[:10]) is None
    assert fresh(encrypt=False).open(header, sealed) == bytes(16)


def test_both_kinds_of_gcm_agree() -> None:
    """The kind that is not in use here must work where it is."""
    secret, nonce = os.urandom(16), os.urandom(12)
    kinds: list[gcm.Aead] = [gcm._Cryptography(secret)]
    library = gcm._LIBRARY or gcm.load_openssl()
    if library is not None:
        kinds.append(gcm._Kept(library, secret, encrypt=True))
    sealed = {kind.seal(nonce, b"text", b"head") for kind in kinds}
    assert len(sealed) == 1
