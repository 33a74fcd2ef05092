# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may do what, by the real polkit: rules, what they are told, prompts, and no polkit at all."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator

import pytest
from fakekernel import BLUETOOTH, KEYBOARD, NETWORK, SERIAL_ADAPTER, STICK, FakeInterface
from integration.busfixtures import CHECKOUT, Agent, client_call
from integration.otherremotes import listed, other_sshd
from integration.world import (
    ALICE,
    ATTACHMENT,
    BOB,
    CAROL,
    MANAGER,
    NAME,
    ROOT,
    World,
    wait_until,
    world,
)

INTERACTIVE = 4
"""The message flag ALLOW_INTERACTIVE_AUTHORIZATION (D-Bus specification)."""

HERE = os.uname().nodename
NETWORK_DRIVER = "kernel/drivers/net/usb/r8152.ko"
SERIAL_DRIVER = "kernel/drivers/usb/serial/ftdi_sio.ko"

EXAMPLE = (CHECKOUT / "polkit/50-usbipssh1-example.rules").read_text()

# Alice may do what a rule can tell from the details alone; root answers questions.
RULES = """
polkit.addAdminRule(function(action, subject) { return ["unix-user:root"]; });
polkit.addRule(function(action, subject) {
    if (subject.user != "alice" || action.id.indexOf("org.usbipssh1.") != 0)
        return polkit.Result.NOT_HANDLED;
    var told = function(name) { return action.lookup(name); };
    // A rule can count on every detail, whatever is asked for.
    var every = ["remote", "busid", "device.vendor-id", "device.product-id", "device.classes",
                 "device.name"];
    for (var i = 0; i < every.length; i++)
        if (typeof told(every[i]) != "string") return polkit.Result.NO;
    switch (action.id.substring(14)) {
    case "list": return told("remote") == "closed" ? polkit.Result.NO : polkit.Result.YES;
    case "manage-remotes": return told("remote") == "mine" ? polkit.Result.YES : polkit.Result.NO;
    case "reset":
    case "unbind": return told("remote") == "pi" ? polkit.Result.YES : polkit.Result.NO;
    case "attach":
        return told("remote") == "pi" && told("busid") == "2-1" &&
            told("device.vendor-id") == "0781" && told("device.product-id") == "5581" &&
            told("device.classes") == "080650" && told("device.name").indexOf("SanDisk") == 0
            ? polkit.Result.YES : polkit.Result.NO;
    case "attach-input":
        return told("device.classes").split(" ").sort().join() == "030000,030101"
            ? polkit.Result.YES : polkit.Result.NO;
    case "detach-others":
        return told("device.classes").indexOf("0301") >= 0 ? polkit.Result.YES : polkit.Result.NO;
    }
    return polkit.Result.NO;
});
polkit.addRule(function(action, subject) {
    if (subject.user == "bob" && action.id == "org.usbipssh1.attach") return polkit.Result.YES;
    if (subject.user == "bob" && action.id == "org.usbipssh1.list") return polkit.Result.YES;
    if (subject.user == "bob") return polkit.Result.NO;
    if (subject.user == "carol" && action.id == "org.usbipssh1.list" &&
        action.lookup("remote") == "open") return polkit.Result.YES;
    return polkit.Result.NOT_HANDLED;
});
"""


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    with world(rules=EXAMPLE + RULES) as made:
        made.pi.plug("2-1", STICK)
        made.pi.plug("1-1", KEYBOARD)
        made.pi.plug("1-2", SERIAL_ADAPTER)
        made.pi.plug("1-3", BLUETOOTH)
        made.pi.plug("2-2", NETWORK)
        made.driver(NETWORK_DRIVER, "v0BDAp8153d*dc*dsc*dp*icFFisc*ip*in*")
        made.driver(SERIAL_DRIVER, "v0403p6001d*dc*dsc*dp*ic*isc*ip*in*")
        made.add_remote()
        made.list()
        yield made


