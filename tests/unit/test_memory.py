# SPDX-License-Identifier: GPL-3.0-or-later
"""What is written down of attachments and hubs is read again, and nothing that makes no sense."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from unit.made import KEYBOARD, STICK, run, settle

from usbipsshd.attachment import Attachment, Direction, State
from usbipsshd.attachments import Running
from usbipsshd.doing import Lent
from usbipsshd.hub import Hub
from usbipsshd.importer import Imported
from usbipsshd.memory import Memory
from usbipsshd.messages import BadPacket, decode, encode
from usbipsshd.records import (
    attachment_from_json,
    attachment_to_json,
    hub_from_json,
    hub_to_json,
    where_from_json,
    where_to_json,
)
from usbipsshd.statefile import load, save, write_whole

ATTACHMENT = Attachment(
    7,
    "pi",
    "46f4:0001",
    STICK,
    1000,
    rebind=False,
    unmount=False,
    keep=True,
    persist=True,
    hub=3,
    private=7,
    bound_to=":1.7",
    input_allowed=True,
    approved=KEYBOARD,
    attached_at=1_700_000_000_000_000,
    last_error=("org.usbipssh1.Error.DeviceFailed", "It went away."),
)
HUB = Hub(
    4, "pi", "03", 1000, persist=True, unmount=False, rebind=False, private=5, aside=[("1-1", 9)]
)


def test_an_attachment_is_read_as_it_was_and_waits() -> None:
    read = attachment_from_json(decode(encode(attachment_to_json(ATTACHMENT))))
    assert read == replace(ATTACHMENT, state=State.WAITING)


def test_one_of_a_version_before_is_read() -> None:
    record = attachment_to_json(replace(ATTACHMENT, approved=None))
    del record["approved"]
    del record["direction"]
    read = attachment_from_json(decode(encode(record)))
    assert read.approved is None
    assert read.direction is Direction.IMPORT


def test_an_export_is_read_as_one_and_knows_where_its_device_is() -> None:
    export = replace(ATTACHMENT, direction=Direction.EXPORT)
    read = attachment_from_json(decode(encode(attachment_to_json(export))))
    assert read.direction is Direction.EXPORT
    assert (read.local_busid, read.remote_busid) == (STICK.busid, "")


def test_a_hub_and_a_port_are_read_as_they_were() -> None:
    assert hub_from_json(decode(encode(hub_to_json(HUB)))) == HUB
    for where in (Imported(17, 0x00020003, "4-1"), Lent("1-2", "5-1", 3, ("/dev/sda",))):
        assert where_from_json(decode(encode(where_to_json(where)))) == where


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("number", 0),
        ("number", -1),
        ("number", 10**12),
        ("number", "1"),
        ("remote", 5),
        ("remote", "pi\n"),
        ("remote", "x" * 1000),
        ("pattern", None),
        ("device", {}),
        ("device", []),
        ("owner_uid", True),
        ("owner_uid", 2**32),
        ("keep", 1),
        ("hub", None),
        ("bound_to", "\x1b[0m"),
        ("attached_at", 2**64),
        ("last_error", ["one"]),
        ("approved", 7),
        ("direction", "sideways"),
        ("direction", None),
    ],
)
def test_a_record_that_makes_no_sense_is_refused(name: str, value: Any) -> None:
    record = attachment_to_json(ATTACHMENT)
    record[name] = value
    with pytest.raises(BadPacket):
        attachment_from_json(record)


class Table:
    """Stands for the attachments, or the hubs."""

    def __init__(self, *things: Any) -> None:
        self.things = list(things)
        self.imported: list[Running] = []

    def __iter__(self) -> Iterator[Any]:
        return iter(list(self.things))

    def listen(self, listener: object) -> None:
        pass

    def running(self) -> list[Running]:
        return self.imported


class Machine:
    """The two folders, and daemons one after the other."""

    def __init__(self, root: Path) -> None:
        self.run, self.state = root / "run", root / "state"
        self.attachments, self.hubs = Table(), Table()

    def daemon(self) -> Memory:
        memory = Memory(self.run, self.state)
        memory.watch(cast(Any, self.attachments), cast(Any, self.hubs))
        return memory

    def next_one(self) -> Memory:
        return Memory(self.run, self.state)

    @property
    def persistent(self) -> Path:
        return self.state / "persistent.json"

    def reboot(self) -> None:
        (self.run / "attachments.json").unlink()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def attached(number: int, **changes: Any) -> Attachment:
    return replace(ATTACHMENT, number=number, state=State.ATTACHED, **{"bound_to": "", **changes})


def test_after_a_kill_everything_is_known(machine: Machine) -> None:
    one, other = attached(1), attached(2, persist=False, keep=False)
    going = replace(attached(3), state=State.DETACHING)
    lent = replace(going, number=4, direction=Direction.EXPORT)
    machine.attachments.things = [one, other, going, lent]
    machine.attachments.imported = [Running(one, Imported(5, 1, "4-1"))]
    machine.hubs.things = [HUB]
    machine.daemon()
    found = machine.next_one().recall()
    assert found.same_boot
    assert [a.number for a in found.attachments] == [1, 2]
    assert found.running[1].where == Imported(5, 1, "4-1")
    assert set(found.running) == {1}
    assert found.hubs == [HUB]
    assert [(a.device, a.rebind) for a in found.leaving] == [(STICK, False)]


def test_after_a_reboot_only_what_persists(machine: Machine) -> None:
    # Whom the third one is bound to has gone with the machine.
    bound = attached(3, bound_to=":1.7")
    machine.attachments.things = [attached(1), attached(2, persist=False), bound]
    machine.hubs.things = [HUB, replace(HUB, number=5, persist=False)]
    machine.hubs.things.append(replace(HUB, number=6, bound_to=":1.7"))
    machine.daemon()
    machine.reboot()
    found = machine.next_one().recall()
    assert not found.same_boot
    assert [a.number for a in found.attachments] == [1]
    assert (found.running, found.leaving) == ({}, [])
    assert [h.number for h in found.hubs] == [4]


def test_what_persists_no_longer_leaves_no_file(machine: Machine) -> None:
    one = attached(1)
    machine.attachments.things = [one]
    memory = machine.daemon()
    assert machine.persistent.exists()
    one.persist = False
    assert memory.write()
    # The machine starts the daemon only where this file is.
    assert not machine.persistent.exists()


def test_many_changes_are_written_once_and_the_last_one_counts(machine: Machine) -> None:
    async def main() -> None:
        memory = machine.daemon()
        one = attached(1)
        machine.attachments.things = [one]
        memory.attachment_added(one)
        for pattern in ("a", "b", "c"):
            one.pattern = pattern
            memory.attachment_changed(one)
        assert not machine.persistent.exists()
        await settle()
        (found,) = machine.next_one().recall().attachments
        assert found.pattern == "c"

    run(main())


def test_a_stop_forgets_what_is_attached_and_keeps_what_persists(machine: Machine) -> None:
    machine.attachments.things = [attached(1)]
    memory = machine.daemon()
    memory.keep_persistent()
    # Everything is being given back now, which is no reason to forget it.
    machine.attachments.things = []
    assert not memory.write()
    memory.clear()
    found = machine.next_one().recall()
    assert [a.number for a in found.attachments] == [1]
    assert not found.same_boot


def test_a_handing_over_daemon_writes_once_more_and_then_no_more(machine: Machine) -> None:
    async def main() -> None:
        machine.attachments.things = [attached(1)]
        memory = machine.daemon()
        machine.attachments.things = [attached(1), attached(2)]
        memory.freeze()
        machine.attachments.things = []
        memory.attachment_removed(ATTACHMENT)
        await settle()
        assert [a.number for a in machine.next_one().recall().attachments] == [1, 2]

    run(main())


def test_what_cannot_be_kept_is_told(machine: Machine) -> None:
    memory = machine.daemon()
    machine.attachments.things = [attached(1)]
    machine.persistent.with_name("persistent.json.new").mkdir(parents=True)
    assert not memory.write()
    machine.persistent.with_name("persistent.json.new").rmdir()
    assert memory.write()
    assert machine.persistent.exists()


def test_one_bad_record_costs_itself(machine: Machine, caplog: pytest.LogCaptureFixture) -> None:
    good, bad = attachment_to_json(ATTACHMENT), attachment_to_json(ATTACHMENT)
    bad["number"], bad["owner_uid"] = 8, "root"
    hub = hub_to_json(HUB)
    packet = {
        "attachments": [bad, good, good, 7], "hubs": [hub, {**hub, "aside": 7}, []],
        "leaving": [bad, 7],
    }  # fmt: skip
    assert save(machine.persistent, cast(Any, packet))
    found = machine.next_one().recall()
    assert [a.number for a in found.attachments] == [7]
    assert (found.hubs, found.leaving) == ([HUB], [])
    assert caplog.text.count("is left out") == 4


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "\0\0\0", '{"a":' * 5000])
def test_a_damaged_file_is_set_aside_and_the_other_one_counts(
    machine: Machine, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    machine.attachments.things = [attached(1)]
    machine.daemon()
    (machine.run / "attachments.json").write_text(text)
    assert [a.number for a in machine.next_one().recall().attachments] == [1]
    assert (machine.run / "attachments.json.damaged").read_text() == text
    assert "damaged" in caplog.text
    machine.persistent.write_text(text)
    assert machine.next_one().recall().attachments == []
    assert machine.persistent.with_name("persistent.json.damaged").exists()


def test_at_any_moment_the_old_file_or_the_new_one_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut after any of the system calls that write: the file is whole, one or the other."""
    path = tmp_path / "file.json"
    assert save(path, {"version": "old"})
    seen: list[str] = []
    for name in ("open", "fchmod", "fsync", "close"):
        real = getattr(os, name)

        def watched(*args: Any, real: Any = real, **words: Any) -> Any:
            result = real(*args, **words)
            if path.exists():
                seen.append(json.loads(path.read_text())["version"])
            return result

        monkeypatch.setattr(os, name, watched)
    write_whole(path, b'{"version": "new"}')
    monkeypatch.undo()
    # The data is on the disk before the name points to it, and the name is before it returns.
    assert seen[0] == "old"
    assert seen[-1] == "new"
    assert seen == sorted(seen, reverse=True)
    assert load(path) == {"version": "new"}
    assert path.stat().st_mode & 0o777 == 0o600
