# SPDX-License-Identifier: GPL-3.0-or-later
"""usbipsshctl against the real daemon, as people and scripts use it."""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from fakekernel import HUB, KEYBOARD, STICK
from integration.otherremotes import listed, other_sshd
from integration.world import ALICE, ATTACHMENT, BOB, CAROL, LONG, World, wait_until, world

SECONDS = 60.0
PORTS = {"2-1": STICK, "1-1": HUB, "1-1.3": KEYBOARD}


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    with world() as made:
        made.add_remote()
        yield made


@pytest.fixture
def w(shared: World) -> Iterator[World]:
    for busid, device in PORTS.items():
        shared.pi.plug(busid, device)
    yield shared
    shared.detach_all()
    shared.check_clean()
    shared.unplug_all()


def line(w: World, uid: int, *words: str) -> tuple[list[str], dict[str, str]]:
    command = [
        # Tests that run in the background of a shell have SIGINT ignored, and hand that down.
        "env", "--default-signal=INT",
        "setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups",
        "/usr/bin/python3" if uid else sys.executable, "-m", "usbipsshd.ctl", *words,
    ]  # fmt: skip
    environment = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(w.tree),
        "PYTHONDONTWRITEBYTECODE": "1",
        "DBUS_SYSTEM_BUS_ADDRESS": w.bus.address,
        "LC_ALL": "C.UTF-8",
    }
    return command, environment


def ctl(w: World, *words: str, uid: int = ALICE) -> Done:
    command, environment = line(w, uid, *words)
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=SECONDS, check=False, cwd="/",
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return Done(done.returncode, done.stdout, done.stderr)


class Running:
    """usbipsshctl while it runs."""

    def __init__(self, w: World, *words: str, notify: str = "") -> None:
        command, environment = line(w, ALICE, *words)
        if notify:
            environment["NOTIFY_SOCKET"] = notify
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, cwd="/",
        )  # fmt: skip
        self._read = b""

    def line(self) -> str:
        """The next line that it prints, without its end."""
        assert self.process.stdout is not None
        end = time.monotonic() + SECONDS
        while b"\n" not in self._read:
            left = max(0.0, end - time.monotonic())
            ready, _, _ = select.select([self.process.stdout], [], [], left)
            data = os.read(self.process.stdout.fileno(), 65536) if ready else b""
            assert data, f"no more than {self._read!r}"
            self._read += data
        text, _, self._read = self._read.partition(b"\n")
        return text.decode()


@contextlib.contextmanager
def running(w: World, *words: str) -> Iterator[Running]:
    made = Running(w, *words)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.communicate(timeout=SECONDS)


def test_list_is_a_tree(w: World) -> None:
    done = ctl(w, "list", "pi")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    tops = [text.split()[0] for text in lines if re.match(r"\s*\d", text)]
    assert tops == ["1-1", "1-1.3", "2-1"]
    assert next(text for text in lines if "1-1.3" in text).startswith("  1-1.3  ")
    keyboard = lines[2]
    assert re.fullmatch(r"      :1.0 030101  kbd  \[usbhid\] hidraw\d+ event\d+", keyboard), (
        keyboard
    )
    assert ctl(w, "list", "pi", "0781").out.startswith("2-1  0781:5581  ")


def test_list_as_json(w: World) -> None:
    found = json.loads(ctl(w, "list", "pi", "--json").out)
    assert [device["busid"] for device in found] == ["1-1", "1-1.3", "2-1"]
    assert found[2]["vendor-id"] == 0x0781


