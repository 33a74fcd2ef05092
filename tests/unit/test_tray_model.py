# SPDX-License-Identifier: GPL-3.0-or-later
"""The menu, the icon and its title in every state, by table."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from usbipssh_tray.actions import (
    AddRemote,
    Attach,
    AttachAll,
    Copy,
    Detach,
    Quit,
    Refresh,
    Retry,
    SetOptions,
    StartDaemon,
    TrustKey,
)
from usbipssh_tray.details import size
from usbipssh_tray.entries import Listing, Ui
from usbipssh_tray.model import INLINE_ROWS, PAGE, menu, status, title
from usbipssh_tray.rows import WIDTH, Row, reuse
from usbipssh_tray.status import Status
from usbipsshd.client.snapshot import Attachment, Device, Hub, Interface, Manager, Remote, Snapshot

ME, OTHER = 1000, 1001
AT = "/org/usbipssh1/attachment/"
HUB_PATH = "/org/usbipssh1/hub/1"
RETRY = 1_764_081_120_000_000
"""14:32 UTC."""
BUSY = ("org.usbipssh1.Error.DeviceBusy", "The device is in use there by the program vlc.")

STICK = Device(
    "2-1", 0x0781, 0x5581, "SanDisk", "Ultra", "4C53", 5000.0,
    state="available", interfaces=(Interface(class_=8, subclass=6, protocol=0x50),),
)  # fmt: skip
BOARD = Device(
    "1-1.3", 0x046D, 0xC31C, "Logitech", "K120", speed=1.5,
    interfaces=(Interface(class_=3, subclass=1, protocol=1),),
)  # fmt: skip
USB_HUB = Device("1-1", 0x05E3, 0x0608, "", "USB2.0 Hub", class_=9, hub=True)
PI = Remote("/org/usbipssh1/remote/pi", "pi", "", "connected")
KEY = ("org.usbipssh1.Error.SshAuthFailed", "pi does not accept this machine's key.")
REFUSED = replace(PI, state="unreachable", last_error=KEY)
HERE = Attachment(
    AT + "1", "pi", "2-1", "2-1", 0x0781, 0x5581, "SanDisk Ultra", "4C53", 5000.0, "attached",
    "4-1", 0, ("/dev/sda", "/dev/sda1"), owner_uid=ME,
)  # fmt: skip


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def snapshot(*things: Any, **more: Any) -> Snapshot:
    return Snapshot(
        True,
        more.get("manager", Manager(version="1")),
        tuple(t for t in things if isinstance(t, Remote)),
        tuple(t for t in things if isinstance(t, Attachment)),
        tuple(t for t in things if isinstance(t, Hub)),
    )


def ui(*devices: Device, **more: Any) -> Ui:
    listings = {"pi": Listing(tuple(devices), known=True)} if devices else {}
    return Ui(**{"uid": ME, "listings": listings, **more})


def labels(rows: tuple[Row, ...]) -> list[str]:
    return [row.label for row in rows if not row.separator]


def find(rows: tuple[Row, ...], start: str) -> Row:
    """The first row, looked for in breadth, that begins so."""
    level = list(rows)
    while level:
        for row in level:
            if row.label.startswith(start):
                return row
        level = [below for row in level for below in row.rows]
    raise LookupError(start)


# A device's row


def test_a_disk_that_is_waited_for_is_still_a_disk() -> None:
    waiting = replace(HERE, state="waiting", device_nodes=(), local_bus_id="")
    another = replace(STICK, product_id=1)
    for gone, kind in (((STICK,), "Disk"), ((), "Device"), ((another,), "Device")):
        known = {"pi": Listing((BOARD,), gone, known=True)}
        assert find(menu(snapshot(PI, waiting), ui(listings=known)), f"{kind}: SanDisk Ultra, wai")


@pytest.mark.parametrize(
    ("change", "label", "checked", "does"),
    [
        ({}, "Disk: SanDisk Ultra", True, Detach(AT + "1", "SanDisk Ultra")),
        ({"state": "connecting"}, "Disk: SanDisk Ultra, connecting…", False,
         Detach(AT + "1", "SanDisk Ultra")),
        ({"state": "waiting", "retry_at": RETRY},
         "Disk: SanDisk Ultra, waiting, next try at 14:32", False,
         Detach(AT + "1", "SanDisk Ultra")),
        ({"state": "waiting"}, "Disk: SanDisk Ultra, waiting for it", False,
         Detach(AT + "1", "SanDisk Ultra")),
        ({"state": "detaching"}, "Disk: SanDisk Ultra, detaching…", False, None),
        ({"direction": "export"}, "Disk: SanDisk Ultra, from this machine", True,
         Detach(AT + "1", "SanDisk Ultra, from this machine")),
        ({"owner_uid": OTHER}, "Disk: SanDisk Ultra, by another user", True,
         Detach(AT + "1", "SanDisk Ultra")),
    ],
)  # fmt: skip
def test_an_attached_device(
    change: dict[str, Any], label: str, checked: bool, does: object
) -> None:
    row = find(menu(snapshot(PI, replace(HERE, **change)), ui(STICK)), "Disk")
    assert (row.label, row.checked, row.action) == (label, checked, does)


@pytest.mark.parametrize(
    ("device", "more", "label", "does"),
    [
        (STICK, {}, "Disk: SanDisk Ultra",
         Attach("pi", "2-1", 0x0781, 0x5581, "SanDisk Ultra")),
        (STICK, {"busy": frozenset({("pi", "2-1")})}, "Disk: SanDisk Ultra, connecting…", None),
        (replace(STICK, state="exported"), {}, "Disk: SanDisk Ultra, exported already",
         Attach("pi", "2-1", 0x0781, 0x5581, "SanDisk Ultra")),
        (replace(STICK, vendor="", product=""), {}, "Disk: 0781:5581",
         Attach("pi", "2-1", 0x0781, 0x5581, "0781:5581")),
    ],
)  # fmt: skip
def test_a_device_that_is_not_attached(
    device: Device, more: dict[str, Any], label: str, does: object
) -> None:
    row = find(menu(snapshot(PI), ui(device, **more)), "Disk")
    assert (row.label, row.checked, row.action) == (label, False, does)


def test_tree_order_without_hubs_and_twins_told_apart() -> None:
    twin = replace(STICK, busid="1-2")
    rows = menu(snapshot(PI), ui(USB_HUB, STICK, BOARD, twin))
    assert labels(rows) == [
        "pi: connected",
        "Keyboard: Logitech K120",
        "Disk: SanDisk Ultra (1-2)",
        "Disk: SanDisk Ultra (2-1)",
        "More",
        "Look again",
        "Add a machine…",
        "Quit",
    ]


def test_what_waits_for_its_device_has_a_row_too() -> None:
    waits = replace(HERE, state="waiting", device_nodes=())
    rows = menu(snapshot(PI, waits), ui(BOARD))
    row = find(rows, "Device: SanDisk Ultra")
    assert row.label.endswith("waiting for it")
    assert row.action == Detach(AT + "1", "SanDisk Ultra")
    assert find(rows, "Try now: SanDisk Ultra").action == Retry(AT + "1")


def test_another_device_at_the_same_place_is_another_device() -> None:
    other = replace(STICK, vendor_id=0x1234, product="Another")
    rows = menu(snapshot(PI, HERE), ui(other))
    assert find(rows, "Disk: SanDisk Another").checked is False
    assert find(rows, "Disk: SanDisk Ultra").checked is True


def test_a_row_keeps_its_key_whatever_becomes_of_it() -> None:
    states = [
        menu(snapshot(PI), ui(STICK)),
        menu(snapshot(PI, replace(HERE, state="connecting")), ui(STICK)),
        menu(snapshot(PI, HERE), ui(STICK)),
        menu(snapshot(PI, HERE), ui(BOARD)),
    ]
    assert len({find(rows, "Disk").key for rows in states}) == 1


# A machine's rows


@pytest.mark.parametrize(
    ("remote", "listing", "wanted"),
    [
        (PI, Listing(known=True), ["pi: connected", "No devices"]),
        (PI, Listing(looking=True), ["pi: connected", "Looking…"]),
        (replace(PI, state="idle"), None, ["pi: not connected"]),
        (replace(PI, label="Attic"), Listing(known=True), ["Attic: connected", "No devices"]),
        (replace(PI, state="connecting"), None, ["pi: connecting…"]),
        (replace(PI, state="unreachable", last_error=BUSY), None,
         ["pi: unreachable", BUSY[1], "Try again"]),
        (replace(PI, state="unreachable", offered_host_key="SHA256:x", last_error=BUSY), None,
         ["pi: its key is not trusted yet", "Look at its key…"]),
        # The person's own key opens it, or does not either.
        (REFUSED, Listing(known=True), ["pi: with your own ssh key", "No devices"]),
        (REFUSED, Listing(looking=True), ["pi: unreachable", KEY[1], "Try again", "Looking…"]),
        (REFUSED, Listing(known=True, error=(KEY[0], "Nor yours.")),
         ["pi: unreachable", "Nor yours.", "Try again"]),
        (replace(PI, state="unreachable", last_error=BUSY), Listing(known=True),
         ["pi: unreachable", BUSY[1], "Try again", "No devices"]),
        (PI, Listing(known=True, error=("org.freedesktop.DBus.Error.AccessDenied", "No.")),
         ["pi: connected", "No.", "Try again"]),
        (replace(PI, state="idle"),
         Listing(error=("org.freedesktop.DBus.Error.InteractiveAuthorizationRequired", "Ask.")),
         ["pi: not connected", "Show its devices…"]),
    ],
)  # fmt: skip
def test_a_machine(remote: Remote, listing: Listing | None, wanted: list[str]) -> None:
    rows = menu(snapshot(remote), Ui(ME, {"pi": listing} if listing else {}))
    assert labels(rows) == [*wanted, "More", "Look again", "Add a machine…", "Quit"]


def test_what_helps_against_it() -> None:
    rows = menu(snapshot(replace(PI, state="unreachable", last_error=BUSY)), Ui(ME))
    assert find(rows, "Try again").action == Refresh("pi")
    offered = replace(PI, state="unreachable", offered_host_key="SHA256:x")
    assert find(menu(snapshot(offered), Ui(ME)), "Look at").action == TrustKey("pi", "SHA256:x")


def test_long_sentences_are_broken() -> None:
    words = ("org.usbipssh1.Error.Failed", "This is a sentence with many words. " * 5)
    rows = menu(snapshot(replace(PI, state="unreachable", last_error=words)), Ui(ME))
    lines = labels(rows)[1:-5]
    assert len(lines) == 4
    assert all(len(line) <= WIDTH for line in lines)
    assert " ".join(lines) == words[1].strip()


def test_a_machine_that_is_not_listed_has_a_section_for_what_is_attached() -> None:
    far = replace(HERE, remote="me@far")
    assert labels(menu(snapshot(far), Ui(ME)))[:2] == ["me@far: not listed", "Disk: SanDisk Ultra"]


def test_no_machine_yet() -> None:
    rows = menu(snapshot(), Ui(ME))
    assert labels(rows) == [
        "No machine is listed yet.", "Look again", "Add a machine…", "Quit",
    ]  # fmt: skip
    assert find(rows, "Add").action == AddRemote()
    assert find(rows, "Quit").action == Quit()
    assert find(rows, "Look again").action == Refresh()


# A device's own menu


def about(rows: tuple[Row, ...], start: str = "Disk") -> tuple[Row, ...]:
    return find(find(rows, "More").rows, start).rows


def test_all_about_an_attached_device() -> None:
    here = replace(HERE, keep=True, last_error=BUSY)
    shown = ui(STICK, statistics={AT + "1": (1_234_567, 890)})
    rows = about(menu(snapshot(PI, here), shown))
    assert labels(rows) == [
        "Keep attached",
        "Always attach, also after a restart",
        "Bus id there: 2-1",
        "Bus id here: 4-1",
        "Vendor and product: 0781:5581",
        "Serial number: 4C53",
        "Speed: 5000 Mbit/s",
        "1.23 MB received, 890 B sent",
        "Copy /dev/sda",
        "Copy /dev/sda1",
        "Last error:",
        BUSY[1],
    ]
    assert (rows[0].checked, rows[1].checked) == (True, False)
    assert rows[0].action == SetOptions(AT + "1", "SanDisk Ultra", keep=False)
    assert rows[1].action == SetOptions(AT + "1", "SanDisk Ultra", persist=True)
    assert find(rows, "Copy /dev/sda1").action == Copy("/dev/sda1")
    assert not find(rows, "Speed").enabled


def test_what_persists_is_kept_and_that_cannot_be_changed_alone() -> None:
    rows = about(menu(snapshot(PI, replace(HERE, keep=True, persist=True)), ui(STICK)))
    assert not rows[0].enabled
    assert rows[1].action == SetOptions(AT + "1", "SanDisk Ultra", persist=False)


def test_all_about_a_device_that_is_not_attached() -> None:
    rows = about(menu(snapshot(PI), ui(BOARD)), "Keyboard")
    assert labels(rows) == [
        "Keep attached",
        "Always attach, also after a restart",
        "Bus id there: 1-1.3",
        "Vendor and product: 046d:c31c",
        "Speed: 1.5 Mbit/s",
    ]
    attach = Attach("pi", "1-1.3", 0x046D, 0xC31C, "Logitech K120")
    assert rows[0].action == replace(attach, keep=True)
    assert rows[1].action == replace(attach, persist=True)


def test_what_others_attached_and_what_belongs_to_a_hub() -> None:
    rows = about(menu(snapshot(PI, replace(HERE, owner_uid=OTHER, hub=HUB_PATH)), ui(STICK)))
    assert labels(rows)[0] == "Attached with everything there, and kept as long."
    assert "Attached by user 1001" in labels(rows)


def test_everything_there() -> None:
    rows = menu(snapshot(PI), ui(STICK))
    row = find(rows, "Attach everything")
    assert (row.checked, row.action) == (False, AttachAll("pi"))
    hub = Hub(HUB_PATH, "pi", "", "waiting", retry_at=RETRY, owner_uid=ME)
    rows = menu(snapshot(PI, hub), ui(STICK))
    row = find(rows, "Attach everything")
    assert (row.checked, row.action) == (True, Detach(HUB_PATH, "pi"))
    assert row.label.endswith("waiting, next try at 14:32")
    assert find(rows, "Try now: everything").action == Retry(HUB_PATH)
    some = replace(hub, pattern="0403")
    rows = menu(snapshot(PI, some), ui(STICK))
    assert find(rows, "Attach everything").action == AttachAll("pi")
    assert find(rows, "Everything that matches 0403").action == Detach(HUB_PATH, "0403")


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (5 * 10**12, "5 TB")]
)
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text


# Many


def many(remotes: int, devices: int) -> tuple[Snapshot, Ui]:
    made = [Remote("", f"pi{n}", "", "connected") for n in range(remotes)]
    listed = tuple(replace(BOARD, busid=f"1-1.{n + 1}", product=f"K{n}") for n in range(devices))
    return snapshot(*made), Ui(ME, {r.name: Listing(listed, known=True) for r in made})


def test_twenty_devices_on_five_machines_are_one_menu() -> None:
    rows = menu(*many(5, 4))
    assert sum(label.startswith("Keyboard") for label in labels(rows)) == 20
    assert len(labels(rows)) == 5 * (1 + 4 + 1) + 3


def test_more_have_a_menu_per_machine() -> None:
    now, shown = many(5, INLINE_ROWS // 5)
    here = replace(HERE, remote="pi3", remote_bus_id="1-1.1", vendor_id=0x046D, product_id=0xC31C)
    rows = menu(replace(now, attachments=(here,)), shown)
    assert labels(rows) == [
        "pi0: connected", "pi1: connected", "pi2: connected", "pi3: connected, 1 attached",
        "pi4: connected", "Look again", "Add a machine…", "Quit",
    ]  # fmt: skip
    assert find(rows, "pi3").rows[0].checked


def test_very_many_come_in_pages() -> None:
    rows = find(menu(*many(1, 2 * PAGE + 1)), "pi0").rows
    assert labels(rows)[:3] == ["Devices 1 to 25", "Devices 26 to 50", "Devices 51 to 51"]
    assert len(rows[0].rows) == PAGE


def walk(rows: tuple[Row, ...]) -> Iterator[tuple[Row, ...]]:
    yield rows
    for row in rows:
        yield from walk(row.rows)


@pytest.mark.parametrize("size", [(1, 1), (5, 4), (5, 40), (40, 1)])
def test_keys_are_different_in_each_menu(size: tuple[int, int]) -> None:
    for rows in walk(menu(*many(*size))):
        assert len({row.key for row in rows}) == len(rows)


def test_what_has_not_changed_is_the_same_object() -> None:
    now, shown = many(5, 20)
    before = menu(now, shown)
    assert reuse(menu(now, shown), before) is before
    changed = replace(shown, busy=frozenset({("pi2", "1-1.3")}))
    after = reuse(menu(now, changed), before)
    assert after == menu(now, changed)
    differ = [(old, new) for old, new in zip(before, after, strict=True) if old is not new]
    ((old, new),) = differ
    assert new.label == "pi2: connected"
    rows = [new for old, new in zip(old.rows, new.rows, strict=True) if old is not new]
    # The device's own row, and what is below More.
    assert [row.label for row in rows] == ["Keyboard: Logitech K2, connecting…", "More"]
    assert reuse((), before) == ()


# What is wrong with this machine, the icon and the title

WAITING = replace(HERE, state="waiting")


@pytest.mark.parametrize(
    ("now", "shown", "icon", "words", "rows"),
    [
        (Snapshot(), Ui(ME), Status.TROUBLE, "usbipsshd is not running",
         ["The service usbipsshd is not running.", "Start it", "Quit"]),
        (Snapshot(), Ui(ME, started="It failed."), Status.TROUBLE, "not running",
         ["The service usbipsshd is not running.", "It failed.",
          "Its log says more: journalctl -u usbipsshd", "Start it", "Quit"]),
        (Snapshot(), Ui(ME, no_bus=True), Status.TROUBLE, "not running",
         ["There is no system bus, so usbipsshd cannot be reached.", "Quit"]),
        (Snapshot(present=True), Ui(ME), Status.IDLE, "nothing", ["Looking…", "Quit"]),
        (snapshot(PI), Ui(ME), Status.IDLE, "nothing is attached", None),
        (snapshot(PI, HERE), Ui(ME), Status.ATTACHED, "SanDisk Ultra is attached", None),
        (snapshot(PI, HERE, replace(HERE, path=AT + "2")), Ui(ME), Status.ATTACHED,
         "2 devices are attached", None),
        (snapshot(PI, WAITING), Ui(ME), Status.TROUBLE, "waiting for SanDisk Ultra", None),
        (snapshot(PI, Hub(HUB_PATH, "pi", "", "waiting")), Ui(ME), Status.TROUBLE,
         "waiting for pi", None),
        (snapshot(PI), Ui(ME, no_agent=True), Status.TROUBLE, "password",
         ["Nobody can be asked for a password: no polkit agent runs in",
          "this session. Start one, such as lxpolkit or mate-polkit."]),
        (snapshot(PI, manager=Manager(version="1", vhci_available=False)), Ui(ME),
         Status.TROUBLE, "vhci-hcd is missing",
         ["This machine cannot attach anything: its kernel module"]),
        (snapshot(replace(PI, state="unreachable")), Ui(ME), Status.IDLE, "nothing", None),
    ],
)  # fmt: skip
def test_icon_and_title(
    now: Snapshot, shown: Ui, icon: Status, words: str, rows: list[str] | None
) -> None:
    assert status(now, shown) is icon
    assert words in title(now, shown)
    if rows is not None:
        assert labels(menu(now, shown))[: len(rows)] == rows


def test_an_absent_daemon_can_be_started() -> None:
    assert find(menu(Snapshot(), Ui(ME)), "Start it").action == StartDaemon()
