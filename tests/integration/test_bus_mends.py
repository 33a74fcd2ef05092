# SPDX-License-Identifier: GPL-3.0-or-later
"""The library's defects, each with a test against a real dbus-daemon that meets it."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import socket
import struct
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from integration.busfixtures import SystemBus, client_call, system_bus
from openfiles import open_before, open_files

from usbipsshd.bus import wire
from usbipsshd.bus.connection import Connection
from usbipsshd.bus.serving import Limits
from usbipsshd.bus.values import (
    BusError,
    Call,
    Disconnected,
    Reply,
    Variant,
)
from usbipsshd.errors import Code, UsbipError

NAME, PATH, INTERFACE = "org.usbipssh1", "/org/usbipssh1", "org.usbipssh1.Manager"
ALICE, BOB = 61001, 61002
NO_REPLY, INTERACTIVE = 1, 4
STANDARD = "org.freedesktop.DBus.Error."
SECRET = "root:/etc/usbipsshd/secret"


@dataclass
class Service:
    """A service that does what the name of the called method says."""

    bus: SystemBus
    connection: Connection
    calls: list[Call] = field(default_factory=list)
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    release: asyncio.Event = field(default_factory=asyncio.Event)
    taken: list[int] = field(default_factory=list)

    async def dispatch(self, call: Call) -> Reply:
        self.calls.append(call)
        match call.member:
            case "Wait":
                self.begun.set()
                try:
                    await self.release.wait()
                except asyncio.CancelledError:
                    self.cancelled.set()
                    raise
            case "Break":
                raise RuntimeError(SECRET)
            case "Refuse":
                raise UsbipError(Code.DEVICE_BUSY, "The device\0 is \ud800busy.")
            case "Large":
                return Reply("s", ["x" * (4 << 20)])
            case "Huge":
                return Reply("s", ["x" * (20 << 20)])
            case "Wrong":
                return Reply("u", ["no number"])
            case "Take":
                self.taken.append(call.take(0))
        return Reply("s", [call.member])


Client = Any


@asynccontextmanager
async def service(bus: SystemBus, limits: Limits | None = None) -> AsyncIterator[Service]:
    made = Service(bus, Connection(bus.address, limits))
    await made.connection.start(made.dispatch)
    await made.connection.own_name(NAME)
    try:
        yield made
    finally:
        await made.connection.stop()


@asynccontextmanager
async def client(bus: SystemBus, uid: int = ALICE) -> AsyncIterator[Client]:
    made = bus.connect(uid)
    await made.connect()
    try:
        yield made
    finally:
        made.disconnect()
        await asyncio.gather(made.wait_for_disconnect(), return_exceptions=True)


async def ask(here: Client, member: str, signature: str = "", *args: object, **more: Any) -> Any:
    """The values of the answer, or the error's name and text."""
    answer = await client_call(here, NAME, PATH, INTERFACE, member, signature, *args, **more)
    return (answer.error_name, *answer.body) if answer.error_name else tuple(answer.body)


def play(act: Callable[[Service], Awaitable[None]], limits: Limits | None = None) -> None:
    with system_bus() as bus:

        async def run() -> None:
            async with asyncio.timeout(120), service(bus, limits) as here:
                await act(here)

        asyncio.run(run())


# What a handler sees


def test_a_call_tells_its_sender_its_uid_and_whether_it_may_ask() -> None:
    async def act(here: Service) -> None:
        async with client(here.bus) as alice, client(here.bus, BOB) as bob:
            await ask(alice, "One", flags=INTERACTIVE)
            await ask(bob, "Two")
            one, two = here.calls
            assert (one.caller.name, one.caller.uid) == (alice.unique_name, ALICE)
            assert (two.caller.name, two.caller.uid) == (bob.unique_name, BOB)
            assert (one.interactive, two.interactive) == (True, False)
            assert (one.path, one.interface, one.member) == (PATH, INTERFACE, "One")

    play(act)


