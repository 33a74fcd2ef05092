# SPDX-License-Identifier: GPL-3.0-or-later
"""The ports that are being taken: written down, so that a killed daemon leaves nothing unlooked at.

Between giving a port its socket and authorizing the device on it, nobody but this process knows
that the device is still to be looked at. A process that comes after a killed one takes such a
device off its port before it lets new devices through again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from usbipsshd.errors import Code, UsbipError
from usbipsshd.statefile import load, write_whole
from usbipsshd.vhci import ERROR, FREE, USED, Vhci

log = logging.getLogger(__name__)


class TakenPorts:
    """Keeps ``record``, a file below /run, while ports are being taken."""

    def __init__(self, record: Path) -> None:
        self._record = record
        self._notes: dict[int, tuple[list[int], int]] = {}
        self._keys = count(1)

    @contextmanager
    def noted(self, ports: Iterable[int], devid: int) -> Iterator[None]:
        """Note that the device is about to be on one of ``ports``, until the context ends.

        Raises :exc:`UsbipError` (Failed) where that cannot be written down.
        """
        key = next(self._keys)
        self._notes[key] = (list(ports), devid)
        try:
            try:
                self._save()
            except OSError as error:
                raise UsbipError(
                    Code.FAILED, f"This machine cannot write to its run folder: {error.strerror}."
                ) from None
            yield
        finally:
            del self._notes[key]
            try:
                self._save()
            except OSError as error:
                log.warning("cannot write %s: %s", self._record, error)

    def _save(self) -> None:
        if self._notes:
            notes = [{"ports": ports, "devid": devid} for ports, devid in self._notes.values()]
            write_whole(self._record, json.dumps({"taking": notes}).encode())
        else:
            self._record.unlink(missing_ok=True)

    def recover(self, vhci: Vhci) -> None:
        """Take off its port what an earlier process of ours was about to look at."""
        notes = load(self._record).get("taking")
        for note in notes if isinstance(notes, list) else ():
            ports = note.get("ports") if isinstance(note, dict) else None
            devid = note.get("devid") if isinstance(note, dict) else None
            for number in ports if isinstance(ports, list) else ():
                port = vhci.port(number) if isinstance(number, int) else None
                if port is None or port.state in (FREE, ERROR):
                    continue
                # Until the device has enumerated, the kernel does not tell which one it is.
                if port.state != USED or port.devid == devid:
                    log.warning("port %d was being taken when usbipsshd ended: freed", number)
                    vhci.detach(port.number)
        self._record.unlink(missing_ok=True)