@pytest.fixture
def w(shared: World) -> Iterator[World]:
    yield shared
    shared.detach_all()
    shared.check_clean()


def refuses(w: World, uid: int, busid: str, says: str, remote: str = "pi") -> None:
    w.refused("AccessDenied", uid, "Attach", "ssa{sv}", remote, busid, "0", says=says)
    assert w.attachments() == []


def test_rules_see_what_the_device_is(w: World) -> None:
    w.attach("2-1", ALICE)
    w.detach_all()
    w.attach("1-1", ALICE)
    w.detach_all()
    count = w.pi.state()["log"].count("bind 1-2")
    refuses(w, ALICE, "1-2", "attach")
    assert w.pi.state()["log"].count("bind 1-2") == count


@pytest.mark.parametrize("busid", ["1-1", "1-3", "2-2", "2-3"])
def test_what_can_type_or_carry_the_network_needs_more(w: World, busid: str) -> None:
    # 2-2 by its class, CDC Ethernet; 2-3 by nothing but its driver here.
    ethernet = NETWORK.interfaces[0]
    w.pi.unplug("2-2")
    w.pi.plug(
        "2-2", NETWORK.but(interfaces=(ethernet.__class__(2, 6, 0, "", nodes=("net/eth#",)),))
    )
    w.pi.plug("2-3", NETWORK)
    try:
        refuses(w, BOB, busid, "attach-input")
        w.attach("1-2", BOB)
    finally:
        w.pi.unplug("2-3")


def test_a_network_interface_in_another_setting_needs_more_too(w: World) -> None:
    both = FakeInterface(8, 6, 0x50, "usb-storage", nodes=("sd?",), alternates=((255, 255, 0),))
    w.pi.plug("2-3", NETWORK.but(interfaces=(both,)))
    w.pi.plug("2-4", NETWORK.but(interfaces=(FakeInterface(8, 6, 0x50, "usb-storage"),)))
    try:
        refuses(w, BOB, "2-3", "attach-input")
        w.attach("2-4", BOB)
        w.detach_all()
    finally:
        w.pi.unplug("2-3")
        w.pi.unplug("2-4")


def test_only_some_remotes(w: World) -> None:
    with listed(w, "closed", w.ssh.port):
        w.refused("AccessDenied", ALICE, "ListRemote", "ssa{sv}", "closed", "", "0", says="list")
        refuses(w, ALICE, "2-1", "list", remote="closed")
        # Nobody has even tried to reach it.
        assert w.get(f"{ROOT}/remote/closed", "org.usbipssh1.Remote", "State") == "idle"
    w.refused("AccessDenied", ALICE, "Unbind", "ssa{sv}", "", "", "0", says="unbind")
    w.refused("AccessDenied", ALICE, "Reset", "ssa{sv}", "", "", "0", says="reset")
    assert w.call(ALICE, "Unbind", "ssa{sv}", "pi", "", "0") == []


def test_managing_remotes(w: World) -> None:
    address = ("1", "address", "s", f"127.0.0.1:{w.ssh.port}")
    fingerprint = w.fingerprint()
    w.refused(
        "AccessDenied", ALICE, "AddRemote", "sa{sv}", "other", *address, says="manage-remotes"
    )
    w.refused("AccessDenied", BOB, "AddRemote", "sa{sv}", "mine", *address, says="manage-remotes")
    w.call(ALICE, "AddRemote", "sa{sv}", "mine", *address)
    w.refused(
        "AccessDenied",
        BOB,
        "TrustHostKey",
        "ssa{sv}",
        "mine",
        fingerprint,
        "0",
        says="manage-remotes",
    )
    w.call(ALICE, "TrustHostKey", "ssa{sv}", "mine", fingerprint, "0")
    w.refused("AccessDenied", BOB, "RemoveRemote", "sa{sv}", "mine", "0", says="manage-remotes")
    w.refused("AccessDenied", ALICE, "RemoveRemote", "sa{sv}", "pi", "0", says="manage-remotes")
    w.call(ALICE, "RemoveRemote", "sa{sv}", "mine", "0")
    assert w.objects() == [f"{ROOT}/remote/pi"]


