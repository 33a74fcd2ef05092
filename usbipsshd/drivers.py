# SPDX-License-Identifier: GPL-3.0-or-later
"""Which of this machine's drivers would take a device, by the kernel's own tables.

depmod writes them below /lib/modules/RELEASE (depmod(8)): ``modules.alias`` has a line for every
id that a module knows, ``modules.builtin.modinfo`` has those of what is built into the kernel, and
``modules.dep`` and ``modules.builtin`` say where in the kernel's tree each of them comes from. What
a pattern looks like: scripts/mod/file2alias.c, do_usb_entry.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from usbipsshd.descriptors import Summary

log = logging.getLogger(__name__)

PLACES = (Path("/run/usbipsshd/modules"), Path("/lib/modules"))
"""The first is where the unit shows the second, which its sandbox hides."""

BLOCK = 1 << 16
MAX_SIZE = 1 << 26
"""A table is read in blocks of so many bytes, and not beyond this size."""

_HARMLESS = (
    "drivers/comedi/",
    "drivers/gpu/drm/",
    "drivers/i2c/busses/",
    "drivers/media/radio/",
    "drivers/media/usb/airspy/",
    "drivers/media/usb/gspca/",
    "drivers/media/usb/hackrf/",
    "drivers/media/usb/msi2500/",
    "drivers/media/usb/pwc/",
    "drivers/media/usb/s2255/",
    "drivers/media/usb/stk1160/",
    "drivers/media/usb/usbtv/",
    "drivers/media/usb/uvc/",
    "drivers/mfd/",
    "drivers/misc/cardreader/",
    "drivers/usb/class/",
    "drivers/usb/image/",
    "drivers/usb/misc/",
    "drivers/usb/serial/",
    "drivers/usb/storage/",
    "drivers/video/fbdev/",
    "drivers/w1/masters/",
    "drivers/watchdog/",
    "sound/usb/",
)
"""Folders of the kernel's tree whose drivers make neither keys nor networks of a device: serial
ports, disks, printers, sound, pictures, measuring. A camera's or a disk's single button is none.
Whatever comes from elsewhere may do both: other media drivers have remote controls with all of a
keyboard's keys, an SDIO card behind a host controller may be a network's, and what was not built
with the kernel can be anything."""

_NOT_HARMLESS = (
    "drivers/usb/misc/ftdi-elan.",  # a host controller: further devices, of any kind
    "sound/usb/caiaq/",  # the keys of controllers, digits among them
)

_KEYS = ("v", "p", "d", "dc", "dsc", "dp", "ic", "isc", "ip", "in")
_FIELDS = re.compile("usb:" + "".join(f"{key}([^a-z]+)" for key in _KEYS))
"""What is between the lower-case letters is hexadecimal in upper case, or ``*``, or a range."""


class _NoTables(Exception):
    """There is nothing to go by."""


class Drivers:
    """Looks into the tables of the kernel ``release``; nothing of them is kept in memory.

    Drivers that somebody loads from elsewhere, and ids that are given to a driver while it runs,
    are not in them.
    """

    def __init__(self, release: str, places: Sequence[Path] = PLACES) -> None:
        self._release = release
        self._places = places
        self._complained = False

    async def can_type_or_network(self, summary: Summary) -> bool:
        """Whether polkit's stricter action is asked for a device.

        By its classes, or because a driver that would take one of its interfaces, in whatever
        configuration or alternate setting, is not known to be harmless. Without tables the
        classes alone decide. Takes some milliseconds, in a thread.
        """
        if summary.can_type_or_network:
            return True
        try:
            takers = await asyncio.to_thread(self.strict_takers, summary)
        except (_NoTables, OSError) as error:
            if not self._complained:
                self._complained = True
                log.warning(
                    "what this machine's drivers make of a device is not known, its classes alone "
                    "decide what is asked: %s",
                    error,
                )
            return False
        if takers:
            log.info(
                "%04x:%04x can type or carry the network: %s would take it",
                summary.vendor_id,
                summary.product_id,
                ", ".join(takers),
            )
        return bool(takers)

    def strict_takers(self, summary: Summary) -> list[str]:
        """Modules that would take the device and are not known to be harmless, sorted."""
        folder = self._folder()
        takers = _takers(folder, summary)
        paths = {
            **_paths(folder / "modules.builtin", takers),
            **_paths(folder / "modules.dep", takers),
        }
        return sorted(m for m in takers if not is_harmless(paths.get(m, "")))

    def _folder(self) -> Path:
        for place in self._places:
            if (place / self._release / "modules.alias").is_file():
                return place / self._release
        raise _NoTables(f"there is no modules.alias for Linux {self._release}")


def _takers(folder: Path, summary: Summary) -> set[str]:
    """Every module that knows an interface of the device."""
    wanted = [fields for modalias in summary.modaliases if (fields := _fields(modalias))]
    vendor = rb"(?:\*|%04X)" % summary.vendor_id
    return {
        module.decode("latin-1").replace("-", "_")
        for pattern, module in _ids(folder, vendor)
        if (fields := _fields(pattern.decode("latin-1")))
        and any(all(map(_same, fields, one)) for one in wanted)
    }


def _ids(folder: Path, vendor: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Every pattern for a vendor's devices, and the name of the module whose it is."""
    line = re.compile(rb"\nalias (usb:v%s\S+) (\S+)" % vendor)
    for block in _blocks(folder / "modules.alias", b"\n"):
        for match in line.finditer(block):
            yield match[1], match[2]
    built_in = re.compile(rb"\.alias=(usb:v%s[^\0]+)" % vendor)
    for block in _blocks(folder / "modules.builtin.modinfo", b"\0"):
        for match in built_in.finditer(block):
            begin = block.rfind(b"\0", 0, match.start()) + 1
            yield match[1], block[begin : match.start()]