def test_options_arrive_with_their_types() -> None:
    async def act(here: Service) -> None:
        variant = wire.library("signature").Variant
        async with client(here.bus) as alice:
            given = {"keep": variant("b", True), "more": variant("a{sv}", {"x": variant("q", 1)})}
            await ask(alice, "Echo", "sa{sv}", "pi", given)
            assert here.calls[0].args == (
                "pi",
                {
                    "keep": Variant("b", True),
                    "more": Variant("a{sv}", {"x": Variant("q", 1)}),
                },
            )

    play(act)


# What a caller gets


def test_an_exception_stays_here(caplog: pytest.LogCaptureFixture) -> None:
    async def act(here: Service) -> None:
        async with client(here.bus) as alice:
            for member in ("Break", "Wrong"):
                name, text = await ask(alice, member)
                assert name == "org.usbipssh1.Error.Failed"
                assert SECRET not in text and "Traceback" not in text and ".py" not in text
            assert await ask(alice, "Ping") == ("Ping",)
        assert SECRET in caplog.text

    play(act)


def test_a_known_error_arrives_by_name_and_in_characters_that_a_bus_takes() -> None:
    async def act(here: Service) -> None:
        async with client(here.bus) as alice:
            name, text = await ask(alice, "Refuse")
            assert name == "org.usbipssh1.Error.DeviceBusy"
            assert text == "The device\N{REPLACEMENT CHARACTER} is \N{REPLACEMENT CHARACTER}busy."
            assert await ask(alice, "Ping") == ("Ping",)

    play(act)


def test_who_wants_no_answer_gets_none() -> None:
    async def act(here: Service) -> None:
        async with client(here.bus) as alice:
            seen: list[Any] = []
            alice.add_message_handler(lambda m: seen.append(m) if m.reply_serial else None)
            assert await ask(alice, "First") == ("First",)
            # A bus may drop what nobody asked for, so what we sent counts.
            sent = here.connection._serial
            for member in ("One", "Refuse", "Break"):
                await ask_nothing(alice, member)
            assert await ask(alice, "Last") == ("Last",)
            assert [c.member for c in here.calls] == ["First", "One", "Refuse", "Break", "Last"]
            assert here.connection._serial == sent + 1
            assert len(seen) == 2

    async def ask_nothing(alice: Client, member: str) -> None:
        message = wire.Message(
            destination=NAME,
            path=PATH,
            interface=INTERFACE,
            member=member,
            flags=wire.library("constants").MessageFlag(NO_REPLY),
        )
        await alice.send(message)

    play(act)


def test_large_answers_do_not_end_the_connection_and_the_largest_are_refused() -> None:
    async def act(here: Service) -> None:
        async with client(here.bus) as alice:
            answers = await asyncio.gather(*(ask(alice, "Large") for _ in range(6)))
            assert all(len(text) == 4 << 20 for (text,) in answers)
            assert (await ask(alice, "Huge"))[0] == STANDARD + "LimitsExceeded"
            assert await ask(alice, "Ping") == ("Ping",)

    play(act)


# Who leaves


def test_a_call_ends_when_its_caller_leaves() -> None:
    async def act(here: Service) -> None:
        gone = asyncio.Event()
        async with client(here.bus) as alice:
            await ask(alice, "Hello")
            here.connection.callers.watch(alice.unique_name, gone.set)
            waiting = asyncio.ensure_future(ask(alice, "Wait"))
            await here.begun.wait()
            assert not here.cancelled.is_set()
        async with asyncio.timeout(30):
            await here.cancelled.wait()
            await gone.wait()
        await asyncio.gather(waiting, return_exceptions=True)
        async with client(here.bus) as bob:
            assert await ask(bob, "Ping") == ("Ping",)
            # Nothing is remembered of who has left.
            assert len(here.connection.callers) == 1

    play(act)


def test_a_leaving_caller_costs_only_its_own_calls() -> None:
    async def act(here: Service) -> None:
        async with client(here.bus) as alice:
            waiting = asyncio.ensure_future(ask(alice, "Wait"))
            await here.begun.wait()
            async with client(here.bus, BOB) as bob:
                await ask(bob, "Ping")
            await ask(alice, "Ping")
            here.release.set()
            assert await waiting == ("Wait",)

    play(act)


