# SPDX-License-Identifier: GPL-3.0-or-later
"""Holds new devices of a virtual bus unauthorized for as long as one of ours is on it.

With 0 in a root hub's ``authorized_default`` a new device enumerates completely and
no driver binds; 1 in its ``authorized`` binds them (Documentation/usb/authorization.rst).
A device that says something else after a reset is a new device to the kernel, on the same port
and without anybody's asking, so the switch stays at 0 until the last of ours has left the bus.
It is per bus, and other programs use that bus too: what is not ours is
let through, and at last the switch goes back to what it was.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from usbipsshd.descriptors import MAX_SIZE
from usbipsshd.device import is_busid
from usbipsshd.errors import Code, UsbipError
from usbipsshd.localusb import read_text
from usbipsshd.messages import Json, Packet
from usbipsshd.statefile import load, write_whole
from usbipsshd.sysfs import this_one, write

log = logging.getLogger(__name__)

HELD = "0"
_POLICIES = frozenset({HELD, "2"})
"""Values with which another program decides about devices on this bus: 2 lets through only what is
built into the machine, which a virtual bus never is (drivers/usb/core/hcd.c)."""

_Plug = tuple[str, str]
"""A device's bus id and number: plugged in anew, it is another one."""


@dataclass(slots=True)
class _Bus:
    before: str
    seen: set[_Plug] = field(default_factory=set)
    """Other programs' devices that were decided about, by us or by somebody else."""


class Hold:
    """The switches that this daemon has turned, and how to turn them back.

    ``record`` is a file that says which these are, so that a daemon that comes after
    this one finds them; until it does, the buses stay held.
    """

    def __init__(self, sys: Path, record: Path) -> None:
        self._devices = sys / "bus/usb/devices"
        self._record = record
        self._buses: dict[str, _Bus] = {}
        self._saved: Packet | None = None
        """What is in the record; None while it may have an earlier process's words."""

    def recover(self) -> None:
        """Know what an earlier process of ours left turned; :meth:`settle` turns it back."""
        for name, left in load(self._record).items():
            hub = self._devices / name
            # After the module was loaded anew, a bus of that name may be another one.
            if "/" in name or not read_text(hub / "serial").startswith("vhci_hcd"):
                continue
            before, seen = (
                (left.get("before"), left.get("seen")) if isinstance(left, dict) else (left, [])
            )
            if isinstance(before, str):
                bus = self._buses[name] = _Bus(before)
                for plug in seen if isinstance(seen, list) else ():
                    if isinstance(plug, list) and len(plug) == 2:
                        bus.seen.add((str(plug[0]), str(plug[1])))

    def blocked_by_policy(self, bus: str) -> bool:
        """Whether another program decides about new devices of this bus (``usb4``)."""
        known = self._buses.get(bus)
        before = known.before if known else read_text(self._devices / bus / "authorized_default")
        return before in _POLICIES

    def hold(self, bus: str) -> None:
        """Hold new devices of ``bus`` until a :meth:`settle` without any of ours on it.

        Raises :exc:`UsbipError` (Failed, DeviceFailed) where that cannot be done for sure.
        """
        switch = self._devices / bus / "authorized_default"
        now = read_text(switch)
        known = self._buses.get(bus)
        if known is not None and now == HELD:
            return
        if known is None:
            self._buses[bus] = _Bus(now, set(self._plugs(bus)))
        else:
            # Somebody has turned it meanwhile, and wants that from now on.
            known.before = now
        try:
            self._save()
        except OSError as error:
            if known is None:
                del self._buses[bus]
            raise UsbipError(
                Code.FAILED, f"This machine cannot write to its run folder: {error.strerror}."
            ) from None
        if now != HELD:
            self._write(switch, HELD)
        if read_text(switch) != HELD:
            raise UsbipError(
                Code.DEVICE_FAILED,
                "This machine's kernel does not hold new devices back until they were looked at; "
                "nothing was attached.",
            )

    def settle(self, ours: Mapping[str, Collection[str]]) -> None:
        """Let through what is not ours, and let go of buses with none of ours.

        ``ours`` has the bus ids of our ports by bus; what is plugged into them is ours, too.
        """
        for name, bus in list(self._buses.items()):
            hub = self._devices / name
            mine = ours.get(name, ())
            if not hub.exists():
                del self._buses[name]
                continue
            if mine:
                try:
                    self.hold(name)
                except UsbipError as error:
                    log.warning("%s: %s", name, error.message)
            else:
                del self._buses[name]
                if bus.before != HELD and read_text(hub / "authorized_default") == HELD:
                    self._write(hub / "authorized_default", bus.before)
            if bus.before not in _POLICIES:
                self._pass_others(name, bus, mine)
        try:
            self._save()
        except OSError as error:
            log.warning("cannot write %s: %s", self._record, error)

    def _pass_others(self, name: str, bus: _Bus, ours: Collection[str]) -> None:
        there = {
            plug: authorized
            for plug, authorized in self._plugs(name).items()
            if not any(_is_at(plug[0], port) for port in ours)
        }
        # Once: what somebody forbids later stays forbidden.
        for plug in set(there) - bus.seen:
            if there[plug] == HELD:
                log.debug("%s is not ours: let through", plug[0])
                self._write(self._devices / plug[0] / "authorized", "1")
        bus.seen = set(there)

    def authorize(self, busid: str, approved: bytes) -> bool:
        """Let drivers bind to a device if its descriptors are those; whether they are.

        Raises :exc:`OSError` if the device has gone, or cannot be started.
        """
        with this_one(self._devices / busid) as folder:
            with (folder / "descriptors").open("rb") as file:
                if file.read(MAX_SIZE) != approved:
                    return False
            write(folder / "authorized", "1")
        return True

    def _plugs(self, bus: str) -> dict[_Plug, str]:
        """Every device on a bus, and whether it is authorized."""
        found = {}
        for path in self._devices.glob(f"{bus.removeprefix('usb')}-*"):
            if is_busid(path.name) and (authorized := read_text(path / "authorized")):
                found[path.name, read_text(path / "devnum")] = authorized
        return found

    def _save(self) -> None:
        value: Packet = {}
        for name, bus in self._buses.items():
            plugs = self._plugs(name)
            # Only what was forbidden would be let through by the next process.
            seen: list[Json] = [[*plug] for plug in sorted(bus.seen) if plugs.get(plug) == HELD]
            value[name] = {"before": bus.before, "seen": seen}
        if value == self._saved:
            return
        if value:
            write_whole(self._record, json.dumps(value).encode())
        else:
            self._record.unlink(missing_ok=True)
        self._saved = value

    @staticmethod
    def _write(path: Path, text: str) -> None:
        try:
            write(path, text)
        except OSError as error:
            log.warning("cannot write %s to %s: %s", text, path, error)


def _is_at(busid: str, port: str) -> bool:
    """Whether a device is in a port, or in a hub that is."""
    return busid == port or busid.startswith(f"{port}.")
