# SPDX-License-Identifier: GPL-3.0-or-later
"""What a person is told about what the daemon publishes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from usbipssh_tray.news import Kind, Memory, Notice, tell
from usbipsshd.client.snapshot import Attachment, Hub, Manager, Remote, Snapshot

ME, OTHER = 1000, 1001
START = 1_000_000_000
ONE = Attachment(
    "/org/usbipssh1/attachment/1",
    remote="pi",
    name="Kingston DataTraveler",
    state="attached",
    owner_uid=ME,
    device_nodes=("/dev/sda", "/dev/sg0"),
    attached_at=START + 5,
)
HUB = Hub("/org/usbipssh1/hub/1", remote="pi", state="attached", owner_uid=ME)
OF_HUB = replace(ONE, path="/org/usbipssh1/attachment/2", hub=HUB.path)
CONNECTING = replace(ONE, state="connecting", device_nodes=(), attached_at=0)
WAITING = replace(CONNECTING, state="waiting", last_error=("x.DeviceNotFound", "It is not there."))


def snapshot(*objects: Attachment | Hub) -> Snapshot:
    return Snapshot(
        True,
        Manager(version="1"),
        (Remote("/r", "pi", label="The Pi"),),
        tuple(o for o in objects if isinstance(o, Attachment)),
        tuple(o for o in objects if isinstance(o, Hub)),
    )


def follow(
    *snapshots: Snapshot, clicked_off: frozenset[str] = frozenset(), uid: int = ME
) -> list[list[Notice]]:
    """What is told at each of them."""
    memory, told = Memory(), []
    for one in snapshots:
        memory, notices = tell(memory, one, clicked_off, uid, START)
        told.append(notices)
    return told


def kinds(told: list[list[Notice]]) -> list[list[Kind]]:
    return [[notice.kind for notice in notices] for notices in told]


def test_attached_names_the_nodes_and_offers_to_detach() -> None:
    _, told = follow(snapshot(), snapshot(ONE))
    assert told == [
        Notice(
            Kind.ATTACHED,
            "Kingston DataTraveler is attached",
            "From The Pi: /dev/sda, /dev/sg0",
            ONE.path,
            "Kingston DataTraveler",
            can_detach=True,
        )
    ]


def test_what_is_exported_is_told_as_such() -> None:
    export = replace(ONE, direction="export", keep=True)
    waiting = replace(export, state="waiting", last_error=("x.Y", "It was unplugged."))
    _, (on,), (lost,), (gone,) = follow(snapshot(), snapshot(export), snapshot(waiting), snapshot())
    assert on.summary == "Kingston DataTraveler is on The Pi now"
    assert on.body == "/dev/sda, /dev/sg0"
    assert lost.body == "It was unplugged. It goes to The Pi again when it is plugged in here."
    assert gone.body in ("It was on The Pi.", "It was unplugged.")


LIVES: dict[str, tuple[list[Snapshot], list[list[Kind]]]] = {
    "what is there at first is no news": ([snapshot(ONE, HUB)], [[]]),
    "attached once": (
        [snapshot(), snapshot(CONNECTING), snapshot(ONE), snapshot(ONE)],
        [[], [], [Kind.ATTACHED], []],
    ),
    "no more words for new nodes": (
        [snapshot(ONE), snapshot(replace(ONE, device_nodes=("/dev/sdb",)))],
        [[], []],
    ),
    "detached once": (
        [snapshot(ONE), snapshot(replace(ONE, state="detaching")), snapshot(), snapshot()],
        [[], [], [Kind.DETACHED], []],
    ),
    "one that never came is not detached": (
        [snapshot(), snapshot(CONNECTING), snapshot()],
        [[], [], []],
    ),
    "lost, tried in vain, and back": (
        [snapshot(ONE), snapshot(WAITING), snapshot(CONNECTING), snapshot(WAITING), snapshot(ONE)],
        [[], [Kind.LOST], [], [], [Kind.BACK]],
    ),
    "lost between two looks": (
        [snapshot(ONE), snapshot(CONNECTING), snapshot(ONE)],
        [[], [Kind.LOST], [Kind.BACK]],
    ),
    "lost and given up": (
        [snapshot(ONE), snapshot(WAITING), snapshot()],
        [[], [Kind.LOST], [Kind.DETACHED]],
    ),
    "waiting at first, then back": (
        [snapshot(WAITING), snapshot(CONNECTING), snapshot(ONE)],
        [[], [], [Kind.BACK]],
    ),
    "one that waits from the beginning is not lost": (
        [snapshot(), snapshot(CONNECTING), snapshot(WAITING)],
        [[], [], []],
    ),
    "a hub that loses its remote is one event": (
        [snapshot(HUB, OF_HUB), snapshot(replace(HUB, state="waiting"))],
        [[], [Kind.LOST]],
    ),
    "a hub that tries again in vain, and is back": (
        [
            snapshot(HUB),
            snapshot(replace(HUB, state="waiting")),
            snapshot(replace(HUB, state="connecting")),
            snapshot(replace(HUB, state="waiting")),
            snapshot(HUB),
            snapshot(HUB, OF_HUB),
        ],
        [[], [Kind.LOST], [], [], [Kind.BACK], [Kind.ATTACHED]],
    ),
    "a hub that ends takes its devices along": (
        [snapshot(HUB, OF_HUB), snapshot()],
        [[], [Kind.DETACHED]],
    ),
    "a hub that never came about": (
        [snapshot(), snapshot(replace(HUB, state="connecting")), snapshot()],
        [[], [], []],
    ),
    "a device unplugged from a hub that goes on": (
        [snapshot(HUB, OF_HUB), snapshot(HUB)],
        [[], [Kind.DETACHED]],
    ),
    "a daemon that goes says nothing, nor does one that takes over": (
        [snapshot(ONE), Snapshot(), Snapshot(present=True), snapshot(ONE)],
        [[], [], [], []],
    ),
    "what a daemon takes over late was attached before": (
        [snapshot(), snapshot(replace(ONE, attached_at=START - 1))],
        [[], []],
    ),
}


@pytest.mark.parametrize(("snapshots", "wanted"), LIVES.values(), ids=LIVES.keys())
def test_each_thing_that_happens_is_told_once(
    snapshots: list[Snapshot], wanted: list[list[Kind]]
) -> None:
    assert kinds(follow(*snapshots)) == wanted


@pytest.mark.parametrize(
    ("before", "clicked"),
    [
        ((ONE,), ONE.path),
        ((WAITING,), WAITING.path),
        ((HUB, OF_HUB), HUB.path),
        ((HUB,), HUB.path),
    ],
)
def test_nothing_is_told_of_what_was_just_clicked_off(
    before: tuple[Attachment | Hub, ...], clicked: str
) -> None:
    told = follow(snapshot(*before), snapshot(), clicked_off=frozenset({clicked}))
    assert told == [[], []]


def test_an_end_that_nobody_asked_for_says_why() -> None:
    unplugged = replace(ONE, state="detaching", last_error=("x", "The device was unplugged."))
    _, _, (notice,) = follow(snapshot(ONE), snapshot(unplugged), snapshot())
    assert notice.body == "The device was unplugged."
    _, (notice,) = follow(snapshot(ONE), snapshot())
    assert notice.body == "It was from The Pi."


def test_what_is_lost_says_why_and_what_happens_next() -> None:
    _, (notice,) = follow(snapshot(ONE), snapshot(WAITING))
    assert notice.summary == "Kingston DataTraveler is lost"
    assert notice.body == "It is not there. It is attached again when The Pi has it."
    assert (notice.can_retry, notice.can_detach) == (True, True)


def test_what_is_anothers_or_a_hubs_has_no_buttons() -> None:
    for one, uid in ((ONE, OTHER), (OF_HUB, ME)):
        _, (notice,) = follow(snapshot(HUB), snapshot(HUB, one), uid=uid)
        assert notice.kind is Kind.ATTACHED
        assert not notice.can_detach


def test_a_device_without_a_name_is_called_by_its_ids() -> None:
    nameless = replace(ONE, name="", vendor_id=0x46F4, product_id=1)
    _, (notice,) = follow(snapshot(), snapshot(nameless))
    assert notice.summary == "46f4:0001 is attached"
