# SPDX-License-Identifier: GPL-3.0-or-later
"""Who the remotes are: addresses, files, and pinned host keys."""

from __future__ import annotations

import base64
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.made import HOST_KEY as KEY
from unit.made import refused

from usbipsshd.address import Address, parse_address
from usbipsshd.errors import Code, UsbipError
from usbipsshd.remotes import (
    MAX_REMOTES,
    Remote,
    RemoteStore,
    check_fingerprint,
    fingerprint,
)
from usbipsshd.sshconfig import direct

PRINT = "SHA256:PHbJTghXLr9vcDlEp0SLNsy/KY2H1bQnGIxLmoYuwxo"


@pytest.mark.parametrize(
    ("text", "address", "shown"),
    [
        ("pi", Address("root", "pi", 22), "root@pi"),
        ("pi.local", Address("root", "pi.local", 22), "root@pi.local"),
        ("usb@pi:2222", Address("usb", "pi", 2222), "usb@pi:2222"),
        ("192.0.2.7", Address("root", "192.0.2.7", 22), "root@192.0.2.7"),
        ("[2001:db8::7]", Address("root", "2001:db8::7", 22), "root@[2001:db8::7]"),
        ("u@[2001:DB8:0::7]:22", Address("u", "2001:db8::7", 22), "u@[2001:db8::7]"),
        ("u@[::1]:2200", Address("u", "::1", 2200), "u@[::1]:2200"),
        ("[fe80::1%eth0]", Address("root", "fe80::1%eth0", 22), "root@[fe80::1%eth0]"),
        ("machine$@pi", Address("machine$", "pi", 22), "machine$@pi"),
        ("a_b.c-d@x_1", Address("a_b.c-d", "x_1", 22), "a_b.c-d@x_1"),
        ("host:65535", Address("root", "host", 65535), "root@host:65535"),
    ],
)
def test_addresses(text: str, address: Address, shown: str) -> None:
    assert parse_address(text) == address
    assert str(address) == shown
    assert parse_address(shown) == address


