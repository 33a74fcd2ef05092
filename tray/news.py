# SPDX-License-Identifier: GPL-3.0-or-later
"""What is worth telling a person about what the daemon publishes: a pure function.

:func:`tell` compares a snapshot with what was told before. Each thing that happens is told once:
attached, lost and waiting, back again, detached. What a hub does with all of its devices at once
is one thing. Clocks, the bus and the server are elsewhere (:mod:`usbipssh_tray.notices`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from enum import StrEnum

from usbipssh_tray.text import _
from usbipsshd.client.snapshot import Attachment, Hub, Snapshot


class Kind(StrEnum):
    """What happened."""

    ATTACHED = "attached"
    DETACHED = "detached"
    LOST = "lost"
    BACK = "back"
    REFUSED = "refused"
    PLAIN = "plain"


@dataclass(frozen=True, slots=True)
class Notice:
    """One thing to tell; texts are plain, without markup."""

    kind: Kind
    summary: str
    body: str = ""
    path: str = ""
    """Whose it is: a later notice about the same object takes its place. Empty for nobody's."""
    name: str = ""
    can_detach: bool = False
    can_retry: bool = False


@dataclass(frozen=True, slots=True)
class Memory:
    """What has been seen and told so far."""

    started: bool = False
    """Whether a first snapshot has been seen, about which nothing is told."""
    since: int = 0
    """When that was, in microseconds since the epoch."""
    up: dict[str, Attachment] = field(default_factory=dict)
    """Attachments that were attached when last looked at, as they were then."""
    lost: dict[str, Attachment] = field(default_factory=dict)
    """Those that were attached once and wait for their device since, as they were when attached."""
    hubs: dict[str, Hub] = field(default_factory=dict)
    lost_hubs: frozenset[str] = frozenset()


def tell(
    memory: Memory, snapshot: Snapshot, clicked_off: Set[str], uid: int, now: int
) -> tuple[Memory, list[Notice]]:
    """What to tell about ``snapshot``, and what to remember.

    ``clicked_off`` are paths of attachments and hubs that this person has just detached. ``uid``
    is theirs: only what is their own gets buttons, since the rest asks for a password. ``now`` is
    in microseconds since the epoch. A daemon that is gone, or about which nothing is known yet,
    is forgotten and nothing is told.
    """
    if not snapshot.present or not snapshot.manager.version:
        return Memory(), []
    hubs = {hub.path: hub for hub in snapshot.hubs}
    there = {one.path: one for one in snapshot.attachments}
    up = {path: one for path, one in there.items() if one.state in ("attached", "detaching")}
    if not memory.started:
        lost = {path: one for path, one in there.items() if one.state == "waiting"}
        waiting = frozenset(path for path, hub in hubs.items() if hub.state == "waiting")
        return Memory(True, now, up, lost, hubs, waiting), []
    before = {**memory.lost, **memory.up}
    lost = {path: before[path] for path in there if path in before and path not in up}
    after = Memory(True, memory.since, up, lost, hubs, _lost_hubs(memory, hubs))
    words = _Words({r.name: r.label for r in snapshot.remotes}, uid)
    told = [
        *_of_hubs(memory, after, clicked_off, words),
        *_of_what_came(memory, after, words),
        *_of_what_went(memory, after, there, clicked_off, words),
    ]
    return after, told


def _of_hubs(
    before: Memory, after: Memory, clicked_off: Set[str], words: _Words
) -> Iterator[Notice]:
    for path, hub in after.hubs.items():
        if path in after.lost_hubs and path not in before.lost_hubs:
            yield words.hub_lost(hub)
        elif path in before.lost_hubs and hub.state == "attached":
            yield words.hub_back(hub)
    for path, hub in before.hubs.items():
        if path not in after.hubs and path not in clicked_off and hub.state != "connecting":
            yield words.hub_detached(hub)


def _of_what_came(before: Memory, after: Memory, words: _Words) -> Iterator[Notice]:
    for path, one in after.up.items():
        if path in before.up or one.state != "attached":
            continue
        if path in before.lost:
            yield words.back(one)
        elif one.attached_at == 0 or one.attached_at >= before.since:
            yield words.attached(one)


