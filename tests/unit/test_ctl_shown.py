# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line: what it takes, what it shows, and how it ends."""

from __future__ import annotations

from dataclasses import replace

import pytest

from usbipsshd.client.errors import ClientError
from usbipsshd.client.snapshot import Attachment, Device, Hub, Interface, Manager, Remote, Snapshot
from usbipsshd.ctl.arguments import parser
from usbipsshd.ctl.columns import remotes, status, table
from usbipsshd.ctl.completing import Wanted, wanted
from usbipsshd.ctl.events import Event, events
from usbipsshd.ctl.exitcodes import Exit, exit_code
from usbipsshd.ctl.instance import BadInstance, parse
from usbipsshd.ctl.tree import as_json, tree
from usbipsshd.errors import Code, UsbipError

HUB = Device("1-1", 0x2109, 0x3431, "", "USB2.0 Hub", hub=True, interfaces=(Interface(0, 9),))
RECEIVER = Device(
    "1-1.3",
    0x00DA,
    0x8510,
    "Telink",
    "Wireless Receiver",
    interfaces=(
        Interface(0, 3, 1, 2, "usbhid", "mouse", ("input/event5", "input/mouse0", "hidraw0")),
        Interface(1, 3, 1, 1, "usbhid", "kbd", ("input/event6", "hidraw1")),
    ),
)
STICK = Device(
    "2-1",
    0x46F4,
    1,
    product="Stick",
    state="attached",
    attachment="/a/1",
    interfaces=(Interface(0, 8, 6, 0x50, "", "UMASS"),),
)
ATTACHMENT = Attachment(
    "/a/1",
    "pi",
    "46f4",
    "2-1",
    name="Stick",
    state="attached",
    local_bus_id="4-1",
    device_nodes=("/dev/sda",),
)


def test_the_tree_is_the_original_s() -> None:
    assert tree([HUB, RECEIVER], {}) == [
        "1-1  2109:3431  USB2.0 Hub",
        "  1-1.3  00da:8510  Telink  Wireless Receiver",
        "      :1.0 030102  mouse  [usbhid] event5 mouse0 hidraw0",
        "      :1.1 030101  kbd    [usbhid] event6 hidraw1",
    ]


def test_a_device_without_its_hub_is_no_child() -> None:
    deep = replace(RECEIVER, busid="1-10.3", interfaces=())
    assert tree([HUB, deep], {})[1] == "1-10.3  00da:8510  Telink  Wireless Receiver"


def test_what_is_attached_or_exported_says_so() -> None:
    exported = replace(RECEIVER, state="exported", interfaces=())
    assert tree([STICK, exported], {"/a/1": ATTACHMENT}) == [
        "2-1  46f4:0001  Stick  (attached as 4-1)",
        "    :1.0 080650  UMASS  []",
        "1-1.3  00da:8510  Telink  Wireless Receiver  (exported)",
    ]
    assert tree([STICK], {})[0].endswith("(attached)")


def test_json_has_the_contract_s_names() -> None:
    (stick, receiver) = as_json([STICK, RECEIVER])
    assert stick["vendor-id"] == 0x46F4
    assert stick["attachment"] == "/a/1"
    assert "attachment" not in receiver
    interfaces = receiver["interfaces"]
    assert isinstance(interfaces, list)
    assert interfaces[1]["class"] == 3
    assert interfaces[1]["nodes"] == ["input/event6", "hidraw1"]


def clock(microseconds: int) -> str:
    return f"at {microseconds}"


