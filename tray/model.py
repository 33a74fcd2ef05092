# SPDX-License-Identifier: GPL-3.0-or-later
"""The menu, the icon and its title, from what the daemon shows: pure functions.

A panel opens a row that has rows of its own instead of clicking it. So a device's row attaches and
detaches, and what else there is about the device is below the remote's "More".
"""

from __future__ import annotations

import time
from dataclasses import replace

from usbipssh_tray.actions import (
    Action,
    AddRemote,
    AttachAll,
    Detach,
    Quit,
    Refresh,
    Retry,
    StartDaemon,
    TrustKey,
)
from usbipssh_tray.details import attach, device_rows, label
from usbipssh_tray.entries import Entry, Listing, Ui, entries
from usbipssh_tray.rows import Row, sentence, separator
from usbipssh_tray.status import Status
from usbipssh_tray.text import _, ngettext
from usbipsshd.client.snapshot import Attachment, Hub, Remote, Snapshot

INLINE_ROWS = 30
"""Devices and machines that are shown in one menu; beyond, each machine has a menu of its own."""
PAGE = 25
"""Devices in one menu of a machine; beyond, they come in several."""


def clock(microseconds: int) -> str:
    """A time of the day, such as 14:32, of microseconds since the epoch."""
    return time.strftime("%H:%M", time.localtime(microseconds / 1e6))


def menu(snapshot: Snapshot, ui: Ui) -> tuple[Row, ...]:
    """The whole menu."""
    if not snapshot.present:
        return (*_absent(ui), separator("end"), Row("quit", _("Quit"), Quit()))
    if not snapshot.manager.version:
        # It is there, and has not said yet what it has.
        return (Row("absent 0", _("Looking…")), separator("end"), Row("quit", _("Quit"), Quit()))
    listed = [remote.name for remote in snapshot.remotes]
    others = {a.remote for a in snapshot.attachments} | {h.remote for h in snapshot.hubs}
    unlisted = [Remote("", name, state="") for name in sorted(others) if name not in listed]
    remotes = [*snapshot.remotes, *unlisted]
    found = {remote.name: entries(remote.name, snapshot, ui) for remote in remotes}
    inline = len(remotes) + sum(map(len, found.values())) <= INLINE_ROWS
    rows: list[Row] = [*_troubles(snapshot, ui)]
    for remote in remotes:
        section = _section(remote, found[remote.name], snapshot, ui)
        if inline:
            rows += section
            rows.append(separator(f"end of {remote.name}"))
        else:
            rows.append(_folded(remote, section, found[remote.name]))
    if not remotes:
        rows += sentence("none", _("No machine is listed yet."))
    if not inline:
        rows.append(separator("remotes"))
    rows += [
        Row("refresh", _("Look again"), Refresh()),
        Row("add", _("Add a machine…"), AddRemote()),
        separator("end"),
        Row("quit", _("Quit"), Quit()),
    ]
    return tuple(rows)


def status(snapshot: Snapshot, ui: Ui) -> Status:
    """What the icon shows."""
    if not snapshot.present or ui.no_agent or not snapshot.manager.vhci_available:
        return Status.TROUBLE
    if _waiting(snapshot):
        return Status.TROUBLE
    if any(one.state == "attached" for one in snapshot.attachments):
        return Status.ATTACHED
    return Status.IDLE


def title(snapshot: Snapshot, ui: Ui) -> str:
    """The same in words."""
    if not snapshot.present:
        return _("USB over ssh: usbipsshd is not running")
    parts = []
    attached = [one for one in snapshot.attachments if one.state == "attached"]
    if len(attached) == 1:
        parts.append(_("{name} is attached").format(name=attached[0].name))
    elif attached:
        text = ngettext("{n} device is attached", "{n} devices are attached", len(attached))
        parts.append(text.format(n=len(attached)))
    else:
        parts.append(_("nothing is attached"))
    waiting = _waiting(snapshot)
    if waiting:
        parts.append(_("waiting for {name}").format(name=", ".join(waiting)))
    if ui.no_agent:
        parts.append(_("nobody can be asked for a password"))
    if not snapshot.manager.vhci_available:
        parts.append(_("the kernel module vhci-hcd is missing"))
    return _("USB over ssh: {what}").format(what="; ".join(parts))


