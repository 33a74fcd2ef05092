# SPDX-License-Identifier: GPL-3.0-or-later
"""What happened between two snapshots, a line for people and an object for programs each."""

from __future__ import annotations

from dataclasses import dataclass

from usbipsshd.client.snapshot import NOTHING, Attachment, Hub, Remote, Snapshot


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened. ``kind`` and the fields are stable; the text is for people."""

    kind: str
    """daemon-gone, daemon-there, remote-state, plugged, attachment-state, attachment-gone,
    hub-state or hub-gone."""
    text: str
    remote: str = ""
    busid: str = ""
    path: str = ""
    state: str = ""
    error: str = ""
    direction: str = ""
    """``export`` for an attachment of a device of this machine, whose bus id is the one here."""


def events(before: Snapshot, now: Snapshot) -> list[Event]:
    """What is different now."""
    found: list[Event] = []
    if before.present != now.present:
        there = now.present
        kind = "daemon-there" if there else "daemon-gone"
        found.append(Event(kind, f"usbipsshd {'is there' if there else 'is gone'}"))
    if not now.present:
        return found
    remotes = {r.path: r for r in before.remotes}
    for remote in now.remotes:
        old = remotes.get(remote.path)
        if old is None or (old.state, old.last_error) != (remote.state, remote.last_error):
            found.append(_remote(remote))
    attachments = {a.path: a for a in before.attachments}
    for one in now.attachments:
        known = attachments.pop(one.path, None)
        if known is None or (known.state, known.device_nodes) != (one.state, one.device_nodes):
            found.append(_attachment(one))
    found += [
        Event(
            "attachment-gone",
            f"{_name(a)} is detached",
            a.remote,
            _busid(a),
            a.path,
            direction=_direction(a),
        )
        for a in attachments.values()
    ]
    hubs = {h.path: h for h in before.hubs}
    for hub in now.hubs:
        was = hubs.pop(hub.path, None)
        if was is None or was.state != hub.state:
            found.append(_hub(hub))
    found += [
        Event("hub-gone", f"the hub of {h.remote} is detached", h.remote, path=h.path)
        for h in hubs.values()
    ]
    return found


def plugged(remote: str) -> Event:
    """Something was plugged in or out there."""
    return Event("plugged", f"something was plugged in or out at {remote}", remote)


def _name(one: Attachment) -> str:
    name = f" ({one.name})" if one.name else ""
    where = "this machine" if one.exported else one.remote
    return f"{_busid(one)} of {where}{name}"


def _busid(one: Attachment) -> str:
    return one.local_bus_id if one.exported else one.remote_bus_id


def _direction(one: Attachment) -> str:
    return one.direction if one.exported else ""


def _remote(remote: Remote) -> Event:
    why = "" if remote.last_error == NOTHING else f": {remote.last_error[1]}"
    return Event(
        "remote-state",
        f"{remote.name} is {remote.state}{why}",
        remote.name,
        path=remote.path,
        state=remote.state,
        error=remote.last_error[0],
    )


def _attachment(one: Attachment) -> Event:
    more = ""
    if one.state == "attached":
        where = f"{one.remote_bus_id} at {one.remote}" if one.exported else one.local_bus_id
        more = f" as {where} {' '.join(one.device_nodes)}".rstrip()
    elif one.last_error != NOTHING:
        more = f": {one.last_error[1]}"
    return Event(
        "attachment-state",
        f"{_name(one)} is {one.state}{more}",
        one.remote,
        _busid(one),
        one.path,
        one.state,
        one.last_error[0],
        _direction(one),
    )


def _hub(hub: Hub) -> Event:
    why = "" if hub.last_error == NOTHING else f": {hub.last_error[1]}"
    return Event(
        "hub-state",
        f"the hub of {hub.remote} is {hub.state}{why}",
        hub.remote,
        path=hub.path,
        state=hub.state,
        error=hub.last_error[0],
    )