def test_list_alone_asks_everybody_and_one_that_fails_stops_nobody(w: World) -> None:
    w.call(0, "AddRemote", "sa{sv}", "dead", "1", "address", "s", "root@127.0.0.1:1")
    try:
        done = ctl(w, "list")
        assert "This machine:" in done.out
        assert "pi:\n  1-1" in done.out
        assert done.err.startswith("usbipsshctl: ")
        assert "dead" in done.err
        assert done.code == 4
        # Whose refusal it is.
        assert {t.split()[1] for t in ctl(w, "list", uid=BOB).err.splitlines()} == {"dead:", "pi:"}
        found = json.loads(ctl(w, "list", "--json").out)
        assert set(found) == {".", "pi"}
    finally:
        w.call(0, "RemoveRemote", "sa{sv}", "dead", "0")


def test_attach_status_detach(w: World) -> None:
    assert ctl(w, "status").out == "Nothing is attached.\n"
    done = ctl(w, "attach", "pi", "SanDisk", "--expect", "0781:5581")
    assert done.code == 0, done.err
    assert re.fullmatch(r"pi/2-1 is \d+-\d+ here  /dev/sd\w.*\n", done.out), done.out
    told = ctl(w, "status").out
    assert re.search(r"^pi +2-1 +.* attached +\d+-\d+ +/dev/sd", told, re.MULTILINE), told
    assert "(attached as " in ctl(w, "list", "pi", "2-1").out
    (one,) = json.loads(ctl(w, "status", "--json").out)["attachments"]
    assert one["remote_bus_id"] == "2-1"
    assert not one["keep"]
    again = ctl(w, "attach", "pi", "2-1")
    assert again.code == 5
    assert "already" in again.err
    assert ctl(w, "detach", "pi/2-1").code == 0
    gone = ctl(w, "detach", "pi/2-1")
    assert gone.code == 5
    assert gone.err == "usbipsshctl: 2-1 of pi is not attached here.\n"


def test_export_status_detach(w: World) -> None:
    w.desk.plug("1-4", STICK)
    try:
        done = ctl(w, "export", "--keep", "pi", "SanDisk", "--expect", "0781:5581")
        assert done.code == 0, done.err
        assert re.fullmatch(r"1-4 is \d+-\d+ at pi  /dev/sd\w.*\n", done.out), done.out
        told = ctl(w, "status").out
        assert re.search(r"^1-4 +pi +.* attached, kept +\d+-\d+ +/dev/sd", told, re.MULTILINE)
        assert "(exported to pi)" in ctl(w, "list", ".", "1-4").out
        (one,) = json.loads(ctl(w, "status", "--json").out)["attachments"]
        assert (one["direction"], one["local_bus_id"]) == ("export", "1-4")
        completed = ctl(w, "complete", "--", "export", "pi", "").out.split("\t")
        assert completed[0] == "1-4"
        assert "1-4\t" in ctl(w, "complete", "--", "detach", "").out
        assert ctl(w, "export", "pi", "1-4").code == 5
        assert ctl(w, "detach", "1-4").code == 0
        assert ctl(w, "status").out == "Nothing is attached.\n"
        with running(w, "export", "--wait", "pi", "1-4") as held:
            assert held.line().startswith("1-4 is ")
            held.process.send_signal(signal.SIGINT)
            assert held.process.wait(SECONDS) == 0
        assert w.desk.state()["devices"]["1-4"]["driver"] == "usb"
    finally:
        w.desk.unplug("1-4")


def test_reset_and_find(w: World) -> None:
    assert ctl(w, "reset", "pi", "SanDisk") == Done(0, "2-1\n", "")
    assert ctl(w, "attach", "pi", "2-1").code == 0
    assert ctl(w, "reset", "pi", "2-1").out == "2-1\n"
    assert " attached " in ctl(w, "status").out
    assert ctl(w, "reset", "pi", "9-9").code == 5
    assert ctl(w, "find", "pi", "SanDisk") == Done(0, "2-1\n", "")
    nowhere = "usbipsshctl: There is no USB device at pi that matches.\n"
    assert ctl(w, "find", "pi", "9-9") == Done(5, "", nowhere)
    many = ctl(w, "find", "pi", "0")
    assert (many.code, many.out) == (5, "")
    assert "3 devices of pi match: 1-1, 1-1.3, 2-1." in many.err