@pytest.mark.parametrize(
    "text",
    [
        "", "-oProxyCommand=x", "root@-oProxyCommand=x", "-l@pi", "@pi", "pi@", "pi:", "pi:0",
        "pi:65536", "pi:99999", "pi:-1", "pi:٣", "pi:2 2", "2001:db8::7", "[pi]", "[]", "[::1",
        "::1]", "[::1]x", "[fe80::1%]", "[fe80::1%a b]", "[fe80::1%-o]x", "[fe80::1%../x]", "a@b@c",
        "pi\n", "pi\x00", "p i", "pi;reboot", "$(reboot)", "`x`", "pi/../x", "ssh://pi", "*", "pi?",
        "%h", "pí", "x" * 254, "u" * 33 + "@pi", "root:pw@pi", "pi-", "1u@pi", "a,b", "a|b", "!pi",
        "#pi", "@cert-authority", "|1|abc=",
    ],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    with refused(Code.INVALID_ARGS):
        parse_address(text)


@settings(max_examples=200)
@given(st.text(max_size=40) | st.text(alphabet="a1-.:[]@%_ \n", max_size=30))
def test_any_text_is_an_address_or_invalid(text: str) -> None:
    try:
        address = parse_address(text)
    except UsbipError as error:
        assert error.code is Code.INVALID_ARGS
        return
    assert parse_address(str(address)) == address
    assert not address.host.startswith("-")
    assert not address.user.startswith("-")
    assert str(address).isascii()
    assert str(address).isprintable()
    assert " " not in str(address)


class Etc:
    """A machine's folders of remotes."""

    def __init__(self, root: Path) -> None:
        self.config, self.state = root / "etc", root / "var"
        self.known = root / "ssh_known_hosts"
        (self.config / "remotes.d").mkdir(parents=True)
        self.state.mkdir()
        self.told = 0
        self.store = self.reopen()

    def reopen(self) -> RemoteStore:
        store = RemoteStore(self.config, self.state, (self.known, Path("/nonexistent")))
        store.listen(self._tell)
        store.load()
        return store

    def _tell(self) -> None:
        self.told += 1

    def file(self, name: str, text: str | bytes) -> None:
        data = text.encode() if isinstance(text, str) else text
        (self.config / "remotes.d" / name).write_bytes(data)


@pytest.fixture
def etc(tmp_path: Path) -> Etc:
    return Etc(tmp_path)


def test_files_of_roots_hand(etc: Etc) -> None:
    etc.file("pi.toml", "")
    etc.file("bench3.toml", 'address = "usb@10.0.0.3:2200"\nsudo = true\nlabel = "Bench \u202e3"')
    etc.file("notes.txt", "address = 5")
    store = etc.reopen()
    assert [r.name for r in store] == ["bench3", "pi"]
    assert store.listed("pi").address == Address("root", "pi", 22)
    bench = store.find("bench3")
    assert (bench.address, bench.sudo, bench.label) == (
        Address("usb", "10.0.0.3", 2200), True, "Bench 3",
    )  # fmt: skip
    assert bench.listed


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("bad.toml", "address = "),
        ("bad.toml", b"\xff\xfe"),
        ("bad.toml", "adress = 'typo'"),
        ("bad.toml", "address = 5"),
        ("bad.toml", "sudo = 'yes'"),
        ("bad.toml", "label = ['x']"),
        ("bad.toml", "address = '-oProxyCommand=x'"),
        ("bad.toml", "label = '" + "x" * 70000 + "'"),
        ("bad.toml", "address = " + "[" * 30000),
        ("-bad.toml", ""),
        ("b ad.toml", ""),
        (".toml", ""),
        ("bäd.toml", ""),
    ],
)
def test_a_damaged_file_costs_that_remote_alone(etc: Etc, name: str, text: str | bytes) -> None:
    etc.file("aaa.toml", "")
    etc.file(name, text)
    etc.file("zzz.toml", "")
    (etc.config / "remotes.d/folder.toml").mkdir()
    (etc.config / "remotes.d/dangling.toml").symlink_to("nowhere")
    assert [r.name for r in etc.reopen()] == ["aaa", "zzz"]


@pytest.mark.parametrize(
    ("text", "line", "about"),
    [
        ("label = 'x'\n\naddress = \n", 3, "value"),
        ("label = 'x'\nadress = 'typo'", 2, "adress"),
        ("sudo = true\n[address]\nx = 1", 2, "text"),
        ("# pi\nsudo = 'yes'", 2, "true or false"),
        ("sudo = 1", 1, "true or false"),
        ("# here\n  address = '-oProxyCommand=x'", 2, "host"),
        ("label = 'ok'\nlabel = 'again'", 2, "overwrite"),
        ("label = 'never ends", 1, ""),
        (b"# a\n# \xff", 2, "UTF-8"),
        ("x" * 70000, 0, "longer"),
    ],
)
def test_the_log_says_which_line_is_wrong(
    etc: Etc, text: str | bytes, line: int, about: str, caplog: pytest.LogCaptureFixture
) -> None:
    etc.file("bad.toml", text)
    assert list(etc.reopen()) == []
    (message,) = [r.getMessage() for r in caplog.records]
    where = f"{etc.config}/remotes.d/bad.toml" + (f":{line}: " if line else ": ")
    assert message.startswith(where)
    assert about in message
    assert message.endswith(". This remote is left out.")
    assert message.isprintable()


def test_a_file_that_others_can_write_lists_nothing(etc: Etc) -> None:
    etc.file("pi.toml", "")
    path = etc.config / "remotes.d/pi.toml"
    for mode in (0o664, 0o646):
        path.chmod(mode)
        assert list(etc.reopen()) == []
    path.chmod(0o644)
    os.chown(path, 4711, 0)
    assert list(etc.reopen()) == []


