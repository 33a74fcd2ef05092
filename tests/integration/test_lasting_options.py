# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of an attachment is changed while it is attached; what persists is written down."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fakekernel import KEYBOARD, STICK
from integration.recorder import recording
from integration.world import (
    ALICE,
    ATTACHMENT,
    BOB,
    CAROL,
    NAME,
    World,
    wait_until,
    world,
)

PERSIST = ("persist", "b", "true")
KEEP = ("keep", "b", "true")

RULES = """
polkit.addRule(function(action, subject) {
    if (action.id.indexOf("org.usbipssh1.") != 0) return polkit.Result.NOT_HANDLED;
    if (subject.user == "alice") return polkit.Result.YES;
    if (subject.user == "carol" && action.id != "org.usbipssh1.manage-remotes" &&
        action.id != "org.usbipssh1.detach-others") return polkit.Result.YES;
    return polkit.Result.NO;
});
"""
"""Carol may attach, and nothing that concerns others."""


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    with world(rules=RULES, with_systemd=True) as made:
        made.add_remote()
        yield made


@pytest.fixture
def w(shared: World) -> Iterator[World]:
    for busid, device in {"2-1": STICK, "1-1": KEYBOARD}.items():
        shared.pi.plug(busid, device)
    yield shared
    shared.detach_all()
    shared.check_clean()
    shared.unplug_all()


def hubs(w: World) -> list[str]:
    return [p for p in w.objects() if "/hub/" in p]


def set_options(w: World, uid: int, path: str, **options: bool) -> None:
    words = [word for n, v in options.items() for word in (n, "b", str(v).lower())]
    w.call(uid, "SetOptions", "a{sv}", str(len(options)), *words, path=path, interface=ATTACHMENT)