def test_keep_and_all(w: World) -> None:
    assert ctl(w, "keep", "pi", "2-1").code == 0
    assert "kept" in ctl(w, "status").out
    done = ctl(w, "attach", "--all", "pi", "SanDisk")
    assert done.code == 0, done.err
    assert re.search(r"^pi +SanDisk +attached", ctl(w, "status").out, re.MULTILINE)
    assert ctl(w, "detach", "all").out.startswith("1 ")
    assert ctl(w, "attach", "--all", "--expect", "1:1", "pi").code == 2


def test_refusals_have_a_sentence_and_a_status(w: World) -> None:
    for forbidden in (["list", "pi"], ["attach", "pi", "2-1"], ["remote", "add", "other"]):
        done = ctl(w, *forbidden, uid=BOB)
        assert (done.code, done.out) == (3, ""), done
        assert re.fullmatch(r"usbipsshctl: [A-Z][^\n]*\.\n", done.err), done.err
    wrong: dict[tuple[str, ...], int] = {
        ("attach", "pi", "9-9"): 5,
        ("export", "pi", "9-9"): 5,
        ("remote", "add", "x", "a b"): 2,
        ("attach", "pi", "2-1", "--expect", "1:1"): 5,
        ("list", "-o", "pi"): 2,
        ("list", "pi:x"): 2,
        ("list", "root@127.0.0.1:1"): 4,
    }
    for words, code in wrong.items():
        done = ctl(w, *words)
        assert (done.code, done.out) == (code, ""), (words, done)
    # Nothing was there that could have been unplugged, and an address is no name.
    assert ctl(w, "attach", "pi", "9-9").err.startswith("usbipsshctl: pi has no device at 9-9 now;")
    assert ctl(w, "export", "pi", "9-9").err.startswith(
        "usbipsshctl: This machine has no device at"
    )
    assert ctl(w, "remote", "add", "x", "a b").err.startswith("usbipsshctl: An address is ")
    nothing = ctl(w, "list", "pi", "Nikon")
    assert (nothing.code, nothing.out) == (0, "")
    assert nothing.err == "usbipsshctl: There is no USB device at pi that matches.\n"


def test_remotes(w: World) -> None:
    added = ctl(w, "remote", "add", "bench", "root@127.0.0.1:1", "--label", "Bench")
    assert added.code == 0, added.err
    assert added.out.splitlines()[-1] == ctl(w, "key").out.strip()
    assert added.out.splitlines()[-1].startswith("ssh-ed25519 ")
    assert "authorized_keys of root:" in added.out
    listed = ctl(w, "remote", "list").out
    assert re.search(r"^bench +idle +Bench", listed, re.MULTILINE), listed
    assert ctl(w, "remote", "remove", "bench").code == 0
    assert "bench" not in ctl(w, "remote", "list").out
    assert ctl(w, "remote", "remove", "bench").code == 4
    wrong = ctl(w, "remote", "trust", "pi", "SHA256:" + "A" * 43)
    assert wrong.code == 4
    assert ctl(w, "remote", "trust", "pi").out == "The host key of pi is trusted already.\n"


