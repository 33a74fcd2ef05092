# SPDX-License-Identifier: GPL-3.0-or-later
"""dbus-next's way from bytes to messages and back, made safe against what callers send.

The library reads a message field by field from the socket, and whatever goes wrong in
between ends the connection. Here a message is first taken whole off the socket, within
limits, and then parsed by itself: one that cannot be parsed costs nothing but its own answer.
"""

from __future__ import annotations

import array
import importlib
import io
import os
import re
import socket
import struct
import sys
import typing
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

if not hasattr(typing, "no_type_check_decorator"):
    # Python 3.15 drops it; dbus-next's service module only needs the name.
    setattr(typing, "no_type_check_decorator", lambda decorator: decorator)  # noqa: B010

if "gi" not in sys.modules:
    # dbus-next imports GLib where it finds it, 3 MB that are of no use here; it can do without.
    sys.modules["gi"] = None  # type: ignore[assignment]

from usbipsshd.bus.values import Variant, close_fds


def library(module: str) -> Any:
    """A module of dbus-next, whose import has been prepared; untyped, as the library is."""
    return importlib.import_module("dbus_next." + module)


Message = library("message").Message
_SignatureTree = library("signature").SignatureTree
_LibraryVariant = library("signature").Variant
_LibraryUnmarshaller = library("_private.unmarshaller").Unmarshaller

MAX_HEADER = 64 << 10
MAX_MESSAGE = 128 << 20
"""Bytes; D-Bus specification, "Message Format"."""
_MAX_FDS = 253
"""SCM_MAX_FD of include/net/scm.h: the most that one sendmsg carries."""
_CHUNK = 64 << 10
_SIGNATURES = 256

_PATH = re.compile(r"/|(/[A-Za-z0-9_]+)+", re.ASCII)
_UNSENDABLE = re.compile("[\x00\ud800-\udfff]")


class BadStream(Exception):
    """The bytes are no D-Bus messages; where the next one starts is not known."""


class BadMessage(Exception):
    """One message that cannot be understood; the next one can."""


class _Signatures(OrderedDict[str, object]):
    """Parsed signatures, the most recent ones only: callers can make up any number of them."""

    def __setitem__(self, key: str, value: object) -> None:
        super().__setitem__(key, value)
        while len(self) > _SIGNATURES:
            self.popitem(last=False)


# The library looks its cache up by these two operations, plus `in`.
_SignatureTree._cache = _Signatures()


@dataclass(slots=True)
class Frame:
    """One message as bytes. ``oversize``: its body was too long and has been dropped."""

    data: bytes
    fds: list[int] = field(default_factory=list)
    oversize: bool = False

    def close(self) -> None:
        """Close the descriptors that came with it."""
        close_fds(self.fds)


class FrameReader:
    """Takes whole messages off a non-blocking socket, with bounded memory.

    A body longer than ``max_body`` bytes is skipped as it comes in; a message whose
    header alone is longer than ``MAX_HEADER`` is skipped entirely.
    """

    def __init__(self, sock: socket.socket, max_body: int) -> None:
        self._sock = sock
        self._max_body = max_body
        self._buffer = bytearray()
        self._need = 16
        self._skip = 0
        self._fds: list[int] = []
        self._fixed = False
        self._oversize = False
        self._dropped = False

    def read(self) -> Frame | None:
        """The next message, or None if it is not there yet.

        Raises :exc:`EOFError` at the end, :exc:`BadStream`, or :exc:`OSError`.
        """
        while True:
            if len(self._buffer) < self._need:
                data = self._receive(self._need - len(self._buffer))
                if data is None:
                    return None
                self._buffer += data
            elif not self._fixed:
                self._plan()
            elif self._skip:
                data = self._receive(self._skip)
                if data is None:
                    return None
                self._skip -= len(data)
            else:
                frame = Frame(bytes(self._buffer), self._fds, self._oversize)
                dropped = self._dropped
                self._reset()
                if not dropped:
                    return frame
                frame.close()

    def close(self) -> None:
        """Close the descriptors of a message that has not come in whole."""
        Frame(b"", self._fds).close()
        self._reset()

    def _reset(self) -> None:
        self._buffer = bytearray()
        self._need, self._skip, self._fds = 16, 0, []
        self._fixed = self._oversize = self._dropped = False

    def _plan(self) -> None:
        order = {ord("l"): "<", ord("B"): ">"}.get(self._buffer[0])
        if order is None or self._buffer[3] != 1:
            raise BadStream("not a D-Bus message")
        body, _serial, fields = struct.unpack_from(order + "III", self._buffer, 4)
        header = 16 + fields + -fields % 8
        if header + body > MAX_MESSAGE:
            raise BadStream("message too long")
        self._fixed = True
        if header > MAX_HEADER:
            self._dropped = True
            self._skip = header + body - 16
        elif body > self._max_body:
            # The header alone, saying that no body follows, is a message that can be parsed.
            self._oversize = True
            self._buffer[4:8] = bytes(4)
            self._need, self._skip = header, body
        else:
            self._need = header + body

    def _receive(self, count: int) -> bytes | None:
        try:
            data, control, flags, _address = self._sock.recvmsg(
                min(count, _CHUNK), socket.CMSG_SPACE(_MAX_FDS * 4), socket.MSG_CMSG_CLOEXEC
            )
        except (BlockingIOError, InterruptedError):
            return None
        for level, kind, content in control:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
                self._fds.extend(fds)
        if flags & socket.MSG_CTRUNC:
            # The process is out of descriptors: the call cannot be what its sender meant.
            self._oversize = True
        if not data:
            raise EOFError("the bus closed the connection")
        return data