def test_one_that_is_not_listed(w: World) -> None:
    with other_sshd(w) as ports:
        address = f"127.0.0.1:{ports[0]}"
        for uid in (ALICE, BOB):
            refuses(w, uid, "2-1", "use-unlisted-remote", remote=address)
            w.refused("AccessDenied", uid, "ListRemote", "ssa{sv}", address, "", "0")
        assert len(w.list(0, remote=address)) == 5


def test_what_others_attached(w: World) -> None:
    stick = w.attach("2-1", ALICE)
    keyboard = w.attach("1-1", 0)
    adapter = w.attach("1-2", BOB)
    for path in (stick, keyboard):
        w.refused("AccessDenied", BOB, "Detach", "sa{sv}", path, "0", says="detach-others")
    w.refused("AccessDenied", BOB, "Detach", "a{sv}", "0", path=stick, interface=ATTACHMENT)
    w.refused("AccessDenied", ALICE, "Detach", "sa{sv}", "pi/1-2", "0", says="detach-others")
    # Alice's own, and the one that the rule lets her have; Bob's stays.
    assert w.call(ALICE, "Detach", "sa{sv}", "all", "0") == 2
    assert w.attachments() == [adapter]
    assert w.call(BOB, "Detach", "sa{sv}", "all", "0") == 1


def test_unbind_of_what_others_attached(w: World) -> None:
    w.attach("1-2", BOB)
    w.refused("AccessDenied", ALICE, "Unbind", "ssa{sv}", "pi", "1-2", "0", says="detach-others")
    assert len(w.attachments()) == 1


def test_reset_of_what_others_attached(w: World) -> None:
    path = w.attach("1-2", BOB)
    since = w.get(path, ATTACHMENT, "AttachedAt")
    w.refused("AccessDenied", ALICE, "Reset", "ssa{sv}", "pi", "1-2", "0", says="detach-others")
    # Also where it is one among others: none of them is.
    done = w.pi.state()["log"].count("authorize 2-1")
    w.refused("AccessDenied", ALICE, "Reset", "ssa{sv}", "pi", "", "0", says="detach-others")
    assert w.pi.state()["log"].count("authorize 2-1") == done
    assert w.get(path, ATTACHMENT, "AttachedAt") == since


def test_the_example_rules(w: World) -> None:
    # Carol is in the group lab; bench3 is the example's remote.
    with other_sshd(w) as ports, listed(w, "bench3", ports[0]):
        assert len(w.list(CAROL, remote="bench3")) == 5
        w.attach("1-2", CAROL, "bench3")
        w.call(CAROL, "Detach", "sa{sv}", "all", "0")
        for busid in ("2-1", "1-1"):
            code = "InteractiveAuthorizationRequired"
            w.refused(code, CAROL, "Attach", "ssa{sv}", "bench3", busid, "0", says="attach")


def test_all_is_what_the_rules_let_one_detach(w: World) -> None:
    w.attach("1-1", 0)
    w.attach("2-1", 0)
    assert w.call(ALICE, "Detach", "sa{sv}", "all", "0") == 1
    (left,) = w.attachments()
    assert w.get(left, ATTACHMENT, "RemoteBusId") == "2-1"
    assert w.call(BOB, "Detach", "sa{sv}", "all", "0") == 0