def test_the_doctor_looks_at_both_machines_and_changes_neither(w: World) -> None:
    done = ctl(w, "doctor", "pi")
    assert (done.code, done.err) == (0, ""), done
    lines = done.out.splitlines()
    for text in (
        "ok       vhci-hcd is loaded.",
        "ok       pi lets this machine in.",
        "ok       The login on pi is root there.",
        "ok       pi has a program that can connect a socket.",
        "ok       The ssh server on pi forwards sockets.",
        # There is no logind here.
        "warning  This machine cannot sleep while a device is attached: "
        "logind does not wait for usbipsshd.",
    ):
        assert text in lines, done.out
    found = {one["id"]: one for one in json.loads(ctl(w, "doctor", "pi", "--json").out)}
    assert set(found) >= {"module", "ports-hs", "ports-ss", "connection", "root", "names"}
    assert found["names"]["machine"] == "there"
    # Twice the same: what was tried out is not in the way of another try.
    assert found["forwarding"]["ok"] == "ok"
    # This machine alone needs nobody's leave.
    assert ctl(w, "doctor", uid=BOB).code == 0
    assert ctl(w, "doctor", "pi", uid=BOB).code == 3
    w.call(0, "AddRemote", "sa{sv}", "dead", "1", "address", "s", "root@127.0.0.1:1")
    try:
        dead = ctl(w, "doctor", "dead")
        assert dead.code == 1
        assert "PROBLEM  dead cannot be reached" in dead.out
    finally:
        w.call(0, "RemoveRemote", "sa{sv}", "dead", "0")


@pytest.mark.parametrize(
    ("config", "hidden", "code", "says"),
    [
        (["DisableForwarding yes"], (), 1, "PROBLEM  The ssh server on strict refuses"),
        # OpenSSH's then forwards no unix socket either.
        (["AllowTcpForwarding local"], (), 1, "PROBLEM  The ssh server on strict refuses"),
        (["AllowTcpForwarding remote"], (), 0, "ok       The ssh server on strict forwards"),
        (["AllowStreamLocalForwarding no"], (), 0, "ok       The ssh server on strict forwards"),
    ],
)
def test_the_doctor_tries_what_the_ssh_server_forwards(
    w: World, config: list[str], hidden: tuple[str, ...], code: int, says: str
) -> None:
    with other_sshd(w, config=config, hide=hidden) as ports, listed(w, "strict", ports[0]):
        done = ctl(w, "doctor", "strict")
        assert (done.code, says in done.out) == (code, True), done


def test_unbind_and_this_machine(w: World) -> None:
    done = ctl(w, "unbind", "pi", "")
    assert (done.code, done.out) == (0, "")
    assert ctl(w, "list", ".").code == 0
    assert ctl(w, "unbind", ".").code == 0