def _waiting(snapshot: Snapshot) -> list[str]:
    names = [one.name or one.pattern for one in snapshot.attachments if one.state == "waiting"]
    return names + [hub.remote for hub in snapshot.hubs if hub.state == "waiting"]


def _absent(ui: Ui) -> list[Row]:
    if ui.no_bus:
        return sentence("absent", _("There is no system bus, so usbipsshd cannot be reached."))
    rows = sentence("absent", _("The service usbipsshd is not running."))
    if ui.started:
        rows += sentence("why", ui.started)
        rows += sentence("log", _("Its log says more: journalctl -u usbipsshd"))
    return [*rows, Row("start", _("Start it"), StartDaemon())]


def _troubles(snapshot: Snapshot, ui: Ui) -> list[Row]:
    rows = []
    if ui.no_agent:
        words = _(
            "Nobody can be asked for a password: no polkit agent runs in this session. Start one, "
            "such as lxpolkit or mate-polkit."
        )
        rows += [*sentence("agent", words), separator("agent end")]
    if not snapshot.manager.vhci_available:
        words = _(
            "This machine cannot attach anything: its kernel module vhci-hcd is not loaded. "
            "Try: sudo modprobe vhci-hcd"
        )
        rows += [*sentence("vhci", words), separator("vhci end")]
    return rows


def _by_own_key(remote: Remote, listing: Listing) -> bool:
    """Whether it was listed with this person's ssh-agent, the daemon's key being refused there."""
    reached = listing.known and not listing.error[0]
    return remote.state == "unreachable" and remote.refuses_key and reached


def _heading(remote: Remote, listing: Listing) -> str:  # noqa: PLR0911
    name = remote.label or remote.name
    match remote.state:
        case _ if _by_own_key(remote, listing):
            return _("{name}: with your own ssh key").format(name=name)
        case "connecting":
            return _("{name}: connecting…").format(name=name)
        case "unreachable" if remote.offered_host_key:
            return _("{name}: its key is not trusted yet").format(name=name)
        case "unreachable":
            return _("{name}: unreachable").format(name=name)
        case "connected":
            return _("{name}: connected").format(name=name)
        case "idle":
            return _("{name}: not connected").format(name=name)
        case _:
            return _("{name}: not listed").format(name=name)


def _folded(remote: Remote, section: list[Row], found: tuple[Entry, ...]) -> Row:
    """A remote as one row that opens."""
    attached = sum(e.attachment is not None and e.attachment.state == "attached" for e in found)
    text = section[0].label
    if attached:
        what = ngettext("{n} attached", "{n} attached", attached).format(n=attached)
        text = _("{name}, {what}").format(name=text, what=what)
    rest = section[1:] or [Row("none", _("No devices"))]
    return Row(f"remote {remote.name}", text, rows=tuple(rest))


def _section(remote: Remote, found: tuple[Entry, ...], snapshot: Snapshot, ui: Ui) -> list[Row]:
    """The remote's heading, and all that belongs to it."""
    name = remote.name
    listing = ui.listings.get(name, Listing())
    devices = [_device(entry, ui) for entry in found]
    if len(devices) > PAGE:
        devices = _pages(devices)
    rows = [
        Row(f"heading {name}", _heading(remote, listing)),
        *(_unique(row, name) for row in devices),
    ]
    rows += _problems(remote, listing)
    if not found and not listing.error[0]:
        words = _("No devices") if listing.known and not listing.looking else _("Looking…")
        if listing.known or listing.looking:
            rows.append(Row(f"none {name}", words))
    return [*rows, _more(remote, found, snapshot, ui)]


def _unique(row: Row, name: str) -> Row:
    # Sections follow each other in one menu.
    return replace(row, key=f"{name} {row.key}")


def _pages(devices: list[Row]) -> list[Row]:
    rows = []
    for start in range(0, len(devices), PAGE):
        part = devices[start : start + PAGE]
        text = _("Devices {first} to {last}").format(first=start + 1, last=start + len(part))
        if any(row.checked for row in part):
            text = _("{devices} (some are attached)").format(devices=text)
        rows.append(Row(f"page {start}", text, rows=tuple(part)))
    return rows


