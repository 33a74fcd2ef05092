# SPDX-License-Identifier: GPL-3.0-or-later
"""Every member of the contract, by everybody: who may, decided here for each one by name.

The members come from dbus/org.usbipssh1.xml and the permissions from the polkit policy, so a new
one fails these tests until somebody has decided who may use it.
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from fakekernel import KEYBOARD, STICK
from integration.busfixtures import CHECKOUT
from integration.calls import Answer
from integration.world import (
    ALICE,
    ATTACHMENT,
    BOB,
    CAROL,
    MANAGER,
    REMOTE,
    ROOT,
    STANDARD,
    STANDARD_PROPERTIES,
    World,
    check_refusal,
    wait_until,
    world,
)

HUB = "org.usbipssh1.Hub"
PREFIX = "org.usbipssh1."
CONTRACT = ET.parse(CHECKOUT / "dbus/org.usbipssh1.xml").getroot()
POLICY = ET.parse(CHECKOUT / "polkit/org.usbipssh1.policy").getroot()


def members(kind: str) -> set[str]:
    """``Interface.Member`` of every method, property or signal."""
    return {
        f"{interface.attrib['name'].removeprefix(PREFIX)}.{member.attrib['name']}"
        for interface in CONTRACT.findall("interface")
        for member in interface.findall(kind)
    }


IMPLIES = {
    a.attrib["id"].removeprefix(PREFIX): {
        note.text.removeprefix(PREFIX)
        for note in a.findall("annotate")
        if note.attrib["key"] == "org.freedesktop.policykit.imply" and note.text
    }
    for a in POLICY.findall("action")
}
ACTIONS = set(IMPLIES)


def without(action: str) -> set[str]:
    """``action`` and all that imply it: somebody who may any of these may it, too."""
    found = {action}
    while more := {a for a in ACTIONS - found if IMPLIES[a] & found}:
        found |= more
    return found


def nothing(w: World) -> str:
    """The root object, as it is."""
    return ROOT


def attachment(w: World) -> str:
    """Something that root attached."""
    found: str = w.attach("2-1", 0)
    return found


def hub(w: World) -> str:
    """A hub of root's, with all that it has to attach."""
    found: str = w.call(0, "AttachAll", "ssa{sv}", "pi", "2-1", "0")
    wait_until(lambda: states(w) == ["attached"], "the hub attaches nothing")
    return found


def states(w: World) -> list[str]:
    """Of every attachment."""
    return [w.get(path, ATTACHMENT, "State") for path in w.attachments()]


def another(w: World) -> str:
    """A remote that nobody needs."""
    if f"{ROOT}/remote/spare" not in w.objects():
        w.call(0, "AddRemote", "sa{sv}", "spare", "1", "address", "s", f"127.0.0.1:{w.ssh.port}")
    return ROOT


def no_other(w: World) -> str:
    """No remote of the name that will be added."""
    if f"{ROOT}/remote/new" in w.objects():
        w.call(0, "RemoveRemote", "sa{sv}", "new", "0")
    return ROOT


@dataclass(frozen=True)
class Row:
    """A call, and the actions that polkit has to grant before it does anything."""

    member: str
    needs: frozenset[str]
    args: tuple[str, ...]
    """As busctl takes them; PATH is the object of the scene, KEY the host key's fingerprint."""
    scene: Callable[[World], str] = nothing


def row(member: str, needs: str, *args: str, scene: Callable[[World], str] = nothing) -> Row:
    return Row(member, frozenset(needs.split()), args, scene)


FOREIGN = "127.0.0.1:1"
"""A remote that is not listed, and that nobody answers at."""
PERSIST = ("1", "persist", "b", "true")