def test_reading_again_tells_what_is_gone(etc: Etc) -> None:
    etc.file("pi.toml", "")
    etc.file("bench.toml", "label = 'Bench'")
    store = etc.reopen()
    etc.told = 0
    assert store.reload() == []
    assert etc.told == 0
    bench = store.listed("bench")
    (etc.config / "remotes.d/bench.toml").unlink()
    etc.file("pi.toml", "address = 'other'")
    etc.file("new.toml", "")
    assert store.reload() == [bench]
    assert etc.told == 1
    assert [r.name for r in store] == ["new", "pi"]
    assert store.listed("pi").address.host == "other"
    # A mistake costs the remote in whose file it is, also then.
    etc.file("pi.toml", "address = ")
    assert [r.name for r in store.reload()] == ["pi"]


def test_what_was_added_is_kept(etc: Etc) -> None:
    added = etc.store.add("lab", {"address": "usb@lab:2200", "sudo": True, "label": "Das Labor"})
    etc.store.add("pi", {})
    assert etc.told == 2
    again = etc.reopen()
    assert again.listed("lab") == added
    assert again.listed("pi").address == Address("root", "pi", 22)
    folder = etc.state / "remotes.d"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert sorted(p.name for p in folder.iterdir()) == ["lab.toml", "pi.toml"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("", {}),
        ("-oProxyCommand=x", {}),
        ("../pi", {}),
        (".pi", {}),
        ("pi/x", {}),
        ("pi\n", {}),
        ("x" * 65, {}),
        ("pi", {"address": "-oProxyCommand=x"}),
        ("pi", {"address": "root@pi\nlab"}),
        ("pi", {"address": ""}),
        ("pi", {"label": "x" * 129}),
        ("pi", {"label": "a\nb"}),
        ("pi", {"label": "a\u202eb"}),
        ("taken", {}),
    ],
)
def test_what_cannot_be_added(etc: Etc, name: str, options: dict[str, object]) -> None:
    etc.file("taken.toml", "")
    store = etc.reopen()
    with refused(Code.INVALID_ARGS):
        store.add(name, options)
    assert [r.name for r in store] == ["taken"]
    assert not (etc.state / "remotes.d").exists()
    assert etc.told == 0


def test_roots_files_win_and_stay(etc: Etc) -> None:
    etc.store.add("pi", {"address": "old"})
    etc.file("pi.toml", 'address = "new"')
    store = etc.reopen()
    assert store.listed("pi").address.host == "new"
    with refused(Code.ACCESS_DENIED, "configuration"):
        store.remove("pi")
    assert store.listed("pi").address.host == "new"


def known(store: RemoteStore, remote: Remote) -> bytes:
    """The host keys that hold for a remote without any configuration."""
    return store.known_hosts(remote, direct(remote.address))


def test_removing_forgets_the_key_too(etc: Etc) -> None:
    etc.store.add("pi", {})
    etc.store.pin("pi", KEY)
    assert KEY.encode() in known(etc.store, etc.store.listed("pi"))
    etc.store.remove("pi")
    with refused(Code.UNKNOWN_REMOTE, "pi"):
        etc.store.listed("pi")
    with refused(Code.UNKNOWN_REMOTE):
        etc.store.remove("pi")
    etc.store.add("pi", {"address": "elsewhere"})
    assert KEY.encode() not in known(etc.store, etc.store.listed("pi"))


def test_a_stale_key_is_not_the_new_remotes(etc: Etc) -> None:
    (etc.state / "host-keys").mkdir()
    (etc.state / "host-keys/pi").write_text(KEY)
    added = etc.store.add("pi", {})
    assert known(etc.store, added) == b""


def test_a_full_list(etc: Etc) -> None:
    for number in range(MAX_REMOTES + 5):
        etc.file(f"r{number}.toml", "")
    store = etc.reopen()
    assert len(list(store)) == MAX_REMOTES
    with refused(Code.LIMITS_EXCEEDED):
        store.add("one-more", {})