def _device(entry: Entry, ui: Ui) -> Row:
    attachment = entry.attachment
    text, checked = label(entry), False
    action: Action | None
    if attachment is None:
        action = attach(entry)
        if entry.busy:
            text = _("{device}, connecting…").format(device=text)
        elif entry.device is not None and entry.device.state == "exported":
            text = _("{device}, exported already").format(device=text)
    else:
        action = Detach(attachment.path, entry.name)
        checked = attachment.state == "attached"
        text = _state(text, attachment)
        if attachment.state == "detaching":
            action = None
        elif attachment.owner_uid != ui.uid:
            text = _("{device}, by another user").format(device=text)
    return Row(entry.key, text, action, checked)


def _state(text: str, one: Attachment) -> str:
    match one.state:
        case "connecting":
            return _("{device}, connecting…").format(device=text)
        case "waiting" if one.retry_at:
            words = _("{device}, waiting, next try at {time}")
            return words.format(device=text, time=clock(one.retry_at))
        case "waiting":
            return _("{device}, waiting for it").format(device=text)
        case "detaching":
            return _("{device}, detaching…").format(device=text)
        case _:
            return text


def _problems(remote: Remote, listing: Listing) -> list[Row]:
    name = remote.name
    again = Row(f"again {name}", _("Try again"), Refresh(name))
    if remote.offered_host_key:
        ask = TrustKey(name, remote.offered_host_key)
        return [Row(f"trust {name}", _("Look at its key…"), ask)]
    if _by_own_key(remote, listing):
        return []
    error, words = listing.error
    if remote.state == "unreachable" and remote.last_error[1]:
        # Where an ssh-agent did not help either, the answer to this person says that, too.
        both = remote.refuses_key and error == remote.last_error[0]
        return [*sentence(f"error {name}", words if both else remote.last_error[1]), again]
    if error.endswith(".InteractiveAuthorizationRequired"):
        return [Row(f"again {name}", _("Show its devices…"), Refresh(name))]
    if words:
        return [*sentence(f"error {name}", words), again]
    return []


def _more(remote: Remote, found: tuple[Entry, ...], snapshot: Snapshot, ui: Ui) -> Row:
    hubs = [hub for hub in snapshot.hubs if hub.remote == remote.name]
    rows = [Row(f"about {e.key}", label(e), rows=_about(e, ui)) for e in found]
    if len(rows) > PAGE:
        rows = _pages(rows)
    if rows:
        rows.append(separator("devices"))
    everything = next((hub for hub in hubs if not hub.pattern), None)
    rows += [_everything(remote, everything)]
    rows += [_hub(hub) for hub in hubs if hub is not everything]
    for one in (*hubs, *(e.attachment for e in found)):
        if one is not None and one.state == "waiting":
            what = one.name if isinstance(one, Attachment) else one.pattern or _("everything")
            text = _("Try now: {name}").format(name=what)
            rows.append(Row(f"retry {one.path}", text, Retry(one.path)))
    rows.append(Row("refresh", _("Look again"), Refresh(remote.name)))
    return Row(f"more {remote.name}", _("More"), rows=tuple(rows))


def _about(entry: Entry, ui: Ui) -> tuple[Row, ...]:
    path = entry.attachment.path if entry.attachment is not None else ""
    return device_rows(entry, ui.uid, ui.statistics.get(path))


def _everything(remote: Remote, hub: Hub | None) -> Row:
    text = _("Attach everything there, now and later")
    if hub is None:
        return Row("everything", text, AttachAll(remote.name), False)
    return Row("everything", _hub_state(text, hub), Detach(hub.path, remote.name), True)


def _hub(hub: Hub) -> Row:
    text = _("Everything that matches {pattern}").format(pattern=hub.pattern)
    return Row(f"hub {hub.path}", _hub_state(text, hub), Detach(hub.path, hub.pattern), True)


def _hub_state(text: str, hub: Hub) -> str:
    if hub.state == "waiting" and hub.retry_at:
        words = _("{device}, waiting, next try at {time}")
        return words.format(device=text, time=clock(hub.retry_at))
    return text