def test_stopping_tells_who_waits() -> None:
    with system_bus() as bus:

        async def run() -> None:
            async with asyncio.timeout(30), client(bus) as alice:
                async with service(bus) as here:
                    waiting = asyncio.ensure_future(ask(alice, "Wait"))
                    await here.begun.wait()
                assert (await waiting)[0] == "org.usbipssh1.Error.Cancelled"
                assert here.cancelled.is_set()

        asyncio.run(run())


# Limits


def test_one_caller_and_one_user_have_only_so_many_calls_at_a_time() -> None:
    async def act(here: Service) -> None:
        async with client(here.bus) as one, client(here.bus) as two, client(here.bus, BOB) as bob:
            refused, first = await one_too_many(one, 4)
            assert refused == STANDARD + "LimitsExceeded"
            refused, second = await one_too_many(two, 3)
            assert refused == STANDARD + "LimitsExceeded"
            # Another user is served.
            assert await ask(bob, "Ping") == ("Ping",)
            here.release.set()
            answers = await asyncio.gather(*first, *second)
            assert answers == [("Wait",)] * 5
            assert await ask(one, "Ping") == ("Ping",)

    async def one_too_many(caller: Client, count: int) -> tuple[str, set[asyncio.Task[Any]]]:
        asked = [asyncio.ensure_future(ask(caller, "Wait")) for _ in range(count)]
        done, left = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        (answer,) = done
        return answer.result()[0], left

    play(act, Limits(calls_per_name=3, calls_per_uid=5))


def test_a_message_of_30_megabytes_is_refused_without_being_kept() -> None:
    async def act(here: Service) -> None:
        variant = wire.library("signature").Variant
        async with client(here.bus) as alice:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            size = 30 << 20
            start = time.monotonic()
            answer = await ask(alice, "Echo", "ay", bytes(size))
            assert answer[0] == STANDARD + "LimitsExceeded"
            assert await ask(alice, "Echo", "a{sv}", {"x": variant("s", "y" * 100_000)}) == (
                STANDARD + "LimitsExceeded",
                "The message is too long.",
            )
            assert await ask(alice, "Ping") == ("Ping",)
            assert time.monotonic() - start < 60
            assert [c.member for c in here.calls] == ["Ping"]
            # The client in this process has a few copies, the service none.
            assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 5 * size / 1024

    play(act)


def test_a_path_of_a_megabyte_is_dropped_and_the_next_call_is_heard() -> None:
    async def act(here: Service) -> None:
        async with client(here.bus) as alice:
            await alice.send(
                wire.Message(
                    destination=NAME, path="/" + "a" * (1 << 20), interface=INTERFACE, member="X"
                )
            )
            assert await ask(alice, "Ping") == ("Ping",)
            assert [c.member for c in here.calls] == ["Ping"]

    play(act)


# Odd messages


def _raw(
    destination: str,
    signature: str,
    body: bytes,
    *,
    serial: int,
    flags: int = 0,
    order: str = "<",
    extra: bytes = b"",
) -> bytes:
    """A method call as bytes, as the D-Bus specification's "Message Format" says."""

    def text(value: str) -> bytes:
        data = value.encode()
        return struct.pack(order + "I", len(data)) + data + b"\0"

    def pad(data: bytes) -> bytes:
        return data + b"\0" * (-len(data) % 8)

    fields = b""
    for code, kind, value in (
        (1, b"o", PATH),
        (2, b"s", INTERFACE),
        (3, b"s", "Odd"),
        (6, b"s", destination),
    ):
        fields = pad(fields) + bytes([code, 1]) + kind + b"\0" + text(value)
    if signature:
        fields = pad(fields) + bytes([8, 1]) + b"g\0"
        fields += bytes([len(signature)]) + signature.encode() + b"\0"
    if extra:
        fields = pad(fields) + extra
    head = struct.pack(
        order + "BBBBIII",
        ord("l" if order == "<" else "B"),
        1,
        flags,
        1,
        len(body),
        serial,
        len(fields),
    )
    return pad(head + fields) + body