ROWS = [
    row("Manager.ListLocal", "", "sa{sv}", "", "0"),
    row("Manager.ListRemote", "list", "ssa{sv}", "pi", "", "0"),
    row("Manager.ListRemote", "list use-unlisted-remote", "ssa{sv}", FOREIGN, "", "0"),
    row("Manager.Attach", "list attach", "ssa{sv}", "pi", "2-1", "0"),
    row("Manager.Attach", "list attach-input", "ssa{sv}", "pi", "1-1", "0"),
    row("Manager.Attach", "list attach manage-remotes", "ssa{sv}", "pi", "2-1", *PERSIST),
    row("Manager.Attach", "list use-unlisted-remote", "ssa{sv}", FOREIGN, "2-1", "0"),
    row("Manager.AttachAll", "list attach-input", "ssa{sv}", "pi", "2-1", "0"),
    row("Manager.AttachAll", "list attach-input manage-remotes", "ssa{sv}", "pi", "2-1", *PERSIST),
    row("Manager.Export", "export", "ssa{sv}", "pi", "1-1", "0"),
    row("Manager.Export", "export manage-remotes", "ssa{sv}", "pi", "1-1", *PERSIST),
    row("Manager.Export", "export use-unlisted-remote", "ssa{sv}", FOREIGN, "1-1", "0"),
    row("Manager.Detach", "", "sa{sv}", "all", "0"),
    row("Manager.Detach", "detach-others", "sa{sv}", "PATH", "0", scene=attachment),
    row("Manager.Detach", "detach-others", "sa{sv}", "pi/2-1", "0", scene=attachment),
    row("Manager.Detach", "detach-others", "sa{sv}", "PATH", "0", scene=hub),
    row("Manager.Unbind", "unbind", "ssa{sv}", "pi", "", "0"),
    row("Manager.Unbind", "unbind", "ssa{sv}", "", "", "0"),
    row("Manager.Unbind", "unbind detach-others", "ssa{sv}", "pi", "2-1", "0", scene=attachment),
    row("Manager.Unbind", "unbind use-unlisted-remote", "ssa{sv}", FOREIGN, "", "0"),
    row("Manager.Reset", "reset", "ssa{sv}", "pi", "2-1", "0"),
    row("Manager.Reset", "reset", "ssa{sv}", "", "1-1", "0"),
    row("Manager.Reset", "reset detach-others", "ssa{sv}", "pi", "2-1", "0", scene=attachment),
    row("Manager.Reset", "reset use-unlisted-remote", "ssa{sv}", FOREIGN, "", "0"),
    row("Manager.Preflight", "", "sa{sv}", "", "0"),
    row("Manager.Preflight", "list", "sa{sv}", "pi", "0"),
    row("Manager.AddRemote", "manage-remotes", "sa{sv}", "new", "0", scene=no_other),
    row("Manager.RemoveRemote", "manage-remotes", "sa{sv}", "spare", "0", scene=another),
    row("Manager.TrustHostKey", "manage-remotes", "ssa{sv}", "pi", "KEY", "0"),
    row("Attachment.Detach", "detach-others", "a{sv}", "0", scene=attachment),
    row("Attachment.SetOptions", "detach-others", "a{sv}", "1", "keep", "b", "true",
        scene=attachment),
    row("Attachment.SetOptions", "detach-others manage-remotes", "a{sv}", *PERSIST,
        scene=attachment),
    row("Attachment.GetStatistics", "", "a{sv}", "0", scene=attachment),
    row("Hub.Detach", "detach-others", "a{sv}", "0", scene=hub),
]  # fmt: skip
"""Every method, in each of the ways that differ in what they need."""

READABLE = {
    "Manager": "Version PublicKey VhciAvailable FreePorts",
    "Attachment": "Remote Direction Pattern RemoteBusId VendorId ProductId Name Serial Speed State "
    "LocalBusId Port DeviceNodes Keep Persist OwnerUid Hub AttachedAt RetryAt LastError",
    "Hub": "Remote Pattern State Attachments Persist OwnerUid RetryAt LastError",
    "Remote": "Name Label State OfferedHostKey LastError",
}
"""Properties that everybody may read; nobody may set any."""

HEARD = {"Remote.DevicesChanged"}
"""Signals that everybody may hear."""

EXACTLY = {f"exactly{n}": 61100 + n for n in range(len(ROWS))}
"""Somebody for each row who may do exactly what it needs, by name."""
BUT = {f"but-{action}": 61200 + n for n, action in enumerate(sorted(ACTIONS))}
"""Somebody for each action who may do everything but that, and but what implies it."""

