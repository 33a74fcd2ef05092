# SPDX-License-Identifier: GPL-3.0-or-later
"""What a shell may complete: the shells' own files ask ``usbipsshctl complete -- WORD...``.

The command line's own parser says which word may follow; remotes, devices and attachments come
from the daemon. Nobody is asked for a password, and what fails or takes long completes nothing.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from usbipsshd.client.daemon import Client
from usbipsshd.client.errors import ClientError
from usbipsshd.ctl.arguments import parser

COMPLETE_SECONDS = 5.0
HERE = "."


@dataclass(frozen=True, slots=True)
class Wanted:
    """What may stand where the cursor is."""

    words: Mapping[str, str]
    """Fixed words, with what they mean."""
    kind: str = ""
    """Besides, from the daemon: remote, name, pattern, local_pattern or target."""
    remote: str = ""
    """Whose devices ``pattern`` means."""


def wanted(words: Sequence[str]) -> Wanted:
    """What may stand in place of the last of ``words``, which follow the program's name."""
    *before, last = words or [""]
    here, given = parser(), []
    for word in before:
        commands = _commands(here)
        if word.startswith("-"):
            continue
        if commands is None:
            given.append(word)
        elif word in commands.choices:
            here = commands.choices[word]
        else:
            return Wanted({})
    commands = _commands(here)
    if before and before[-1] == "--expect":
        return Wanted({})
    if last.startswith("-"):
        return Wanted(_options(here))
    if commands is not None:
        return Wanted({a.dest: a.help or "" for a in commands._get_subactions()})
    return _place(here, given)


def _place(here: argparse.ArgumentParser, given: Sequence[str]) -> Wanted:
    places = [a for a in here._actions if not a.option_strings]
    last = places[-1] if places else None
    if len(given) < len(places):
        return Wanted({}, places[len(given)].dest, given[0] if given else "")
    if last is not None and last.nargs == "+":
        return Wanted({}, last.dest)
    return Wanted({})


def _commands(
    one: argparse.ArgumentParser,
) -> argparse._SubParsersAction[argparse.ArgumentParser] | None:
    for action in one._actions:
        if isinstance(action, argparse._SubParsersAction):
            return action
    return None


def _options(one: argparse.ArgumentParser) -> dict[str, str]:
    return {
        name: action.help or ""
        for action in one._actions
        for name in action.option_strings
        if name.startswith("--")
    }


async def candidates(client: Client, words: Sequence[str]) -> list[str]:
    """The candidates, each a word, a tab and what it means."""
    want = wanted(words)
    found = dict(want.words)
    if want.kind:
        try:
            async with asyncio.timeout(COMPLETE_SECONDS):
                await client.connect()
                found = await _of_the_daemon(client, want)
        except (ClientError, TimeoutError):
            found = {}
        finally:
            await client.close()
    start = words[-1] if words else ""
    return [f"{word}\t{text}" for word, text in found.items() if word.startswith(start)]


async def _of_the_daemon(client: Client, want: Wanted) -> dict[str, str]:
    await client.start()
    known = client.snapshot
    match want.kind:
        case "remote" | "name":
            found = {r.name: r.label or r.state for r in known.remotes}
            return found if want.kind == "name" else {**found, HERE: "this machine"}
        case "pattern":
            if want.remote == HERE:
                devices = await client.list_local()
            else:
                devices = await client.list_remote(want.remote)
            return {d.busid: d.title for d in devices if not d.hub}
        case "local_pattern":
            return {d.busid: d.title for d in await client.list_local() if not d.hub}
        case "target":
            found = {
                a.local_bus_id if a.exported else f"{a.remote}/{a.remote_bus_id}": a.name
                for a in known.attachments
            }
            found |= {h.path: f"hub of {h.remote}" for h in known.hubs}
            return {**found, "all": "everything that you may detach"}
        case _:
            return {}
