# SPDX-License-Identifier: GPL-3.0-or-later
"""Plain tables, columns as wide as what is in them: ``status`` and ``remote list``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from usbipsshd.client.snapshot import NOTHING, Attachment, Hub, Remote, Snapshot
from usbipsshd.ctl.colour import PLAIN, Paint

Clock = Callable[[int], str]
"""A time of day for microseconds since the epoch."""


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], paint: Paint = PLAIN) -> list[str]:
    """Lines with a head; nothing at all without rows. What is below STATE has its colour."""
    if not rows:
        return []
    every = [list(heads), *map(list, rows)]
    widths = [max(len(row[n]) for row in every) for n in range(len(heads))]
    padded = [[word.ljust(width) for word, width in zip(row, widths, strict=True)] for row in every]
    state = heads.index("STATE") if "STATE" in heads else -1
    lines = [paint.strong("  ".join(padded[0]).rstrip())]
    for row in padded[1:]:
        painted = [paint.state(word) if n == state else word for n, word in enumerate(row)]
        lines.append("  ".join(painted).rstrip())
    return lines


def remotes(found: Sequence[Remote], paint: Paint = PLAIN) -> list[str]:
    """The listed remotes, and what is wrong with them."""
    rows = [(r.name, r.state, r.label or "-", _error(r.last_error)) for r in found]
    return table(("REMOTE", "STATE", "LABEL", "LAST ERROR"), rows, paint)


def findings(found: Sequence[Mapping[str, str]], paint: Paint = PLAIN) -> list[str]:
    """What the doctor found, the remedy below what needs one."""
    marks = {"ok": paint.good("ok     "), "warning": paint.warning("warning")}
    lines = []
    for one in found:
        lines.append(
            f"{marks.get(one.get('ok', ''), paint.bad('PROBLEM'))}  {one.get('summary', '')}"
        )
        if one.get("remedy"):
            lines.append(f"         {one['remedy']}")
    return lines


def status(snapshot: Snapshot, clock: Clock, paint: Paint = PLAIN) -> list[str]:
    """Hubs and attachments, what they are and where."""
    lines = table(
        ("HUB", "PATTERN", "STATE", "DEVICES", "LAST ERROR"),
        [_hub(hub, clock) for hub in snapshot.hubs],
        paint,
    )
    imported = table(
        ("REMOTE", "DEVICE", "NAME", "STATE", "HERE", "NODES"),
        [_attachment(one, clock) for one in snapshot.attachments if not one.exported],
        paint,
    )
    exported = table(
        ("EXPORTED", "TO", "NAME", "STATE", "THERE", "NODES THERE"),
        [_export(one, clock) for one in snapshot.attachments if one.exported],
        paint,
    )
    for more in (imported, exported):
        if lines and more:
            lines.append("")
        lines += more
    failing = [one for one in snapshot.attachments if one.last_error != NOTHING]
    lines += [f"{_place(one)}: {one.last_error[1]}" for one in failing]
    return lines or ["Nothing is attached."]


def _hub(hub: Hub, clock: Clock) -> tuple[str, ...]:
    pattern = hub.pattern or "everything"
    state = state_words(hub, clock)
    return (hub.remote, pattern, state, str(len(hub.attachments)), _error(hub.last_error))


def _place(one: Attachment) -> str:
    if one.exported:
        return f"{one.local_bus_id} to {one.remote}"
    return f"{one.remote}/{one.remote_bus_id}"


def _attachment(one: Attachment, clock: Clock) -> tuple[str, ...]:
    where = one.local_bus_id or "-"
    return (one.remote, one.remote_bus_id, one.name, _lasting(one, clock), where, _nodes(one))


def _export(one: Attachment, clock: Clock) -> tuple[str, ...]:
    where = one.remote_bus_id or "-"
    return (one.local_bus_id, one.remote, one.name, _lasting(one, clock), where, _nodes(one))


def _nodes(one: Attachment) -> str:
    return " ".join(one.device_nodes) or "-"


def _lasting(one: Attachment, clock: Clock) -> str:
    words = state_words(one, clock)
    if one.persist or one.keep:
        words += ", persists" if one.persist else ", kept"
    return words


def state_words(one: Attachment | Hub, clock: Clock) -> str:
    """The state, and when the next try is."""
    if one.state == "waiting" and one.retry_at:
        return f"waiting, next try {clock(one.retry_at)}"
    return one.state


def _error(error: tuple[str, str]) -> str:
    return "-" if error == NOTHING else error[1]