def _fields(modalias: str) -> tuple[str, ...]:
    """What a pattern, or an interface, has between its letters; nothing if it is none."""
    match = _FIELDS.fullmatch(modalias)
    return match.groups() if match else ()


def _same(pattern: str, value: str) -> bool:
    # Only ranges are left to fnmatch, which keeps every pattern that it has ever seen.
    return pattern in ("*", value) or (not pattern.isalnum() and fnmatchcase(value, pattern))


def is_harmless(path: str) -> bool:
    """Whether the driver at this path, as in modules.dep, makes neither keys nor networks."""
    within = path.removeprefix("kernel/")
    return within != path and within.startswith(_HARMLESS) and not within.startswith(_NOT_HARMLESS)


def _paths(table: Path, modules: Iterable[str]) -> dict[str, str]:
    """Where each of the modules is, as far as ``table`` has them: a path at the begin of a line."""
    found = {}
    wanted = {
        m: re.compile(
            rb"\n((?:\S*/)?%s\.ko[^\s:]*)" % re.escape(m.encode("latin-1")).replace(b"_", b"[-_]")
        )
        for m in modules
    }
    for block in _blocks(table, b"\n") if wanted else ():
        for module, pattern in wanted.items():
            if match := pattern.search(block):
                found[module] = match[1].decode("latin-1")
    return found


def _blocks(path: Path, separator: bytes) -> Iterator[bytes]:
    """A file in pieces of whole entries, each piece with a separator before it; none if it is not
    there.
    """
    if not path.is_file():
        return
    rest = b""
    with path.open("rb", buffering=0) as file:
        for _ in range(MAX_SIZE // BLOCK):
            block = file.read(BLOCK)
            if not block:
                break
            whole, _, rest = (rest + block).rpartition(separator)
            if len(rest) > BLOCK:
                raise _NoTables(f"{path.name} is no table")
            if whole:
                yield separator + whole
    if rest:
        yield separator + rest