def _of_what_went(
    before: Memory,
    after: Memory,
    there: Mapping[str, Attachment],
    clicked_off: Set[str],
    words: _Words,
) -> Iterator[Notice]:
    for path, one in {**before.lost, **before.up}.items():
        with_its_hub = one.hub in after.lost_hubs or (
            one.hub in before.hubs and one.hub not in after.hubs
        )
        if path in after.up or with_its_hub:
            continue
        if path in after.lost:
            if path in before.up:
                yield words.lost(one, there[path])
        elif path not in clicked_off and one.hub not in clicked_off:
            yield words.detached(one)


def _lost_hubs(memory: Memory, hubs: dict[str, Hub]) -> frozenset[str]:
    """Hubs that had their remote and wait for it; one that tries again still waits."""
    had = memory.lost_hubs | {p for p, hub in memory.hubs.items() if hub.state == "attached"}
    return frozenset(
        path for path, hub in hubs.items() if path in had and hub.state in ("waiting", "connecting")
    )


def name_of(one: Attachment) -> str:
    """The device's name, or its ids where it has none."""
    return one.name or f"{one.vendor_id:04x}:{one.product_id:04x}"


@dataclass(frozen=True, slots=True)
class _Words:
    """The notices' texts."""

    labels: Mapping[str, str]
    """What people call the remotes."""
    uid: int

    def _label(self, remote: str) -> str:
        return self.labels.get(remote) or remote

    def _mine(self, one: Attachment) -> bool:
        """Whether it gets buttons: what belongs to a hub is detached with the hub."""
        return one.owner_uid == self.uid and one.hub in ("", "/")

    def attached(self, one: Attachment) -> Notice:
        remote = self._label(one.remote)
        body = _("From {remote}.").format(remote=remote)
        if one.device_nodes:
            nodes = ", ".join(one.device_nodes)
            body = _("From {remote}: {nodes}").format(remote=remote, nodes=nodes)
        name = name_of(one)
        summary = _("{name} is attached").format(name=name)
        if one.exported:
            body = ", ".join(one.device_nodes)
            summary = _("{name} is on {remote} now").format(name=name, remote=remote)
        return Notice(Kind.ATTACHED, summary, body, one.path, name, can_detach=self._mine(one))

    def back(self, one: Attachment) -> Notice:
        told = self.attached(one)
        summary = _("{name} is back").format(name=told.name)
        return replace(told, kind=Kind.BACK, summary=summary)

    def lost(self, before: Attachment, now: Attachment) -> Notice:
        name, mine = name_of(before), self._mine(before)
        summary = _("{name} is lost").format(name=name)
        waits = _("It is attached again when {remote} has it.")
        if before.exported:
            waits = _("It goes to {remote} again when it is plugged in here.")
        body = f"{now.last_error[1]} {waits.format(remote=self._label(before.remote))}".lstrip()
        return Notice(Kind.LOST, summary, body, now.path, name, mine, mine)

    def detached(self, before: Attachment) -> Notice:
        name, remote = name_of(before), self._label(before.remote)
        summary = _("{name} is detached").format(name=name)
        was = _("It was on {remote}.") if before.exported else _("It was from {remote}.")
        body = before.last_error[1] or was.format(remote=remote)
        return Notice(Kind.DETACHED, summary, body, before.path, name)

    def hub_lost(self, hub: Hub) -> Notice:
        name, mine = self._label(hub.remote), hub.owner_uid == self.uid
        summary = _("{remote} is lost").format(remote=name)
        waits = _("Its devices are attached again when it is back.")
        body = f"{hub.last_error[1]} {waits}".lstrip()
        return Notice(Kind.LOST, summary, body, hub.path, name, mine, mine)

    def hub_back(self, hub: Hub) -> Notice:
        name = self._label(hub.remote)
        summary = _("{remote} is back").format(remote=name)
        body = _("Its devices are being attached.")
        mine = hub.owner_uid == self.uid
        return Notice(Kind.BACK, summary, body, hub.path, name, can_detach=mine)

    def hub_detached(self, hub: Hub) -> Notice:
        name = self._label(hub.remote)
        summary = _("All of {remote} is detached").format(remote=name)
        return Notice(Kind.DETACHED, summary, hub.last_error[1], hub.path, name)
