# SPDX-License-Identifier: GPL-3.0-or-later
"""The log: one line a person can read for each happening, with fields a program can.

The native protocol of journald: https://systemd.io/JOURNAL_NATIVE_PROTOCOL/
"""

from __future__ import annotations

import logging
import socket
import sys
from contextlib import suppress
from enum import Enum
from pathlib import Path

SOCKET = Path("/run/systemd/journal/socket")
IDENTIFIER = "usbipsshd"

_LEVELS = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3}


class Happening(Enum):
    """What is worth a MESSAGE_ID of its own (systemd.journal-fields(7))."""

    ATTACHED = "5b5f2d7e0a3c4c0f9d6a1b7c1e8f4a01"
    DETACHED = "5b5f2d7e0a3c4c0f9d6a1b7c1e8f4a02"
    REFUSED = "5b5f2d7e0a3c4c0f9d6a1b7c1e8f4a03"
    LOST = "5b5f2d7e0a3c4c0f9d6a1b7c1e8f4a04"
    RESTORED = "5b5f2d7e0a3c4c0f9d6a1b7c1e8f4a05"


def tell(
    log: logging.Logger,
    happening: Happening,
    text: str,
    *,
    remote: str = "",
    busid: str = "",
    uid: int | None = None,
) -> None:
    """Log a happening with its fields."""
    fields = {"MESSAGE_ID": happening.value}
    if remote:
        fields["USBIPSSH_REMOTE"] = remote
    if busid:
        fields["USBIPSSH_BUSID"] = busid
    if uid is not None:
        fields["USBIPSSH_CALLER_UID"] = str(uid)
    level = logging.WARNING if happening in (Happening.LOST, Happening.REFUSED) else logging.INFO
    log.log(level, "%s", text, extra={"journal_fields": fields})


def encode(fields: dict[str, str]) -> bytes:
    """A message of the native protocol; a value with a newline is sent with its length."""
    out = bytearray()
    for name, value in fields.items():
        data = value.encode("utf-8", "replace")
        out += name.encode("ascii")
        if b"\n" in data:
            out += b"\n" + len(data).to_bytes(8, "little") + data + b"\n"
        else:
            out += b"=" + data + b"\n"
    return bytes(out)


class JournalHandler(logging.Handler):
    """Sends records to journald; what it does not take goes to stderr, without its fields."""

    def __init__(self, path: Path = SOCKET) -> None:
        super().__init__()
        # The level and the module are fields of their own.
        self.setFormatter(logging.Formatter("%(message)s"))
        self._path = path
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.setblocking(False)

    def emit(self, record: logging.LogRecord) -> None:
        """See :class:`logging.Handler`."""
        fields = {
            "MESSAGE": self.format(record),
            "PRIORITY": str(_LEVELS.get(record.levelno, 3)),
            "SYSLOG_IDENTIFIER": IDENTIFIER,
            "CODE_MODULE": record.name,
            **getattr(record, "journal_fields", {}),
        }
        try:
            self._sock.sendto(encode(fields), str(self._path))
        except OSError:
            # Too long, or too many at once. Never a traceback: stderr is the journal's, too.
            with suppress(OSError):
                sys.stderr.write(f"{fields['MESSAGE']}\n")

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()
        super().close()
