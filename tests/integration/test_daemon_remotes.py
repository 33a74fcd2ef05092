# SPDX-License-Identifier: GPL-3.0-or-later
"""The list of remotes: adding, trusting, reaching, removing."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from fakekernel import SERIAL_ADAPTER, STICK
from integration.otherremotes import listed, other_sshd
from integration.recorder import recording
from integration.sshd import unused_port
from integration.world import (
    ALICE,
    ATTACHMENT,
    BOB,
    ERROR,
    NAME,
    REMOTE,
    ROOT,
    World,
    wait_until,
    world,
)

WRONG = "SHA256:" + "A" * 43


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    with world() as made:
        made.pi.plug("2-1", STICK)
        yield made


@pytest.fixture
def w(shared: World) -> Iterator[World]:
    yield shared
    shared.detach_all()
    left = shared.objects()
    if f"{ROOT}/remote/pi" in left:
        # So that one failure does not make the next ones.
        shared.call(0, "RemoveRemote", "sa{sv}", "pi", "0")
    shared.check_clean()
    assert left == []


def path_of(name: str) -> str:
    return f"{ROOT}/remote/{name}"


def test_from_adding_to_removing(w: World) -> None:
    (w.ssh.folder / "authorized_keys").write_text("")
    address = f"root@127.0.0.1:{w.ssh.port}"
    pi = path_of("pi")
    with recording(w.bus, NAME) as recorder:
        added = w.call(
            ALICE, "AddRemote", "sa{sv}", "pi", "2", "address", "s", address, "label", "s", "Shelf"
        )
        assert added == pi
        assert w.objects() == [pi]
        values = {
            "Name": "pi",
            "Label": "Shelf",
            "State": "idle",
            "OfferedHostKey": "",
            "LastError": ["", ""],
        }
        assert w.get_all(pi, REMOTE) == values

        # Nobody knows its host key yet.
        message = w.refused(
            "HostKeyUnknown", ALICE, "ListRemote", "ssa{sv}", "pi", "", "0", says="pi"
        )
        assert w.fingerprint() in message
        assert w.get_all(pi, REMOTE) == {
            **values,
            "State": "unreachable",
            "OfferedHostKey": w.fingerprint(),
            "LastError": [ERROR + "HostKeyUnknown", message],
        }

        # A fingerprint that it does not have is not trusted.
        w.refused("HostKeyMismatch", ALICE, "TrustHostKey", "ssa{sv}", "pi", WRONG, "0", says="pi")
        w.refused("HostKeyUnknown", ALICE, "ListRemote", "ssa{sv}", "pi", "", "0")
        assert w.call(ALICE, "TrustHostKey", "ssa{sv}", "pi", w.fingerprint(), "0") is None
        assert w.get(pi, REMOTE, "OfferedHostKey") == ""

        # It does not know our key yet.
        w.refused("SshAuthFailed", ALICE, "ListRemote", "ssa{sv}", "pi", "", "0", says="PublicKey")
        assert w.get(pi, REMOTE, "OfferedHostKey") == ""
        assert w.get(pi, REMOTE, "LastError")[0] == ERROR + "SshAuthFailed"
        w.authorize()
        assert [d["busid"] for d in w.list()] == ["2-1"]
        assert w.get_all(pi, REMOTE) == {**values, "State": "connected"}

        # What it holds is detached before it goes.
        attachment = w.attach("2-1")
        assert w.call(ALICE, "RemoveRemote", "sa{sv}", "pi", "0") is None
        w.check_clean()
        recorder.wait_removed(pi)
    order = [s.body[0] for s in recorder.signals if s.member == "InterfacesRemoved"]
    assert order == [attachment, pi]
    assert all(s.path == ROOT for s in recorder.signals if s.member.startswith("Interfaces"))
    states = recorder.values(pi, "State")
    assert states[:3] == ["idle", "connecting", "unreachable"]
    assert "connected" in states
    wait_until(lambda: not w.sessions(), "a session stays")

    # Its key went with it.
    w.call(ALICE, "AddRemote", "sa{sv}", "pi", "1", "address", "s", address)
    w.refused("HostKeyUnknown", ALICE, "ListRemote", "ssa{sv}", "pi", "", "0")
    w.call(ALICE, "RemoveRemote", "sa{sv}", "pi", "0")


def test_devices_changed_is_told_when_something_is_plugged_in_there(w: World) -> None:
    with other_sshd(w) as ports, listed(w, "pi", ports[0]), recording(w.bus, NAME) as recorder:
        w.list()
        w.pi.plug("1-4", SERIAL_ADAPTER)
        try:
            told = recorder.wait(
                lambda signals: next((s for s in signals if s.member == "DevicesChanged"), None)
            )
        finally:
            w.pi.unplug("1-4")
        assert told.path == path_of("pi")
        assert told.interface == REMOTE


def test_names_become_paths_as_everywhere(w: World) -> None:
    path = w.call(ALICE, "AddRemote", "sa{sv}", "bench-3.lab", "0")
    assert path == path_of("bench_2d3_2elab")
    assert w.get(path, REMOTE, "Name") == "bench-3.lab"
    w.call(ALICE, "RemoveRemote", "sa{sv}", "bench-3.lab", "0")


def test_nothing_private_is_published(w: World) -> None:
    with listed(w, "pi", w.ssh.port, "someone"):
        everything = w.bus.busctl(
            BOB, "call", NAME, ROOT, "org.freedesktop.DBus.ObjectManager", "GetManagedObjects"
        ).stdout
    assert "remote/pi" in everything
    for private in ("someone", "127.0.0.1", str(w.ssh.port), str(w.folder)):
        assert private not in everything


@pytest.mark.parametrize(
    "name",
    ["", "-oProxyCommand=x", "a b", "a/b", "../x", ".", "x" * 65, "a\nb", "\u00e9", "a@b", "a:1"],
)
def test_names_that_are_none(w: World, name: str) -> None:
    w.refused("InvalidArgs", ALICE, "AddRemote", "sa{sv}", name, "1", "address", "s", "127.0.0.1")
    w.refused("InvalidArgs", ALICE, "RemoveRemote", "sa{sv}", name, "0")
    w.refused("InvalidArgs", ALICE, "TrustHostKey", "ssa{sv}", name, WRONG, "0")
    assert w.objects() == []


ADDRESSES = [
    "-oProxyCommand=id", "root@-oProxyCommand=id", "-l@host", "host:0", "host:65536", "host:ssh",
    "a b", "host;id", "host\n", "$(id)", "`id`", "root@", "@", ":22", "a@b@c", "::1", "[::1",
    "[host]:22", "x" * 400, "host/..", "\x1b[31m", "user name@host",
]  # fmt: skip


def test_addresses_that_are_none(w: World) -> None:
    for address in ADDRESSES:
        w.refused("InvalidArgs", ALICE, "AddRemote", "sa{sv}", "x", "1", "address", "s", address)
    for remote in (*ADDRESSES, ""):
        w.refused("InvalidArgs", ALICE, "ListRemote", "ssa{sv}", remote, "", "0")
        w.refused("InvalidArgs", ALICE, "Attach", "ssa{sv}", remote, "", "0")
    assert w.objects() == []


@pytest.mark.parametrize(
    "text", ["", "SHA256:", "MD5:aa:bb", "A" * 43, "SHA256:" + "A" * 44, "SHA256:\n" + "A" * 42]
)
def test_fingerprints_that_are_none(w: World, text: str) -> None:
    with listed(w, "pi", w.ssh.port):
        w.refused("InvalidArgs", ALICE, "TrustHostKey", "ssa{sv}", "pi", text, "0", says="SHA256:")


def test_remotes_that_nobody_knows(w: World) -> None:
    w.refused("UnknownRemote", ALICE, "RemoveRemote", "sa{sv}", "nothere", "0", says="nothere")
    w.refused(
        "UnknownRemote", ALICE, "TrustHostKey", "ssa{sv}", "nothere", WRONG, "0", says="nothere"
    )
    w.refused("UnknownRemote", ALICE, "ListRemote", "ssa{sv}", "nothere", "", "0", says="nothere")


def test_a_remote_that_is_not_there(w: World) -> None:
    with unused_port() as port, listed(w, "off", port):
        w.refused("ConnectionFailed", ALICE, "ListRemote", "ssa{sv}", "off", "", "0", says="off")
        w.refused("ConnectionFailed", ALICE, "Attach", "ssa{sv}", "off", "1-1", "0", says="off")
        w.refused("ConnectionFailed", ALICE, "Unbind", "ssa{sv}", "off", "1-1", "0", says="off")
        w.refused(
            "ConnectionFailed", ALICE, "TrustHostKey", "ssa{sv}", "off", WRONG, "0", says="off"
        )
        assert w.get(path_of("off"), REMOTE, "State") == "unreachable"


def test_a_key_that_changed(w: World) -> None:
    with other_sshd(w, own_key=True) as ports, listed(w, "changed", ports[0]):
        message = w.refused(
            "HostKeyMismatch", ALICE, "ListRemote", "ssa{sv}", "changed", "", "0", says="changed"
        )
        offered = w.get(path_of("changed"), REMOTE, "OfferedHostKey")
        assert offered.startswith("SHA256:")
        assert offered in message
        assert offered != w.fingerprint()
        # Somebody who has looked at the machine may trust it all the same.
        w.call(ALICE, "TrustHostKey", "ssa{sv}", "changed", offered, "0")


def test_one_that_is_not_listed(w: World) -> None:
    with other_sshd(w) as ports:
        address = f"127.0.0.1:{ports[0]}"
        assert [d["busid"] for d in w.list(remote=address)] == ["2-1"]
        path = w.attach("2-1", ALICE, address)
        assert w.get(path, "org.usbipssh1.Attachment", "Remote") == f"root@{address}"
        assert w.call(ALICE, "Detach", "sa{sv}", f"{address}/2-1", "0") == 1
    with other_sshd(w, known=False) as ports:
        address = f"127.0.0.1:{ports[0]}"
        w.refused("HostKeyUnknown", ALICE, "ListRemote", "ssa{sv}", address, "", "0")
        w.refused("InvalidArgs", ALICE, "TrustHostKey", "ssa{sv}", address, w.fingerprint(), "0")


def etc_file(w: World, name: str, text: str | None) -> None:
    path = w.folder / f"etc/remotes.d/{name}.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    if text is None:
        path.unlink()
    else:
        path.write_text(text)


def reload(w: World) -> None:
    """What ``systemctl reload`` does, until it is done."""
    assert w.daemon is not None
    done = w.log().count("read the list of remotes again")
    w.daemon.send_signal(signal.SIGHUP)
    wait_until(lambda: w.log().count("read the list of remotes again") > done, "not reloaded")


def test_root_s_files_are_read_again(w: World) -> None:
    listed_before = w.objects()
    address = f"root@127.0.0.1:{w.ssh.port}"
    etc_file(w, "bench", f"address = '{address}'\nlabel = 'Bench'")
    etc_file(w, "wrong", "label = 'x'\naddress = ")
    with recording(w.bus, NAME) as record:
        reload(w)
        path = f"{ROOT}/remote/bench"
        assert sorted({*w.objects()} - {*listed_before}) == [path]
        assert "wrong.toml:2: " in w.log()
        w.authorize()
        w.call(0, "TrustHostKey", "ssa{sv}", "bench", w.fingerprint(), "0")
        stick = w.attach("2-1", ALICE, "bench")
        # What is attached stays, whatever becomes of the address; the next connection needs it.
        etc_file(w, "bench", "address = 'root@127.0.0.1:1'\nlabel = 'Another'")
        reload(w)
        assert w.get(stick, ATTACHMENT, "State") == "attached"
        assert w.get(path, REMOTE, "Label") == "Another"
        record.wait(lambda _: "Another" in record.values(path, "Label"))
        assert w.desk.transfer(int(w.get(stick, ATTACHMENT, "Port")), 10_000) == 10_000
        w.call(ALICE, "Detach", "sa{sv}", stick, "0")
        etc_file(w, "bench", f"address = '{address}'")
        reload(w)
        stick = w.attach("2-1", ALICE, "bench")
        # One that is listed no more has nothing here any more.
        etc_file(w, "bench", None)
        etc_file(w, "wrong", None)
        reload(w)
        assert w.objects() == listed_before
        w.pi.wait(lambda s: s["devices"]["2-1"]["driver"] == "usb")
        assert w.stop_daemon() == 0
        w.start_daemon()
        assert w.objects() == listed_before