class _Parser(_LibraryUnmarshaller):  # type: ignore[misc, valid-type]
    """The library's parser over one whole message; refuses a key that comes twice.

    D-Bus allows such dictionaries, but then the later value silently wins.
    """

    def read_array(self, type_: Any) -> object:
        if _kind(type_.children[0]) != "{":
            return super().read_array(type_)
        self.align(4)
        length = self.read_uint32()
        self.align(8)
        end = self.offset + length
        result: dict[object, object] = {}
        while self.offset < end:
            key, value = self.read_dict_entry(type_.children[0])
            if key in result:
                raise BadMessage("a key comes twice")
            result[key] = value
        return result


def parse(data: bytes) -> Any:
    """The message in ``data``; raise :exc:`BadMessage` whatever is wrong with it."""
    try:
        message = _Parser(io.BytesIO(data)).unmarshall()
    except Exception as error:
        raise BadMessage(str(error)) from error
    if message is None:
        raise BadMessage("the message ends too early")
    return message


def without_body(data: bytes) -> bytes:
    """The header of the message ``data``, as a message that can be parsed."""
    (fields,) = struct.unpack_from("<I" if data[0] == ord("l") else ">I", data, 12)
    header = bytearray(data[: 16 + fields + -fields % 8])
    header[4:8] = bytes(4)
    return bytes(header)


def from_wire(value: object) -> object:
    """A parsed value with the library's variants replaced by :class:`Variant`."""
    if isinstance(value, _LibraryVariant):
        return Variant(value.type.signature, from_wire(value.value))
    if isinstance(value, list):
        return [from_wire(item) for item in value]
    if isinstance(value, dict):
        return {key: from_wire(item) for key, item in value.items()}
    return value


def to_wire(signature: str, body: Sequence[object]) -> list[object]:
    """Plain values as the library wants them; raise TypeError or ValueError if they don't fit.

    Text that a D-Bus string cannot hold (NUL, lone surrogates) is replaced: a bus
    disconnects who sends it.
    """
    tree = _SignatureTree._get(signature)
    types = tree.types
    if len(types) != len(body):
        raise TypeError(f"{len(body)} values for the signature {signature!r}")
    result = [_convert(kind, value) for kind, value in zip(types, body, strict=True)]
    tree.verify(result)
    return result


def _kind(type_: Any) -> str:
    return str(type_.token)


def _convert(kind: Any, value: Any) -> object:  # noqa: PLR0911
    children, code = kind.children, kind.token
    if code == "v":
        if not isinstance(value, Variant):
            raise TypeError("a variant must be a Variant")
        return _LibraryVariant(value.signature, to_wire(value.signature, [value.value])[0])
    if code == "s":
        return _UNSENDABLE.sub("\N{REPLACEMENT CHARACTER}", value)
    if code == "o" and not _PATH.fullmatch(value):
        raise ValueError("not an object path")
    if code == "(":
        if len(children) != len(value):
            raise TypeError("a structure of another length")
        return [_convert(child, item) for child, item in zip(children, value, strict=True)]
    if code == "a" and _kind(children[0]) == "{":
        key, item = children[0].children
        return {_convert(key, k): _convert(item, v) for k, v in value.items()}
    if code == "a" and _kind(children[0]) == "y":
        return bytes(value)
    if code == "a":
        if isinstance(value, str):
            raise TypeError("text where an array belongs")
        return [_convert(children[0], item) for item in value]
    return value


@dataclass(slots=True)
class _Unsent:
    """The rest of a message, and the descriptors that go with it."""

    data: memoryview
    fds: list[int]


class Writer:
    """Sends messages to the bus, in order, without ever blocking.

    What the bus does not take at once is kept. Beyond ``high`` bytes ``pressure(True)`` is
    called, and ``pressure(False)`` when all is sent: who stops reading meanwhile is asked for
    no more.
    """

    def __init__(self, sock: socket.socket, high: int, pressure: Callable[[bool], None]) -> None:
        self._sock = sock
        self._high = high
        self._pressure = pressure
        self._queue: deque[_Unsent] = deque()
        self._pressed = False
        self.queued = 0
        """Bytes not yet taken by the bus."""

    def put(self, data: bytes | bytearray, fds: Sequence[int] = ()) -> None:
        """Queue one message with copies of ``fds``; raise :exc:`OSError` for bad ones."""
        copies: list[int] = []
        try:
            copies.extend(os.dup(fd) for fd in fds)
        except OSError:
            close_fds(copies)
            raise
        self._queue.append(_Unsent(memoryview(bytes(data)), copies))
        self.queued += len(data)

    def close(self) -> None:
        """Forget what is not sent."""
        for unsent in self._queue:
            close_fds(unsent.fds)
        self._queue.clear()

    def flush(self) -> bool:
        """Send what the bus takes now; return whether that was all. Raises :exc:`OSError`."""
        while self._queue:
            head = self._queue[0]
            try:
                if head.fds:
                    sent = socket.send_fds(self._sock, [head.data], head.fds)
                else:
                    sent = self._sock.send(head.data)
            except (BlockingIOError, InterruptedError):
                break
            self.queued -= sent
            # Descriptors travel with the first byte (unix(7), SCM_RIGHTS).
            close_fds(head.fds)
            head.fds.clear()
            head.data = head.data[sent:]
            if not head.data:
                self._queue.popleft()
        if self._pressed and not self._queue:
            self._pressed = False
            self._pressure(False)
        elif not self._pressed and self.queued > self._high:
            self._pressed = True
            self._pressure(True)
        return not self._queue