def test_a_question_that_nobody_may_be_asked(w: World) -> None:
    for member, args in {
        "ListRemote": ("ssa{sv}", "pi", "", "0"),
        "Attach": ("ssa{sv}", "pi", "1-2", "0"),
        "Unbind": ("ssa{sv}", "pi", "", "0"),
        "Reset": ("ssa{sv}", "pi", "", "0"),
        "Preflight": ("sa{sv}", "pi", "0"),
        "AddRemote": ("sa{sv}", "new", "0"),
        "RemoveRemote": ("sa{sv}", "pi", "0"),
        "TrustHostKey": ("ssa{sv}", "pi", w.fingerprint(), "0"),
    }.items():
        w.refused("InteractiveAuthorizationRequired", CAROL, member, *args, says="authenticate")
    # There is no agent that could ask, even where that is allowed.
    answer = w.begin(CAROL, "ListRemote", "ssa{sv}", "pi", "", "0", interactive=True).answer()
    assert answer.error == "org.freedesktop.DBus.Error.AccessDenied"
    assert w.objects() == [f"{ROOT}/remote/pi"]


@pytest.mark.parametrize("yes", [True, False])
def test_a_question_is_asked_once(w: World, yes: bool) -> None:
    async def attach() -> tuple[str, list[tuple[str, str]]]:
        async with Agent(w.bus, CAROL, lambda _action, _text: yes) as agent:
            client = w.bus.connect(CAROL)
            await client.connect()
            answer = await client_call(
                client, NAME, ROOT, MANAGER, "Attach", "ssa{sv}", "pi", "1-1", {},
                flags=INTERACTIVE,
            )  # fmt: skip
            client.disconnect()
            return answer.error_name or "", agent.asked

    error, asked = asyncio.run(attach())
    assert len(asked) == 1
    assert error == ("" if yes else "org.freedesktop.DBus.Error.AccessDenied")
    assert len(w.attachments()) == yes
    # Nothing that a remote says of itself is in the question.
    assert "USB Keyboard" not in asked[0][1]


@pytest.mark.parametrize(
    ("member", "words", "says"),
    [
        ("AttachAll", ["pi", "nothing"], "use USB devices of pi"),
        ("Unbind", ["", ""], f"take exported USB devices back on {HERE}"),
        ("Reset", ["", ""], f"reset USB devices of {HERE}"),
        ("RemoveRemote", ["pi"], "change what this machine keeps about pi"),
    ],
)  # fmt: skip
def test_a_question_is_a_whole_sentence(w: World, member: str, words: list[str], says: str) -> None:
    async def ask() -> list[tuple[str, str]]:
        async with Agent(w.bus, CAROL, lambda _action, _text: False) as agent:
            client = w.bus.connect(CAROL)
            await client.connect()
            signature = "s" * len(words) + "a{sv}"
            await client_call(
                client, NAME, ROOT, MANAGER, member, signature, *words, {}, flags=INTERACTIVE
            )
            client.disconnect()
            return agent.asked

    ((_, text),) = asyncio.run(ask())
    assert text.endswith(says), text
    assert "$" not in text


def ask_carol(
    w: World, answer: Callable[[], bool], member: str, *words: str
) -> tuple[str, list[tuple[str, str]]]:
    """Carol's call, and what she is asked: the error's name, and the questions."""

    async def ask() -> tuple[str, list[tuple[str, str]]]:
        async with Agent(w.bus, CAROL, lambda _action, _text: answer()) as agent:
            client = w.bus.connect(CAROL)
            await client.connect()
            signature = "s" * len(words) + "a{sv}"
            got = await client_call(
                client, NAME, ROOT, MANAGER, member, signature, *words, {}, flags=INTERACTIVE
            )
            client.disconnect()
            return got.error_name or "", agent.asked

    return asyncio.run(ask())


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize(
    ("member", "name"),
    [
        *((member, "spare") for member in ("ListRemote", "AttachAll", "Unbind", "Reset")),
        *(("Attach", name) for name in ("spare", "open")),
    ],
)
def test_a_remote_that_is_removed_while_a_person_thinks(
    w: World, member: str, name: str, again: bool
) -> None:
    """Of "open" Carol may list the devices, so she is asked once the connection is there."""

    def add(port: int) -> None:
        w.call(0, "AddRemote", "sa{sv}", name, "1", "address", "s", f"root@127.0.0.1:{port}")

    def removed() -> bool:
        w.call(0, "RemoveRemote", "sa{sv}", name, "0")
        if again:
            # Another machine of the same name, which is not there.
            add(1)
        return True

    add(w.ssh.port)
    w.call(0, "TrustHostKey", "ssa{sv}", name, w.fingerprint(), "0")
    try:
        error, asked = ask_carol(w, removed, member, name, "2-1")
        assert len(asked) == 1
        assert error == "org.usbipssh1.Error.UnknownRemote"
        assert w.attachments() == []
        assert not [path for path in w.objects() if "/hub/" in path]
        assert w.pi.state()["bound"] == []
    finally:
        if f"{ROOT}/remote/{name}" in w.objects():
            w.call(0, "RemoveRemote", "sa{sv}", name, "0")