def test_status_says_what_is_where_and_what_is_wrong() -> None:
    waiting = Attachment(
        "/a/2",
        "bench",
        "1-1",
        "1-1",
        name="Probe",
        state="waiting",
        keep=True,
        retry_at=7,
        last_error=("org.usbipssh1.Error.DeviceFailed", "It was unplugged from bench."),
    )
    hub = Hub("/h/1", "pi", "", "attached", ("/a/1",), persist=True)
    assert status(Snapshot(attachments=(ATTACHMENT, waiting), hubs=(hub,)), clock) == [
        "HUB  PATTERN     STATE     DEVICES  LAST ERROR",
        "pi   everything  attached  1        -",
        "",
        "REMOTE  DEVICE  NAME   STATE                         HERE  NODES",
        "pi      2-1     Stick  attached                      4-1   /dev/sda",
        "bench   1-1     Probe  waiting, next try at 7, kept  -     -",
        "bench/1-1: It was unplugged from bench.",
    ]
    assert status(Snapshot(), clock) == ["Nothing is attached."]


EXPORT = Attachment(
    "/a/3",
    "bench",
    "1-2",
    "5-1",
    name="Probe",
    state="attached",
    local_bus_id="1-2",
    device_nodes=("/dev/ttyUSB0",),
    direction="export",
)


def test_status_has_exports_apart() -> None:
    assert status(Snapshot(attachments=(ATTACHMENT, EXPORT)), clock) == [
        "REMOTE  DEVICE  NAME   STATE     HERE  NODES",
        "pi      2-1     Stick  attached  4-1   /dev/sda",
        "",
        "EXPORTED  TO     NAME   STATE     THERE  NODES THERE",
        "1-2       bench  Probe  attached  5-1    /dev/ttyUSB0",
    ]
    lost = replace(EXPORT, state="waiting", remote_bus_id="", last_error=("x.Y", "Unplugged."))
    assert status(Snapshot(attachments=(lost,)), clock)[-1] == "1-2 to bench: Unplugged."


def test_what_happens_to_an_export_is_told_by_the_bus_id_here() -> None:
    there = Snapshot(present=True, manager=Manager(version="1"))
    (one,) = events(there, replace(there, attachments=(EXPORT,)))
    assert one.text == "1-2 of this machine (Probe) is attached as 5-1 at bench /dev/ttyUSB0"
    assert (one.busid, one.direction) == ("1-2", "export")
    (gone,) = events(replace(there, attachments=(EXPORT,)), there)
    assert (gone.kind, gone.busid, gone.direction) == ("attachment-gone", "1-2", "export")


def test_the_tree_says_where_a_device_is_exported_to() -> None:
    device = replace(STICK, busid="1-2", state="exported", attachment="/a/3")
    assert tree([device], {"/a/3": EXPORT})[0].endswith("(exported to bench)")
    there = replace(device, busid="5-1", state="available")
    assert tree([there], {"/a/3": EXPORT})[0].endswith("(this machine's 1-2)")
    assert tree([device], {})[0].endswith("(exported)")


def test_tables() -> None:
    assert table(("A", "B"), []) == []
    assert remotes([Remote("/r/pi", "pi", "", "idle")]) == [
        "REMOTE  STATE  LABEL  LAST ERROR",
        "pi      idle   -      -",
    ]


def kinds(found: list[Event]) -> list[str]:
    return [event.kind for event in found]


def test_what_happened_between_two_snapshots() -> None:
    there = Snapshot(present=True, manager=Manager(version="1"))
    assert kinds(events(Snapshot(), there)) == ["daemon-there"]
    assert kinds(events(there, Snapshot())) == ["daemon-gone"]
    assert events(there, there) == []
    remote = Remote("/r/pi", "pi", state="unreachable", last_error=("x.ConnectionFailed", "No."))
    (told,) = events(there, replace(there, remotes=(remote,)))
    assert (told.kind, told.remote, told.state) == ("remote-state", "pi", "unreachable")
    assert told.text == "pi is unreachable: No."
    attached = replace(there, attachments=(ATTACHMENT,))
    (told,) = events(there, attached)
    assert told.text == "2-1 of pi (Stick) is attached as 4-1 /dev/sda"
    assert events(attached, replace(attached, attachments=(replace(ATTACHMENT, keep=True),))) == []
    (told,) = events(attached, there)
    assert (told.kind, told.path, told.busid) == ("attachment-gone", "/a/1", "2-1")
    hub = Hub("/h/1", "pi")
    with_hub = replace(there, hubs=(hub,))
    assert kinds(events(there, with_hub)) == ["hub-state"]
    assert kinds(events(with_hub, there)) == ["hub-gone"]