RULES = """
polkit.addRule(function(action, subject) {
    if (action.id.indexOf("org.usbipssh1.") != 0) return polkit.Result.NOT_HANDLED;
    var exactly = %s, but = %s;
    var wanted = action.id.substring(14);
    var yes = function(may) { return may ? polkit.Result.YES : polkit.Result.NO; };
    if (exactly[subject.user]) return yes(exactly[subject.user].indexOf(wanted) >= 0);
    if (but[subject.user]) return yes(but[subject.user].indexOf(wanted) < 0);
    if (subject.user == "bob") return polkit.Result.NO;
    return polkit.Result.NOT_HANDLED;
});
""" % (
    json.dumps({f"exactly{n}": sorted(row.needs) for n, row in enumerate(ROWS)}),
    json.dumps({f"but-{action}": sorted(without(action)) for action in ACTIONS}),
)


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    with world(rules=RULES, more_users={**EXACTLY, **BUT}) as made:
        made.pi.plug("2-1", STICK)
        made.pi.plug("1-1", KEYBOARD)
        made.desk.plug("1-1", KEYBOARD)
        made.add_remote()
        made.list(0)
        yield made


@pytest.fixture
def w(shared: World) -> Iterator[World]:
    yield shared
    tidy(shared)
    shared.check_clean()


def tidy(w: World) -> None:
    w.detach_all()
    wait_until(lambda: all("/remote/" in path for path in w.objects()), "something is left")


def begin(w: World, row: Row, path: str, uid: int) -> Any:
    interface, _, member = row.member.rpartition(".")
    key = w.fingerprint() if "KEY" in row.args else ""
    args = [{"PATH": path, "KEY": key}.get(a, a) for a in row.args]
    return w.begin(
        uid, member, *args, path=ROOT if interface == "Manager" else path,
        interface=PREFIX + interface,
    )  # fmt: skip


def test_somebody_has_decided_about_every_member() -> None:
    assert {row.member for row in ROWS} == members("method")
    readable = {f"{i}.{name}" for i, names in READABLE.items() for name in names.split()}
    assert readable == members("property")
    assert members("signal") == HEARD
    # Every permission is needed for something; the last is asked for in place of several.
    assert {need for row in ROWS for need in row.needs} == ACTIONS - {"answer-for-all"}


@pytest.mark.parametrize("number", range(len(ROWS)), ids=lambda n: f"{n}-{ROWS[n].member}")
def test_a_method_by_everybody(w: World, number: int) -> None:
    row = ROWS[number]
    path = row.scene(w)
    before, there = w.objects(), w.pi.state()["log"]
    if row.needs:
        calls = {need: begin(w, row, path, BUT[f"but-{need}"]) for need in sorted(row.needs)}
        calls["all of it"] = begin(w, row, path, BOB)
        for need, call in calls.items():
            message = check_refusal(call.answer(), "AccessDenied")
            assert need == "all of it" or f"{PREFIX}{need}." in message
        # Nobody has a rule for Carol: she would be asked, and this call does not allow it.
        asked = begin(w, row, path, CAROL).answer()
        check_refusal(asked, "InteractiveAuthorizationRequired", "authenticate")
        assert w.objects() == before
        assert w.pi.state()["log"] == there
    else:
        for uid in (BOB, CAROL):
            assert begin(w, row, path, uid).answer().error == ""
    for uid in (EXACTLY[f"exactly{number}"], 0):
        answer: Answer = begin(w, row, row.scene(w) if uid == 0 else path, uid).answer()
        expected = "ConnectionFailed" if FOREIGN in row.args else ""
        assert answer.error.rpartition(".")[2] == expected, (uid, answer)
        if uid != 0:
            tidy(w)


def test_every_property_is_everybodys_to_read_and_nobodys_to_set(w: World) -> None:
    paths = {"Manager": ROOT, "Remote": f"{ROOT}/remote/pi", "Hub": hub(w)}
    paths["Attachment"] = w.attachments()[0]
    for short, names in READABLE.items():
        interface = PREFIX + short
        assert interface in (MANAGER, ATTACHMENT, HUB, REMOTE)
        values = w.get_all(paths[short], interface)
        assert set(values) == set(names.split())
        for name in names.split():
            where: Any = {"path": paths[short], "interface": STANDARD_PROPERTIES}
            reads = [w.begin(uid, "Get", "ss", interface, name, **where) for uid in (0, BOB)]
            sets = [
                w.begin(uid, "Set", "ssv", interface, name, "s", "x", **where)
                for uid in (0, ALICE, BOB)
            ]
            assert [read.value() for read in reads] == [values[name]] * 2
            for answer in sets:
                assert answer.answer().error == STANDARD + "PropertyReadOnly"