def _ask_raw(bus: SystemBus, *messages: bytes) -> list[Any]:
    """Send raw messages as root after a login by hand, and return an answer to each."""
    answers: list[Any] = []
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(60)
        sock.connect(str(bus.socket))
        sock.sendall(b"\0AUTH EXTERNAL 30\r\n")
        sock.recv(4096)
        sock.sendall(b"BEGIN\r\n")
        hello = wire.Message(
            destination="org.freedesktop.DBus",
            path="/org/freedesktop/DBus",
            interface="org.freedesktop.DBus",
            member="Hello",
            serial=1,
        )
        sock.sendall(hello._marshall())
        for message in messages:
            sock.sendall(message)
        reader = wire.FrameReader(sock, 1 << 20)
        while len(answers) < len(messages):
            frame = reader.read()
            assert frame is not None
            parsed = wire.parse(frame.data)
            if parsed.reply_serial and parsed.reply_serial > 1:
                answers.append(parsed)
    return answers


def _twice() -> bytes:
    """An a{sv} with the key "a" twice."""
    entry = struct.pack("<I", 1) + b"a\0" + b"\1b\0" + b"\0" * 3 + struct.pack("<I", 1)
    entry += b"\0" * (-len(entry) % 8)
    entries = entry + entry.rstrip(b"\0").ljust(16, b"\0")
    return struct.pack("<I", len(entries)) + b"\0" * 4 + entries


def test_odd_messages_cost_nothing_but_their_answer() -> None:
    deep = "v" * 1
    nested = b"".join(b"\1v\0" for _ in range(60)) + b"\1y\0" + b"\7"
    unknown_field = bytes([200, 1]) + b"u\0" + struct.pack("<I", 7)
    odd = [
        _raw(NAME, "", b"", serial=10, flags=0xF0),
        _raw(NAME, "", b"", serial=11, order=">"),
        _raw(NAME, deep, nested, serial=12),
        _raw(NAME, "", b"", serial=13, extra=unknown_field),
        _raw(NAME, "a{sv}", _twice(), serial=14),
    ]

    async def act(here: Service) -> None:
        answers = await asyncio.to_thread(_ask_raw, here.bus, *odd)
        by_serial = {a.reply_serial: a.error_name or tuple(a.body) for a in answers}
        assert by_serial == {
            10: ("Odd",),
            11: ("Odd",),
            12: ("Odd",),
            13: ("Odd",),
            14: STANDARD + "InvalidArgs",
        }
        async with client(here.bus) as alice:
            assert await ask(alice, "Ping") == ("Ping",)

    play(act)


def test_signatures_are_not_remembered_for_ever() -> None:
    async def act(here: Service) -> None:
        cache = wire.library("signature").SignatureTree._cache
        async with client(here.bus) as alice:
            for number in range(400):
                kinds = "".join("yb"[number >> bit & 1] for bit in range(9))
                values = [bool(number >> bit & 1) if number >> bit & 1 else 0 for bit in range(9)]
                assert await ask(alice, "Echo", kinds, *values) == ("Echo",)
        assert len(cache) <= 256

    play(act)


# Descriptors


def test_descriptors_are_closed_unless_taken_and_not_inherited() -> None:
    async def act(here: Service) -> None:
        read, write = os.pipe()
        try:
            async with client(here.bus) as alice:
                await ask(alice, "Ping")
                before = len(open_before())
                for _ in range(20):
                    await ask(alice, "Echo", "h", 0, fds=(read,))
                    assert (await ask(alice, "Break", "h", 0, fds=(read,)))[0]
                    assert (await ask(alice, "Echo", "hay", 0, bytes(100_000), fds=(read,)))[0]
                assert len(open_files()) == before
                await ask(alice, "Take", "h", 0, fds=(read,))
                (taken,) = here.taken
                assert len(open_files()) == before + 1
                assert not os.get_inheritable(taken)
                os.write(write, b"x")
                assert os.read(taken, 1) == b"x"
                os.close(taken)
                assert (await ask(alice, "Take"))[0] == STANDARD + "InvalidArgs"
        finally:
            os.close(read)
            os.close(write)

    play(act)


# The bus itself