def test_every_error_of_the_contract_has_an_exit_status() -> None:
    for code in Code:
        if code in (Code.CANCELLED, Code.FAILED, Code.NOT_SUPPORTED, Code.UNKNOWN_OBJECT):
            continue
        name = UsbipError(code, "x").dbus_name
        assert exit_code(ClientError(name, "x")) not in (Exit.OK, Exit.FAILED), code
    assert exit_code(ClientError("org.usbipssh1.Error.Failed", "x")) is Exit.FAILED
    spawn = "org.freedesktop.DBus.Error.Spawn.ChildExited"
    assert exit_code(ClientError(spawn, "x")) is Exit.DAEMON


def test_the_words() -> None:
    words = parser().parse_args(["keep", "pi", "046d:c31c", "--expect", "46d:c31c"])
    assert (words.keep, words.persist, words.expect) == (True, False, (0x046D, 0xC31C))
    assert not parser().parse_args(["attach", "pi", "x"]).keep
    assert parser().parse_args(["list"]).remote is None


@pytest.mark.parametrize(
    "words",
    [[], ["attach"], ["list", "--jsn"], ["attach", "pi", "x", "--expect", "stick"], ["remote"]],
)
def test_wrong_words(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(words)
    assert ended.value.code == Exit.USAGE
    assert "usage: usbipsshctl" in capsys.readouterr().err


def test_help_fits_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--help"], ["attach", "--help"]):
        with pytest.raises(SystemExit):
            parser().parse_args(words)
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) <= 34
        assert max(map(len, lines)) <= 100


@pytest.mark.parametrize(
    ("instance", "what"),
    [
        ("pi-Telink", ("pi", "Telink")),
        ("pi-1-1.3", ("pi", "1-1.3")),
        ("pi/1-1.3", ("pi", "1-1.3")),
        ("lab-pi/046d:c31c", ("lab-pi", "046d:c31c")),
        ("root@host:22/Ultra Fit", ("root@host:22", "Ultra Fit")),
    ],
)
def test_a_unit_s_instance_names_remote_and_pattern(instance: str, what: tuple[str, str]) -> None:
    assert parse(instance) == what


@pytest.mark.parametrize("instance", ["", "pi", "pi/", "/1-1", "-1-1", "pi-"])
def test_an_instance_that_names_nothing(instance: str) -> None:
    with pytest.raises(BadInstance, match="systemd-escape"):
        parse(instance)


def test_what_may_be_completed() -> None:
    def kind(*words: str) -> tuple[str, str]:
        found = wanted(words)
        assert found.words == {}
        return found.kind, found.remote

    assert set(wanted([""]).words) >= {"list", "attach", "remote", "key"}
    assert "unit" not in wanted([""]).words
    assert set(wanted(["remote", ""]).words) == {"list", "add", "remove", "trust"}
    assert set(wanted(["--no-ask", "list", "-"]).words) == {
        "--help", "--json", "--ssh-agent", "--no-ssh-agent",
    }  # fmt: skip
    assert kind("list", "") == ("remote", "")
    assert kind("attach", "--keep", "pi", "2") == ("pattern", "pi")
    assert kind("detach", "pi/1-1", "") == ("target", "")
    assert kind("remote", "trust", "") == ("name", "")
    assert kind("attach", "--expect", "") == ("", "")
    assert kind("list", "pi", "1-1", "") == ("", "")
    assert kind("key", "") == ("", "")
    assert wanted(["nonsense", ""]) == Wanted({})