def refused(w: World, code: str, uid: int, path: str, *words: str, says: str = "") -> None:
    count = str(len(words) // 3)
    w.refused(
        code, uid, "SetOptions", "a{sv}", count, *words,
        says=says, path=path, interface=ATTACHMENT,
    )  # fmt: skip


def told(w: World, path: str) -> tuple[Any, Any]:
    values = w.get_all(path, ATTACHMENT)
    return values["Keep"], values["Persist"]


def persisted(w: World) -> list[str]:
    path = w.folder / "state/persistent.json"
    if not path.exists():
        return []
    return [record["device"]["busid"] for record in json.loads(path.read_text())["attachments"]]


def becomes(w: World, path: str, wanted: str) -> None:
    wait_until(lambda: w.get(path, ATTACHMENT, "State") == wanted, f"not {wanted}")


def test_kept_from_now_on(w: World) -> None:
    with recording(w.bus, NAME) as record:
        path = w.attach("2-1", CAROL)
        assert told(w, path) == (False, False)
        set_options(w, CAROL, path, keep=True)
        record.wait(lambda _: True in record.values(path, "Keep"))
        assert told(w, path) == (True, False)
        assert record.values(path, "State")[-1] == "attached"
    w.pi.unplug("2-1")
    becomes(w, path, "waiting")
    w.pi.plug("2-1", STICK)
    becomes(w, path, "attached")
    set_options(w, CAROL, path, keep=False)
    w.pi.unplug("2-1")
    wait_until(lambda: w.attachments() == [], "it is still kept")


def test_one_that_waits_and_is_kept_no_longer_goes(w: World) -> None:
    path = w.attach("2-1", CAROL, "pi", *KEEP)
    w.pi.unplug("2-1")
    becomes(w, path, "waiting")
    set_options(w, CAROL, path, keep=False)
    wait_until(lambda: w.attachments() == [], "it still waits")


def test_persist_is_written_down_and_taken_back(w: World) -> None:
    path = w.attach("2-1")
    set_options(w, ALICE, path, persist=True)
    assert told(w, path) == (True, True)
    assert persisted(w) == ["2-1"]
    refused(w, "InvalidArgs", ALICE, path, "keep", "b", "false", says="persist")
    set_options(w, ALICE, path, persist=False)
    assert told(w, path) == (True, False)
    assert persisted(w) == []
    set_options(w, ALICE, path)
    assert told(w, path) == (True, False)


def test_who_may_change_what(w: World) -> None:
    path = w.attach("2-1", CAROL)
    refused(w, "AccessDenied", BOB, path, *KEEP, says="somebody else")
    refused(w, "AccessDenied", CAROL, path, *PERSIST, says="remotes")
    assert told(w, path) == (False, False)
    set_options(w, ALICE, path, persist=True)
    assert told(w, path) == (True, True)
    # Its owner may end what somebody else asked for.
    set_options(w, CAROL, path, persist=False, keep=False)
    assert told(w, path) == (False, False)
    refused(w, "InvalidArgs", CAROL, path, "kept", "b", "true")
    refused(w, "InvalidArgs", CAROL, path, "keep", "s", "yes")


def test_what_a_hub_has_is_the_hubs(w: World) -> None:
    hub = w.call(ALICE, "AttachAll", "ssa{sv}", "pi", "0781:5581", "0")
    wait_until(w.attachments, "the hub attaches nothing")
    (path,) = w.attachments()
    becomes(w, path, "attached")
    refused(w, "InvalidArgs", ALICE, path, *KEEP, says="hub")
    w.call(ALICE, "Detach", "sa{sv}", hub, "0")


def test_the_log_tells_who_detached_it(w: World) -> None:
    def detached() -> list[dict[str, str]]:
        return [f for f in w.journal() if f["MESSAGE"].startswith("detached 2-1")]

    path = w.attach("2-1", CAROL)
    before = len(detached())
    w.call(ALICE, "Detach", "sa{sv}", path, "0")
    wait_until(lambda: len(detached()) > before, "nothing is told")
    fields = detached()
    assert fields[-1]["USBIPSSH_CALLER_UID"] == str(ALICE)


@contextmanager
def nothing_can_be_written(w: World) -> Iterator[None]:
    """What a full disk does to the file, for root, whom permissions do not stop."""
    path = w.folder / "state/persistent.json.new"
    path.mkdir()
    try:
        yield
    finally:
        path.rmdir()


def test_what_cannot_be_written_down_is_refused(w: World) -> None:
    path = w.attach("2-1")
    with nothing_can_be_written(w):
        refused(w, "Failed", ALICE, path, *PERSIST, says="write down")
        assert told(w, path) == (False, False)
        assert w.get(path, ATTACHMENT, "State") == "attached"
        w.refused("Failed", ALICE, "Attach", "ssa{sv}", "pi", "1-1", "1", *PERSIST, says="write")
        w.refused("Failed", ALICE, "AttachAll", "ssa{sv}", "pi", "03", "1", *PERSIST, says="write")
    assert w.attachments() == [path]
    assert hubs(w) == []
    assert persisted(w) == []
    set_options(w, ALICE, path, persist=True)
    assert persisted(w) == ["2-1"]


def test_after_a_reboot_what_persists_is_back_and_nothing_else(w: World) -> None:
    kept = w.attach("1-1", ALICE, "pi", *KEEP)
    path = w.attach("2-1", ALICE, "pi", *PERSIST)
    before = w.get_all(path, ATTACHMENT)
    assert w.systemd is not None
    w.systemd.wait_stored(1)
    assert w.stop_daemon(signal.SIGKILL) != 0
    # What a reset leaves: nothing below /run, no session, nothing attached, no bus held.
    w.systemd.drop_store()
    wait_until(lambda: not w.sessions(), "a session stays")
    for file in (w.folder / "run").iterdir():
        file.unlink()
    for bus in (w.desk.root / "bus/usb/devices").glob("usb*"):
        (bus / "authorized_default").write_text("1")
    w.start_daemon()
    wait_until(w.attachments, "nothing is back")
    (again,) = w.attachments()
    becomes(w, again, "attached")
    after = w.get_all(again, ATTACHMENT)
    for name in ("Remote", "Pattern", "RemoteBusId", "Serial", "OwnerUid", "Keep", "Persist"):
        assert after[name] == before[name], name
    assert kept not in w.attachments()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"attachments": 7}',
        '{"attachments": [{"number": 1}, 3], "hubs": [[]]}',
        "\0" * 64,
    ],
    ids=["empty", "cut-off", "list", "number", "records", "zeros"],
)
def test_a_damaged_state_file_costs_itself(w: World, text: str) -> None:
    path = w.attach("2-1", ALICE, "pi", *KEEP)
    assert w.systemd is not None
    w.systemd.wait_stored(1)
    assert w.stop_daemon(signal.SIGKILL) != 0
    file = w.folder / "state/persistent.json"
    file.write_text(text)
    begin = len(w.log())
    w.start_daemon()
    # Nothing else is lost: what is attached is still attached.
    assert w.get(path, ATTACHMENT, "State") == "attached"
    w.call(ALICE, "Detach", "sa{sv}", path, "0")
    assert "Traceback" not in w.log()[begin:]
    # And so it is where nothing but that file is there.
    assert w.stop_daemon() == 0
    file.write_text(text)
    begin = len(w.log())
    w.start_daemon()
    assert w.attachments() == []
    told_now = w.log()[begin:]
    assert "Traceback" not in told_now
    assert "damaged" in told_now or "left out" in told_now or text == '{"attachments": 7}'
    set_options(w, ALICE, w.attach("2-1"), persist=True)
    assert persisted(w) == ["2-1"]
    for aside in (w.folder / "state").glob("*.damaged"):
        aside.unlink()


def test_a_lesser_replacement_leaves_the_limit_where_it_was(w: World) -> None:
    """What was approved stays the limit, also after something that can do less took its place."""
    both = STICK.but(serial="BOTH", interfaces=(*STICK.interfaces, *KEYBOARD.interfaces))
    w.pi.unplug("2-1")
    w.pi.plug("2-1", both)
    path = w.attach("0781:5581", ALICE, "pi", *KEEP)
    w.pi.unplug("2-1")
    becomes(w, path, "waiting")
    w.pi.plug("2-1", STICK)
    becomes(w, path, "attached")
    w.pi.unplug("2-1")
    becomes(w, path, "waiting")
    w.pi.plug("2-1", both)
    becomes(w, path, "attached")
    assert w.get(path, ATTACHMENT, "LastError") == ["", ""]
