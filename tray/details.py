# SPDX-License-Identifier: GPL-3.0-or-later
"""The submenu of one device: what becomes of it, and all that is known of it."""

from __future__ import annotations

from functools import lru_cache

from usbipssh_tray.actions import Attach, Copy, SetOptions
from usbipssh_tray.entries import Entry
from usbipssh_tray.kinds import words
from usbipssh_tray.rows import Row, sentence, separator
from usbipssh_tray.text import _


def label(entry: Entry) -> str:
    """The device as a line of the menu calls it."""
    text = _("{kind}: {name}").format(kind=words(entry.kind), name=entry.name)
    return f"{text} ({entry.busid})" if entry.twin and entry.busid else text


# Of a hundred devices one has changed: the others' rows are then the very same objects, which
# nobody has to look into.
@lru_cache(maxsize=1024)
def device_rows(entry: Entry, uid: int, statistics: tuple[int, int] | None) -> tuple[Row, ...]:
    """What the device's submenu has. ``uid`` is whose tray this is."""
    return (
        *_choices(entry),
        separator("facts"),
        *_facts(entry, uid, statistics),
        *_nodes(entry),
        *_error(entry),
    )


def _choices(entry: Entry) -> list[Row]:
    attachment = entry.attachment
    keep, always = _("Keep attached"), _("Always attach, also after a restart")
    if attachment is None:
        if entry.device is None:
            return []
        return [
            Row("keep", keep, attach(entry, keep=True), False),
            Row("persist", always, attach(entry, persist=True), False),
        ]
    if attachment.hub != "/":
        return sentence("hub", _("Attached with everything there, and kept as long."))
    path, name = attachment.path, entry.name
    keeps = SetOptions(path, name, keep=not attachment.keep)
    return [
        # What comes back after a restart is kept in any case.
        Row("keep", keep, None if attachment.persist else keeps, attachment.keep),
        Row(
            "persist", always, SetOptions(path, name, persist=not attachment.persist),
            attachment.persist,
        ),
    ]  # fmt: skip


def attach(entry: Entry, *, keep: bool = False, persist: bool = False) -> Attach | None:
    """What attaches the device, if it is there."""
    if entry.device is None or entry.busy:
        return None
    return Attach(
        entry.remote, entry.busid, entry.device.vendor_id, entry.device.product_id, entry.name,
        keep, persist,
    )  # fmt: skip


def _facts(entry: Entry, uid: int, statistics: tuple[int, int] | None) -> list[Row]:
    rows = []

    def fact(key: str, text: str) -> None:
        rows.append(Row(key, text))

    device, attachment = entry.device, entry.attachment
    if entry.busid:
        fact("busid", _("Bus id there: {busid}").format(busid=entry.busid))
    if attachment is not None and attachment.local_bus_id:
        fact("here", _("Bus id here: {busid}").format(busid=attachment.local_bus_id))
    one = device or attachment
    if one is not None:
        ids = f"{one.vendor_id:04x}:{one.product_id:04x}"
        fact("ids", _("Vendor and product: {ids}").format(ids=ids))
        if one.serial:
            fact("serial", _("Serial number: {serial}").format(serial=one.serial))
        if one.speed:
            fact("speed", _("Speed: {speed} Mbit/s").format(speed=f"{one.speed:g}"))
    if attachment is not None:
        if attachment.owner_uid != uid:
            fact("owner", _("Attached by user {uid}").format(uid=attachment.owner_uid))
        if statistics is not None:
            received, sent = (size(n) for n in statistics)
            text = _("{received} received, {sent} sent")
            fact("statistics", text.format(received=received, sent=sent))
    return rows


def _nodes(entry: Entry) -> list[Row]:
    nodes = entry.attachment.device_nodes if entry.attachment is not None else ()
    rows = [Row(f"copy {n}", _("Copy {node}").format(node=n), Copy(n)) for n in nodes]
    return [separator("nodes"), *rows] if rows else []


def _error(entry: Entry) -> list[Row]:
    attachment = entry.attachment
    if attachment is None or not attachment.last_error[1]:
        return []
    heading = Row("error", _("Last error:"))
    return [separator("errors"), heading, *sentence("error", attachment.last_error[1])]


def size(count: int) -> str:
    """A number of bytes for people."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"
