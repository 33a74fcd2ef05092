# SPDX-License-Identifier: GPL-3.0-or-later
"""SECURITY.md says how much there may be of what; that is what the code has."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from usbipsshd import (
    attachments,
    authority,
    device,
    hubs,
    links,
    matcher,
    messages,
    pattern,
    remotes,
    signer,
)
from usbipsshd.bus import asking, manager, serving
from usbipsshd.errors import UsbipError
from usbipsshd.session import replies

CHECKOUT = Path(__file__).resolve().parents[2]
_LIMITS = serving.Limits()
_ROOT = "(root: no limit of its own)"


def _kib(size: int) -> str:
    return f"{size >> 10} KiB"


def _mib(size: int) -> str:
    return f"{size >> 20} MiB"


def _unit(name: str) -> str:
    text = (CHECKOUT / "dbus/usbipssh-session@.service").read_text()
    (value,) = re.findall(rf"^{name}=(\S+)$", text, re.MULTILINE)
    return str(value)


def _label(folder: Path) -> int:
    """The longest label that a remote may have."""
    store = remotes.RemoteStore(folder, folder, ())
    for length in (64, 127, 128, 129, 256):
        with suppress(UsbipError):
            store.add(f"r{length}", {"label": "x" * length})
    return max(len(remote.label) for remote in store)


def test_the_table(tmp_path: Path) -> None:
    memory = _unit("MemoryMax").removesuffix("M")
    expected = {
        "calls in flight": (
            f"{_LIMITS.calls_per_name} a bus connection, {_LIMITS.calls_per_uid} a user {_ROOT}, "
            f"{_LIMITS.calls:,} in all; {_LIMITS.strangers} of connections"
        ),
        "arguments of a call": (
            f"{_kib(_LIMITS.body)}; text {manager.MAX_TEXT} characters, a pattern "
            f"{pattern.MAX_PATTERN}, a label {_label(tmp_path)}"
        ),
        "an answer": _mib(serving._MAX_REPLY),
        "questions of polkit that are open": (
            f"{authority.MAX_QUESTIONS_PER_UID} a user, {authority.MAX_QUESTIONS} in all"
        ),
        "refusals in the log": f"{asking.MAX_REFUSALS} lines a user and minute",
        "attachments": (
            f"{attachments.MAX_PER_UID} a user {_ROOT}, {attachments.MAX_ATTACHMENTS} in all"
        ),
        "hubs": f"{hubs.MAX_PER_UID} a user {_ROOT}, {hubs.MAX_HUBS} in all",
        "remotes": (
            f"{remotes.MAX_REMOTES} listed; {links.MAX_CONNECTIONS} connections at a time, "
            f"{links.MAX_UNLISTED} of these to remotes that are not listed, {links.MAX_PRIVATE} "
            f"with callers' own ssh-agents ({links.MAX_PRIVATE_PER_UID} a user"
        ),
        "a session": (
            f"{memory} MiB of memory, {_unit('TasksMax')} tasks, "
            f"{int(_unit('LimitNOFILE')):,} descriptors"
        ),
        "patterns being matched": (
            f"{matcher.MAX_CHILDREN} at a time, each {matcher.MATCH_SECONDS:g} s of the "
            f"processor and {_mib(matcher.CHILD_BYTES)}"
        ),
        "a listing": (
            f"{messages.MAX_DEVICES:,} devices, {device.MAX_INTERFACES} interfaces a device, "
            f"{device.MAX_NODES} nodes an interface; {_mib(replies.MAX_REPLY)} of the remote's"
        ),
        "a packet of a session": f"{_kib(messages.MAX_PACKET)}, {messages.MAX_FDS} descriptors",
        "signatures": f"{signer.MAX_SIGNATURES} a connection",
    }
    text = (CHECKOUT / "SECURITY.md").read_text()
    table = text.partition("## How much of what")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| (.+?) \| (.+) \|$", table, re.MULTILINE))
    del rows["what"]
    assert rows.keys() == expected.keys()
    assert {what: rows[what][: len(words)] for what, words in expected.items()} == expected
    assert asking.REFUSAL_SECONDS == 60
    assert f"once {_mib(_LIMITS.unsent)} is waiting" in table
    assert f"dead at {_mib(_LIMITS.unsent_top)}." in table
