# SPDX-License-Identifier: GPL-3.0-or-later
"""Lines for people, fields for programs, in journald's own protocol."""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from usbipsshd.journal import Happening, JournalHandler, encode, tell


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "journal"))
        sock.settimeout(30)
        yield sock


@pytest.fixture
def log(journald: socket.socket) -> Iterator[logging.Logger]:
    handler = JournalHandler(Path(journald.getsockname()))
    logger = logging.Logger("usbipsshd.test", logging.INFO)
    logger.addHandler(handler)
    # As logging.basicConfig does, which gives a form to handlers that have none.
    if handler.formatter is None:
        handler.setFormatter(logging.Formatter(logging.BASIC_FORMAT))
    yield logger
    handler.close()


def fields(data: bytes) -> dict[str, str]:
    return dict(line.split("=", 1) for line in data.decode().splitlines())


def test_a_happening_has_its_fields(log: logging.Logger, journald: socket.socket) -> None:
    tell(log, Happening.LOST, "lost 1-1 of pi: gone", remote="pi", busid="1-1", uid=1000)
    found = fields(journald.recv(65536))
    assert found["MESSAGE"] == "lost 1-1 of pi: gone"
    assert found["MESSAGE_ID"] == Happening.LOST.value
    assert found["USBIPSSH_REMOTE"] == "pi"
    assert found["USBIPSSH_BUSID"] == "1-1"
    assert found["USBIPSSH_CALLER_UID"] == "1000"
    assert found["PRIORITY"] == "4"
    assert found["SYSLOG_IDENTIFIER"] == "usbipsshd"


def test_what_is_not_known_is_left_out(log: logging.Logger, journald: socket.socket) -> None:
    tell(log, Happening.REFUSED, "refused uid 0", uid=0)
    found = fields(journald.recv(65536))
    assert found["USBIPSSH_CALLER_UID"] == "0"
    assert "USBIPSSH_REMOTE" not in found
    log.info("ready")
    assert "MESSAGE_ID" not in fields(journald.recv(65536))


def test_a_newline_cannot_make_another_field() -> None:
    data = encode({"MESSAGE": "one\nPRIORITY=0", "PRIORITY": "6"})
    length = len(b"one\nPRIORITY=0").to_bytes(8, "little")
    assert data == b"MESSAGE\n" + length + b"one\nPRIORITY=0\nPRIORITY=6\n"


def test_ids_are_all_different_and_documented() -> None:
    values = [h.value for h in Happening]
    assert len(set(values)) == len(values)
    page = (Path(__file__).parents[2] / "debian/usbipsshd.8").read_text()
    for happening in Happening:
        assert re.fullmatch(r"[0-9a-f]{32}", happening.value)
        assert happening.name.lower() in page
        assert happening.value in page or happening.value[-2:] in page


def test_what_journald_does_not_take_goes_to_stderr(
    log: logging.Logger, journald: socket.socket, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(journald.getsockname()).unlink()
    log.warning("nobody listens")
    assert capsys.readouterr().err == "nobody listens\n"
