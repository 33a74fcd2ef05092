# SPDX-License-Identifier: GPL-3.0-or-later
"""The ports that are ours: written down, so that a killed daemon leaves nothing unlooked at.

Whose a device on the virtual bus is, only the process that gave its port a socket knows. A process
that comes after a killed one takes what it does not go on with off its port, before it lets
anything through.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from usbipsshd.errors import Code, UsbipError
from usbipsshd.messages import Json
from usbipsshd.statefile import load, write_whole

log = logging.getLogger(__name__)

MAX_DEVID = (1 << 32) - 1


class TakenPorts:
    """Keeps ``record``, a file below /run, while ports are ours."""

    def __init__(self, record: Path) -> None:
        self._record = record
        self._ours: dict[int, int] = {}

    @contextmanager
    def taking(self, ports: Iterable[int], devid: int) -> Iterator[None]:
        """Note that one of ``ports`` may become the device's; inside, :meth:`own` says which.

        Raises :exc:`UsbipError` (Failed) where that cannot be written down. There must be no
        waiting inside.
        """
        try:
            self._save({**dict.fromkeys(ports, devid), **self._ours})
        except OSError as error:
            raise UsbipError(
                Code.FAILED, f"This machine cannot write to its run folder: {error.strerror}."
            ) from None
        try:
            yield
        finally:
            self._try_to_save()

    def own(self, port: int, devid: int) -> None:
        """Inside :meth:`taking`: the port is ours."""
        self._ours[port] = devid

    def forget(self, port: int) -> None:
        """The port is ours no more."""
        if self._ours.pop(port, None) is not None:
            self._try_to_save()

    def recover(self) -> dict[int, int]:
        """The ports that were an earlier process's, and are ours now; the devices' ids by port."""
        notes = load(self._record).get("taking")
        for note in notes if isinstance(notes, list) else ():
            ports = note.get("ports") if isinstance(note, dict) else None
            devid = note.get("devid") if isinstance(note, dict) else None
            if not isinstance(devid, int) or not 0 <= devid <= MAX_DEVID:
                continue
            for number in ports if isinstance(ports, list) else ():
                if isinstance(number, int):
                    self._ours[number] = devid
        return dict(self._ours)

    def _try_to_save(self) -> None:
        try:
            self._save(self._ours)
        except OSError as error:
            log.warning("cannot write %s: %s", self._record, error)

    def _save(self, ours: dict[int, int]) -> None:
        if ours:
            notes: list[Json] = [{"ports": [port], "devid": devid} for port, devid in ours.items()]
            write_whole(self._record, json.dumps({"taking": notes}).encode())
        else:
            self._record.unlink(missing_ok=True)