def test_a_call_of_ours_fails_when_the_bus_goes_and_everything_after() -> None:
    async def act(here: Service) -> None:
        async with client(here.bus) as alice:
            waiting = asyncio.ensure_future(ask(alice, "Wait"))
            await here.begun.wait()
            # A bus that is stopped answers nothing, then it is killed.
            os.kill(here.bus.pid, 19)
            bus = "org.freedesktop.DBus"
            asked = asyncio.ensure_future(here.connection.call(bus, "/", bus, "GetId", timeout=50))
            await asyncio.sleep(0)
            os.kill(here.bus.pid, 9)
            await here.connection.disconnected()
            async with asyncio.timeout(30):
                with pytest.raises(Disconnected):
                    await asked
            with pytest.raises(Disconnected):
                await here.connection.call("org.freedesktop.DBus", "/", "a.b", "GetId")
            await asyncio.gather(waiting, return_exceptions=True)
            async with asyncio.timeout(30):
                await here.cancelled.wait()
            # Signals then go nowhere, without fuss.
            here.connection.emit(PATH, INTERFACE, "Gone", "", [])

    play(act)


def test_a_call_of_ours_has_a_time_limit() -> None:
    async def act(here: Service) -> None:
        async with client(here.bus, 0) as root:
            # Without a policy rule nobody may call another one; the bus itself is asked instead,
            # while it is stopped.
            await ask(root, "Ping")
            os.kill(here.bus.pid, 19)
            try:
                with pytest.raises(TimeoutError):
                    await here.connection.call(
                        "org.freedesktop.DBus", "/", "org.freedesktop.DBus", "GetId", timeout=0.2
                    )
            finally:
                os.kill(here.bus.pid, 18)
            assert await ask(root, "Ping") == ("Ping",)
            assert here.connection._pending == {}

    play(act)


def test_a_bus_that_does_not_read_is_asked_for_nothing_more_and_memory_stays() -> None:
    async def act(here: Service) -> None:
        os.kill(here.bus.pid, 19)
        try:
            text = "x" * 100_000
            for _ in range(1000):
                here.connection.emit(PATH, INTERFACE, "Flood", "s", [text])
            reason = await here.connection.disconnected()
            assert "takes nothing" in reason
        finally:
            os.kill(here.bus.pid, 18)

    play(act, Limits(unsent_top=8 << 20))


@pytest.mark.parametrize("words", [b"", b"REJECTED EXTERNAL\r\n", b"nonsense\r\n", b"x" * 9000])
def test_a_bus_that_hangs_up_or_talks_nonsense_at_login_is_an_error(words: bytes) -> None:
    async def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/socket"

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await reader.readline()
                writer.write(words)
                writer.close()

            before = len(open_before())
            server = await asyncio.start_unix_server(serve, path)
            async with server, asyncio.timeout(30):
                connection = Connection(f"unix:path={path}")
                with pytest.raises(Disconnected):
                    await connection.start()
                await connection.stop()
            gc.collect()
            await asyncio.sleep(0)
            assert len(open_files()) <= before

    asyncio.run(run())


def test_no_bus_is_an_error_that_leaves_nothing_open() -> None:
    async def run() -> None:
        before = len(open_before())
        with pytest.raises(OSError, match="No such file"):
            Connection("unix:path=/nonexistent/bus")
        assert len(open_files()) == before

    asyncio.run(run())


def test_serial_numbers_start_again() -> None:
    async def act(here: Service) -> None:
        here.connection._serial = 0xFFFFFFFE
        for _ in range(4):
            body = await here.connection.call(
                "org.freedesktop.DBus", "/", "org.freedesktop.DBus", "GetId"
            )
            assert len(body) == 1
        assert here.connection._serial == 3

    play(act)


def test_a_name_that_is_taken_is_an_error() -> None:
    async def act(here: Service) -> None:
        other = Connection(here.bus.address)
        await other.start()
        try:
            with pytest.raises(BusError, match="taken"):
                await other.own_name(NAME)
        finally:
            await other.stop()

    play(act)


@pytest.fixture(autouse=True)
def _quiet_and_clean(caplog: pytest.LogCaptureFixture) -> Any:
    """Whatever a test does, asyncio has nothing to complain about afterwards."""
    yield
    gc.collect()
    ours = [r for r in caplog.records if r.name == "asyncio" and r.levelno >= logging.ERROR]
    texts = [r.getMessage() for r in ours]
    assert not [t for t in texts if "usbipsshd" in t or "was destroyed" in t], texts