def test_a_disk_that_cannot_be_written(etc: Etc) -> None:
    etc.state.rmdir()
    etc.state.write_text("a file")
    with refused(Code.FAILED):
        etc.store.add("pi", {})
    assert list(etc.store) == []


@pytest.mark.parametrize(
    ("text", "name", "bare"),
    [
        ("desk", "root@desk", True),
        ("desk.lan", "root@desk.lan", False),
        ("u@desk", "u@desk", False),
    ],
)
def test_what_is_not_listed_is_an_address(etc: Etc, text: str, name: str, bare: bool) -> None:
    remote = etc.store.find(text)
    assert (remote.name, remote.listed, remote.bare) == (name, False, bare)


def test_pins_are_of_one_remote_and_in_known_hosts_format(etc: Etc) -> None:
    other = KEY[:-4] + "AAA="
    for name, address in (("a", "pi"), ("a.new", "pi:2222"), ("b", "pi")):
        etc.store.add(name, {"address": address})
    etc.store.pin("a.new", other)
    etc.store.pin("a", KEY)
    etc.known.write_text("|1|hashed= ssh-rsa AAAA\n@revoked * ssh-rsa BBBB")
    rest = b"|1|hashed= ssh-rsa AAAA\n@revoked * ssh-rsa BBBB\n"
    store = etc.reopen()
    assert known(store, store.listed("a")) == f"pi {KEY}\n".encode() + rest
    assert known(store, store.listed("a.new")) == f"[pi]:2222 {other}\n".encode() + rest
    # Of another listed remote at that address, the pin says nothing; given as an address, all do.
    assert known(store, store.listed("b")) == rest
    assert known(store, store.find("root@pi")) == f"pi {KEY}\n".encode() + rest


@pytest.mark.parametrize(
    "text", ["", "nonsense", KEY + " x\n* ssh-ed25519 AAAA", "ssh-rsa " + KEY[12:]]
)
def test_a_damaged_pin_is_none(etc: Etc, text: str) -> None:
    added = etc.store.add("pi", {})
    (etc.state / "host-keys").mkdir()
    (etc.state / "host-keys/pi").write_text(text)
    assert known(etc.store, added) == b""


def test_fingerprints() -> None:
    assert fingerprint(KEY).startswith("SHA256:")
    assert check_fingerprint(fingerprint(KEY)) == fingerprint(KEY)
    assert len(fingerprint(KEY)) == len(PRINT)


@pytest.mark.parametrize(
    "line",
    ["", KEY + " comment", "ssh-rsa " + KEY[12:], "ssh-ed25519", "ssh-ed25519 !!!!",
     "ssh-ed25519 ñ",
     "ssh-ed25519  " + KEY[12:], "ssh-ed25519 ", KEY + "\n* " + KEY, "x" * 20000],
)  # fmt: skip
def test_what_is_no_public_key(etc: Etc, line: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        fingerprint(line)
    etc.store.add("pi", {})
    with pytest.raises(ValueError, match=r"."):
        etc.store.pin("pi", line)


@pytest.mark.parametrize(
    "text",
    ["", "SHA256:", PRINT + "=", PRINT[:-1], "MD5:00:11", PRINT + "\n", "SHA256:" + "-" * 43],
)
def test_what_is_no_fingerprint(text: str) -> None:
    with refused(Code.INVALID_ARGS):
        check_fingerprint(text)


@settings(max_examples=100)
@given(
    st.text(max_size=60)
    | st.binary(max_size=60).map(lambda b: "ssh-ed25519 " + base64.b64encode(b).decode())
)
def test_any_line_is_a_key_or_a_value_error(line: str) -> None:
    try:
        assert check_fingerprint(fingerprint(line))
    except ValueError:
        return
