# SPDX-License-Identifier: GPL-3.0-or-later
"""What a remote has, listed and attached, as one list of things to click on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from usbipssh_tray.kinds import Kind, kind, kind_of_nodes
from usbipssh_tray.text import _
from usbipsshd.client.snapshot import NOTHING, Attachment, Device, Snapshot
from usbipsshd.device import busid_key, is_busid


@dataclass(frozen=True, slots=True)
class Listing:
    """What is known of a remote's devices."""

    devices: tuple[Device, ...] = ()
    gone: tuple[Device, ...] = ()
    """What was there before: an attachment that waits for one of these is still a disk."""
    known: bool = False
    """Whether it has been listed at least once."""
    looking: bool = False
    error: tuple[str, str] = NOTHING
    """Why it could not be listed last time: D-Bus name and sentence."""


@dataclass(frozen=True, slots=True)
class Ui:
    """What the tray knows besides the daemon's objects."""

    uid: int = 0
    """Whose tray this is."""
    listings: Mapping[str, Listing] = field(default_factory=dict)
    """By the remote's name."""
    busy: frozenset[tuple[str, str]] = frozenset()
    """Remote and bus id of what has been clicked and has no attachment yet."""
    statistics: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Bytes received and sent, by the attachment's path."""
    started: str = ""
    """Why the daemon could not be started; empty if that has not been tried."""
    no_agent: bool = False
    """Whether a password could not be asked for, because nothing here asks."""
    no_bus: bool = False
    """Whether there is no system bus."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One device, or one attachment whose device is away."""

    key: str
    """The same for the same device as long as it stays where it is."""
    remote: str
    busid: str
    kind: Kind
    name: str
    device: Device | None = None
    attachment: Attachment | None = None
    busy: bool = False
    twin: bool = False
    """Whether another one here looks the same."""


def entries(remote: str, snapshot: Snapshot, ui: Ui) -> tuple[Entry, ...]:
    """The remote's devices but for hubs, in tree order; what waits for its device comes last."""
    attachments = [a for a in snapshot.attachments if a.remote == remote]
    by_busid = {a.remote_bus_id: a for a in attachments if a.remote_bus_id}
    found = []
    listing = ui.listings.get(remote, Listing())
    for device in listing.devices:
        if not device.hub:
            attachment = by_busid.get(device.busid)
            if attachment is not None and not _same(device, attachment):
                attachment = None
            if attachment is not None:
                attachments.remove(attachment)
            found.append(_listed(remote, device, attachment, ui))
    found += [_attached(remote, attachment, listing.gone) for attachment in attachments]
    found.sort(key=_order)
    names = Counter((e.kind, e.name) for e in found)
    return tuple(entry if names[entry.kind, entry.name] == 1 else _twin(entry) for entry in found)


def _order(entry: Entry) -> tuple[bool, tuple[int, ...]]:
    known = is_busid(entry.busid)
    return not known, busid_key(entry.busid) if known else ()


def _same(device: Device, attachment: Attachment) -> bool:
    ids = (attachment.vendor_id, attachment.product_id)
    return ids in ((0, 0), (device.vendor_id, device.product_id))


def _listed(remote: str, device: Device, attachment: Attachment | None, ui: Ui) -> Entry:
    found = kind(device)
    if found is Kind.OTHER and attachment is not None:
        # While it is exported its interfaces are gone there, and its nodes are here.
        found = kind_of_nodes(attachment.device_nodes) or found
    return Entry(
        f"{device.busid} {device.vendor_id:04x}:{device.product_id:04x}",
        remote,
        device.busid,
        found,
        _whose(device.title, attachment),
        device,
        attachment,
        attachment is None and (remote, device.busid) in ui.busy,
    )


def _attached(remote: str, attachment: Attachment, gone: tuple[Device, ...]) -> Entry:
    was = [d for d in gone if d.busid == attachment.remote_bus_id and _same(d, attachment)]
    ids = f"{attachment.vendor_id:04x}:{attachment.product_id:04x}"
    key = f"{attachment.remote_bus_id} {ids}" if attachment.remote_bus_id else attachment.path
    return Entry(
        key,
        remote,
        attachment.remote_bus_id,
        kind_of_nodes(attachment.device_nodes) or (kind(was[0]) if was else Kind.OTHER),
        _whose(attachment.name or attachment.pattern or ids, attachment),
        None,
        attachment,
    )


def _whose(name: str, attachment: Attachment | None) -> str:
    """The name, told apart where the device is no device of the remote's."""
    if attachment is not None and attachment.exported:
        return _("{name}, from this machine").format(name=name)
    return name


def _twin(entry: Entry) -> Entry:
    return Entry(
        entry.key, entry.remote, entry.busid, entry.kind, entry.name, entry.device,
        entry.attachment, entry.busy, True,
    )  # fmt: skip