@pytest.mark.parametrize("more", [(), ("--all",)])
def test_wait_detaches_at_the_end_however_it_ends(w: World, more: tuple[str, ...]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        with running(w, "attach", "--wait", *more, "pi", "2-1") as process:
            assert process.line().startswith("Whatever matches" if more else "pi/2-1 is ")
            w.desk.wait(lambda s: s["ports"] != [])
            process.process.send_signal(number)
            code = process.process.wait(SECONDS)
            assert code == (0 if number is not signal.SIGKILL else -9)
        wait_until(lambda: w.attachments() == [], "it is still attached", SECONDS)
        wait_until(lambda: "/hub/" not in " ".join(w.objects()), "its hub is there", SECONDS)


def test_wait_ends_when_the_device_goes(w: World) -> None:
    with running(w, "attach", "--wait", "pi", "2-1") as process:
        assert process.line().startswith("pi/2-1 is ")
        w.pi.unplug("2-1")
        assert process.process.wait(SECONDS) == 5


def test_what_is_waited_for_outlives_the_daemon_s_restart(w: World) -> None:
    with running(w, "keep", "--wait", "pi", "2-1") as process:
        assert process.line().startswith("pi/2-1 is ")
        w.stop_daemon(signal.SIGKILL)
        w.start_daemon()
        # It is bound to its caller again, or has ended: it never stays behind.
        wait_until(
            lambda: process.process.poll() is not None or w.attachments() != [],
            "neither one nor the other",
            SECONDS,
        )
        process.process.send_signal(signal.SIGTERM)
        process.process.wait(SECONDS)
    wait_until(lambda: w.attachments() == [], "it is still attached", SECONDS)


class Unit(Running):
    """What usbipssh@.service runs, with the socket of a systemd that listens."""

    def __init__(self, w: World, instance: str) -> None:
        self.told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        path = w.folder / "notify-unit"
        path.unlink(missing_ok=True)
        self.told.bind(str(path))
        path.chmod(0o666)
        self.told.settimeout(SECONDS)
        super().__init__(w, "--no-ask", "unit", "--", instance, notify=str(path))

    def hears(self, state: str) -> None:
        while not self.told.recv(4096).decode().startswith(state):
            pass


def test_a_unit_is_ready_with_its_device_and_keeps_it(w: World) -> None:
    unit = Unit(w, "pi/SanDisk Ultra")
    try:
        unit.hears("READY=1")
        (path,) = w.attachments()
        assert w.get(path, ATTACHMENT, "Keep") is True
        w.pi.unplug("2-1")
        unit.hears("STATUS=waiting")
        w.pi.plug("2-1", STICK)
        unit.hears("STATUS=attached ")
        unit.process.send_signal(signal.SIGTERM)
        assert unit.process.wait(SECONDS) == 0
        assert w.attachments() == []
    finally:
        unit.process.kill()
        unit.process.communicate(timeout=SECONDS)
        unit.told.close()


def test_a_unit_whose_device_is_detached_is_done(w: World) -> None:
    unit = Unit(w, "pi-2-1")
    try:
        unit.hears("READY=1")
        assert ctl(w, "detach", "pi/2-1").code == 0
        unit.hears("STOPPING=1")
        assert unit.process.wait(SECONDS) == 0
    finally:
        unit.process.kill()
        unit.process.communicate(timeout=SECONDS)
        unit.told.close()
    assert ctl(w, "unit", "pi").code == 2


def test_monitor_tells_what_happens(w: World) -> None:
    with running(w, "monitor") as people, running(w, "monitor", "--json") as programs:
        # What there is comes first; from then on it listens.
        assert people.line().endswith("usbipsshd is there")
        assert json.loads(programs.line())["kind"] == "daemon-there"
        ctl(w, "attach", "pi", "2-1")
        texts: list[str] = []
        found: list[dict[str, str]] = []
        while not texts or " is attached as " not in texts[-1]:
            texts.append(people.line())
        while not found or found[-1].get("state") != "attached":
            found.append(json.loads(programs.line()))
        assert re.fullmatch(
            r"\d\d:\d\d:\d\d 2-1 of pi \(.*\) is attached as .* /dev/sd\w.*", texts[-1]
        )
        assert found[-1]["kind"] == "attachment-state"
        assert found[-1]["busid"] == "2-1"
        people.process.send_signal(signal.SIGINT)
        assert people.process.wait(SECONDS) == 130


def test_monitor_ends_when_nobody_reads_any_more(w: World) -> None:
    with running(w, "monitor") as process:
        assert process.line().endswith("usbipsshd is there")
        assert process.process.stdout is not None
        process.process.stdout.close()
        # Nothing happens meanwhile, so it learns of it without writing.
        assert process.process.wait(SECONDS) == 1
        process.process.stdout = None


def test_nobody_reads(w: World) -> None:
    command, environment = line(w, ALICE, "list", "pi")
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as out:
        done = subprocess.run(
            command, env=environment, stdout=out, stderr=subprocess.PIPE, timeout=SECONDS,
            check=False, cwd="/",
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == b""


def test_no_daemon_and_no_bus(w: World) -> None:
    assert w.stop_daemon() == 0
    done = ctl(w, "list", "pi")
    assert done.code == 7
    assert (
        done.err == "usbipsshctl: usbipsshd is not installed here, or cannot be started; "
        "journalctl -u usbipsshd says why.\n"
    )
    assert ctl(w, "status").out == "Nothing is attached.\n"
    command, environment = line(w, ALICE, "status")
    environment["DBUS_SYSTEM_BUS_ADDRESS"] = "unix:path=/nowhere"
    nowhere = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False,
        cwd="/",
    )  # fmt: skip
    assert (nowhere.returncode, nowhere.stdout) == (7, "")
    assert "bus" in nowhere.stderr


class OnTerminal:
    """usbipsshctl on a terminal."""

    def __init__(self, w: World, *words: str, uid: int = ALICE) -> None:
        command, environment = line(w, uid, *words)
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *command], env={**environment, "TERM": "xterm"}, stdin=theirs,
            stdout=theirs, stderr=theirs, cwd="/",
        )  # fmt: skip
        os.close(theirs)
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self.shown = ""

    def until(self, text: str) -> None:
        end = time.monotonic() + SECONDS
        while text not in self.shown:
            ready, _, _ = select.select([self._ours], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"no {text!r} in {self.shown!r}"
            self.shown += self._decoder.decode(os.read(self._ours, 4096))

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def echoes(self) -> bool:
        """Whether what is typed is shown."""
        return bool(termios.tcgetattr(self._ours)[3] & termios.ECHO)

    def ends(self) -> int:
        with contextlib.suppress(OSError):
            while select.select([self._ours], [], [], SECONDS)[0]:
                self.shown += self._decoder.decode(os.read(self._ours, 4096))
        os.close(self._ours)
        return self.process.wait(SECONDS)


def test_where_there_is_no_agent_the_question_comes_to_the_terminal(w: World) -> None:
    on = OnTerminal(w, "list", "pi", uid=CAROL)
    on.until("AUTHENTICATING FOR org.usbipssh1.")
    on.until("Authentication is required")
    on.type("\x03")
    assert on.ends() != 0
    # Where no question may be put, there is no agent either.
    on = OnTerminal(w, "--no-ask", "list", "pi", uid=CAROL)
    assert on.ends() == 3
    assert "AUTHENTICATING" not in on.shown


def test_a_question_for_a_password_stands_alone_and_leaves_the_terminal_as_it_was(
    w: World,
) -> None:
    on = OnTerminal(w, "list", "pi", uid=CAROL)
    on.until("Password: ")
    wait_until(lambda: not on.echoes(), "what is typed is shown", SECONDS)
    on.type("\x03")
    assert on.process.wait(SECONDS) == 130
    assert on.echoes()
    on.ends()


def test_a_host_key_is_shown_and_trusted_only_with_a_yes(w: World) -> None:
    address = f"root@127.0.0.1:{w.ssh.port}"
    w.call(0, "AddRemote", "sa{sv}", "fresh", "1", "address", "s", address)
    try:
        assert ctl(w, "list", "fresh").code == 4
        for answer in ("\n", "maybe\n"):
            on = OnTerminal(w, "list", "fresh")
            on.until("Trust it? [y/N] ")
            assert w.fingerprint() in on.shown
            on.type(answer)
            assert on.ends() == 4
        on = OnTerminal(w, "list", "fresh")
        on.until("Trust it? [y/N] ")
        on.type("\x03")
        assert on.ends() == 130
        on = OnTerminal(w, "list", "fresh")
        on.until("Trust it? [y/N] ")
        on.type("y\n")
        assert on.ends() == 0
        # In colour, as it is a terminal.
        assert "\x1b[1m2-1\x1b[0m  0781:5581" in on.shown
        assert ctl(w, "list", "fresh").code == 0
    finally:
        w.call(0, "RemoveRemote", "sa{sv}", "fresh", "0")


def test_on_a_terminal_what_takes_long_says_so(w: World) -> None:
    w.pi.delay("bind 2-1", LONG)
    try:
        on = OnTerminal(w, "attach", "pi", "2-1")
        on.until("Attaching from pi … 1 s")
        w.pi.delay("bind 2-1", 0)
        assert on.ends() == 0
        assert "pi/2-1 is " in on.shown
    finally:
        w.pi.delay("bind 2-1", 0)
