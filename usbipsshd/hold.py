# SPDX-License-Identifier: GPL-3.0-or-later
"""Holds new devices of a virtual bus unauthorized until somebody has looked at them.

With 0 in a root hub's ``authorized_default`` a new device enumerates completely and
no driver binds; 1 in its ``authorized`` binds them (Documentation/usb/authorization.rst).
The switch is per bus, and other programs use that bus too: what is not ours is
let through, and the switch goes back to what it was.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from usbipsshd.device import is_busid
from usbipsshd.localusb import read_text
from usbipsshd.sysfs import write

log = logging.getLogger(__name__)

HELD = "0"


@dataclass(slots=True)
class _Bus:
    before: str
    holders: int = 0
    unauthorized_before: frozenset[str] = field(default_factory=frozenset)


class Hold:
    """The switches that this daemon has turned, and how to turn them back.

    ``record`` is a file that says which these are, so that a daemon that was
    killed finds them when it starts again.
    """

    def __init__(self, sys: Path, record: Path) -> None:
        self._devices = sys / "bus/usb/devices"
        self._record = record
        self._buses: dict[Path, _Bus] = {}
        self._ours: set[str] = set()

    def recover(self) -> None:
        """Put back what an earlier process of ours left turned."""
        try:
            left = json.loads(self._record.read_text())
        except (OSError, ValueError):
            return
        for name, before in left.items() if isinstance(left, dict) else ():
            switch = self._devices / str(name) / "authorized_default"
            if name.startswith("usb") and "/" not in name and read_text(switch) == HELD:
                self._write(switch, str(before))
        self._record.unlink(missing_ok=True)

    def blocked_by_policy(self, bus: Path) -> bool:
        """Whether the bus was held before us: then another program decides about new devices."""
        known = self._buses.get(bus)
        before = known.before if known else read_text(bus / "authorized_default")
        return before == HELD

    @contextmanager
    def holding(self, bus: Path, claimed: Callable[[], set[str]] = set) -> Iterator[None]:
        """Hold new devices of ``bus``, a root hub's folder; may be nested and used side by side.

        When the last holder leaves, what others attached meanwhile is let through. Neither
        what was claimed nor what is in ``claimed()`` then is: it was rejected, or not looked at.
        """
        state = self._buses.get(bus)
        if state is None:
            self._ours = {busid for busid in self._ours if (self._devices / busid).exists()}
            state = self._buses[bus] = _Bus(read_text(bus / "authorized_default") or "1")
            state.unauthorized_before = frozenset(self._unauthorized(bus))
            if state.before != HELD:
                self._save()
                self._write(bus / "authorized_default", HELD)
        state.holders += 1
        try:
            yield
        finally:
            state.holders -= 1
            if not state.holders:
                del self._buses[bus]
                if state.before != HELD:
                    self._write(bus / "authorized_default", state.before)
                    self._pass_others(bus, state, claimed())
                self._save()

    def claim(self, busid: str) -> None:
        """Say that a device is ours: until it is gone, :meth:`authorize` alone authorizes it."""
        self._ours.add(busid)

    def forget(self, busid: str) -> None:
        """The device is gone: whatever gets its bus id next is another one."""
        self._ours.discard(busid)

    def authorize(self, busid: str) -> None:
        """Let a device's drivers bind; raise :exc:`OSError`."""
        write(self._devices / busid / "authorized", "1")
        self._ours.discard(busid)

    def pass_others(self, bus: Path, claimed: frozenset[str] | set[str]) -> None:
        """Let through what came to a held bus meanwhile and is neither ours nor in ``claimed``."""
        state = self._buses.get(bus)
        if state is not None and state.before != HELD:
            self._pass_others(bus, state, claimed)

    def _pass_others(
        self, bus: Path, state: _Bus, claimed: frozenset[str] | set[str] = frozenset()
    ) -> None:
        for busid in self._unauthorized(bus) - state.unauthorized_before - self._ours - claimed:
            self._write(self._devices / busid / "authorized", "1")

    def _unauthorized(self, bus: Path) -> set[str]:
        number = bus.name.removeprefix("usb")
        found = self._devices.glob(f"{number}-*")
        return {p.name for p in found if is_busid(p.name) and read_text(p / "authorized") == HELD}

    def _save(self) -> None:
        turned = {p.name: b.before for p, b in self._buses.items() if b.before != HELD}
        with contextlib.suppress(OSError):
            if turned:
                self._record.write_text(json.dumps(turned))
            else:
                self._record.unlink(missing_ok=True)

    @staticmethod
    def _write(path: Path, text: str) -> None:
        try:
            write(path, text)
        except OSError as error:
            log.warning("cannot write %s to %s: %s", text, path, error)