@pytest.mark.parametrize("member", ["Unbind", "Reset"])
def test_one_question_about_what_somebody_else_exports(w: World, member: str) -> None:
    w.desk.plug("1-4", SERIAL_ADAPTER)
    try:
        w.call(0, "Export", "ssa{sv}", "pi", "1-4", "0")
        error, asked = ask_carol(w, lambda: True, member, "", "1-4")
        assert (error, len(asked)) == ("", 1)
        w.detach_all()
    finally:
        w.desk.unplug("1-4")


@pytest.mark.parametrize("name", ["-oProxyCommand=x", "a\nb", "", "a b", "x" * 65])
def test_nobody_is_asked_about_what_is_no_name(w: World, name: str) -> None:
    w.refused("InvalidArgs", CAROL, "AddRemote", "sa{sv}", name, "1", "address", "s", "pi")
    w.refused("InvalidArgs", CAROL, "RemoveRemote", "sa{sv}", name, "0")
    w.refused("InvalidArgs", CAROL, "AddRemote", "sa{sv}", "new", "1", "address", "s", "a b")
    w.refused("InvalidArgs", CAROL, "AddRemote", "sa{sv}", "new", "1", "label", "s", "a\nb")
    w.refused("UnknownRemote", CAROL, "RemoveRemote", "sa{sv}", "nothere", "0")
    error, asked = ask_carol(w, lambda: True, "RemoveRemote", name)
    assert (error, asked) == ("org.freedesktop.DBus.Error.InvalidArgs", [])


def test_a_caller_that_leaves_takes_its_question_along(w: World) -> None:
    async def leave() -> None:
        async with Agent(w.bus, CAROL, lambda _action, _text: None) as agent:
            client = w.bus.connect(CAROL)
            await client.connect()
            call = asyncio.create_task(
                client_call(
                    client, NAME, ROOT, MANAGER, "Attach", "ssa{sv}", "pi", "2-1", {},
                    flags=INTERACTIVE,
                )
            )  # fmt: skip
            async with asyncio.timeout(30):
                await agent.open.wait()
                client.disconnect()
                await agent.withdrawn.wait()
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)

    asyncio.run(leave())
    assert w.attachments() == []
    wait_until(lambda: "call Attach" not in w.tasks(), "the call goes on")


def test_without_polkit_only_root_may() -> None:
    with world() as w:
        w.pi.plug("2-1", STICK)
        w.desk.plug("1-1", KEYBOARD)
        w.add_remote()
        w.polkit.stop()
        for uid in (ALICE, BOB, CAROL):
            w.refused("AccessDenied", uid, "ListRemote", "ssa{sv}", "pi", "", "0", says="polkit")
            w.refused("AccessDenied", uid, "Attach", "ssa{sv}", "pi", "2-1", "0", says="polkit")
        w.attach("2-1", 0)
        w.refused("AccessDenied", ALICE, "Detach", "sa{sv}", "pi/2-1", "0", says="polkit")
        assert w.call(BOB, "ListLocal", "sa{sv}", "", "0")
        assert w.call(0, "Detach", "sa{sv}", "pi/2-1", "0") == 1
