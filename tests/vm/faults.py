# SPDX-License-Identifier: GPL-3.0-or-later
"""What the tests of faults share: the daemon's log as it comes, a file being written, leftovers."""

from __future__ import annotations

import json
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Self

from vm.fault_table import Table
from vm.testbed.desk import BUS_NAME, Desk
from vm.testbed.host import TestbedError
from vm.testbed.pair import Pair
from vm.testbed.pi import Pi

from usbipsshd.journal import Happening

PERSON = "alice"
STICK, KEYBOARD = "2-2", "1-1"
MOUNT = "/run/testbed-mount"
DEAD_PEER_SECONDS = 15.0
"""Within which a dead peer is noticed; a session's timers add up to 12 s, an agent's to 13 s."""
STALL_SECONDS = 5.0
"""What a moment in which nothing runs on an emulated machine may add to that."""
GIVEN_BACK_SECONDS = 60.0
_MARK = "testbed-log"


def eventually(look: Callable[[], bool], seconds: float, what: str) -> float:
    """Wait until `look` says yes; the monotonic time when it did. Fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        # What was true when it was asked for counts from then.
        asked = time.monotonic()
        if look():
            return asked
        if asked > deadline:
            raise AssertionError(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.2)


@dataclass(frozen=True)
class Entry:
    """A line of the daemon's log, and when it arrived here (monotonic seconds)."""

    at: float
    text: str
    happening: str
    busid: str


class Log:
    """The daemon's journal, from the beginning of this boot on, as it comes.

    What was there before has arrived when it is made.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._entries: list[Entry] = []
        self._news = threading.Condition()
        self._open()

    def _open(self) -> None:
        self._process = self._desk.ssh.start(
            "journalctl", "-f", "-n", "all", "-o", "json",
            "--output-fields=MESSAGE,MESSAGE_ID,USBIPSSH_BUSID",
            "_SYSTEMD_UNIT=usbipsshd.service", "+", f"SYSLOG_IDENTIFIER={_MARK}",
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()
        self.catch_up()

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if not line.endswith(b"\n"):
                break  # Its machine went away in the middle of it.
            fields = json.loads(line)
            entry = Entry(
                time.monotonic(),
                str(fields.get("MESSAGE", "")),
                str(fields.get("MESSAGE_ID", "")),
                str(fields.get("USBIPSSH_BUSID", "")),
            )
            with self._news:
                self._entries.append(entry)
                self._news.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait(timeout=20)
        self._reader.join(timeout=20)
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    def again(self) -> None:
        """Follow anew, after the machine has booted anew; the former entries are forgotten."""
        self.__exit__(None, None, None)
        self._entries.clear()
        self._open()

    def catch_up(self) -> None:
        """Wait until all that was logged by now has arrived."""
        mark = f"{_MARK} {uuid.uuid4().hex}"
        # By the same way as the daemon's lines, so that it comes after them.
        entry = f"SYSLOG_IDENTIFIER={_MARK}\nMESSAGE={mark}\n"
        self._desk.run("logger", "--journald", data=entry)
        self.wait(mark, since=0.0, seconds=60)

    def texts(self, since: float) -> list[str]:
        """The lines since then, for a failed assertion."""
        with self._news:
            return [entry.text for entry in self._entries if entry.at >= since]

    def wait(
        self, what: Happening | str, busid: str = "", *, since: float, seconds: float = 60
    ) -> float:
        """Wait for a happening (of a device), or a line with some text; when it came."""

        def fits(entry: Entry) -> bool:
            if entry.at < since or (busid and entry.busid != busid):
                return False
            if isinstance(what, Happening):
                return entry.happening == what.value
            return what in entry.text

        deadline = time.monotonic() + seconds
        with self._news:
            while True:
                for entry in self._entries:
                    if fits(entry):
                        return entry.at
                if not self._news.wait(max(0.0, deadline - time.monotonic())):
                    break
        raise AssertionError(
            f"the log lacks {what} {busid} within {seconds} s: {self.texts(since)}"
        )

    def has(self, what: Happening, busid: str = "", *, since: float) -> bool:
        """Whether that happened by now."""
        self.catch_up()
        try:
            self.wait(what, busid, since=since, seconds=0)
        except AssertionError:
            return False
        return True


class Way(StrEnum):
    """How the writer ended."""

    RUNS = "runs"
    STOPPED = "stopped"
    FAILED = "failed"


_WRITER = """
import hashlib, os, sys
path, status = sys.argv[1:]
number, told = 0, "runs"
def tell():
    with open(status + ".new", "w") as out:
        print(number, told, file=out)
    os.replace(status + ".new", status)
try:
    with open(path, "wb", buffering=0) as file:
        while not os.path.exists(status + ".stop"):
            head = b"%015d\\n" % number
            file.seek(number % 2048 * 4096)
            file.write(head + (hashlib.sha512(head).digest() * 64)[:4080])
            os.fsync(file.fileno())
            number += 1
            tell()
    told = "stopped"
except OSError as error:
    told = f"failed {error}"
tell()
"""

# A block that was being written when it ended may be there or not, whole or not.
_CHECKER = """
import hashlib, sys
path, count = sys.argv[1], int(sys.argv[2])
with open("/proc/sys/vm/drop_caches", "w") as out:
    out.write("3")
wrong = []
with open(path, "rb") as file:
    for place in range(min(count, 2048)):
        number = place + (count - 1 - place) // 2048 * 2048
        head = b"%015d\\n" % number
        if place == count % 2048:
            continue
        file.seek(place * 4096)
        if file.read(4096) != head + (hashlib.sha512(head).digest() * 64)[:4080]:
            wrong.append(number)
print(f"{len(wrong)} of {count} blocks are wrong: {wrong[:10]}" if wrong else "right")
"""


class Stick:
    """The stick's file system on desk, and a program that writes numbered blocks into a file.

    Each block has a checksum and is on the stick (fsync) before it counts.
    """

    def __init__(self, desk: Desk, patience: int = 1) -> None:
        self._desk = desk
        self._patience = patience
        """How many times slower than usual it may be."""
        self._path = f"{MOUNT}/numbers"
        self._status = "/run/testbed-writer"

    def node(self, attachment: str) -> str:
        """Wait for the stick's block device; its node."""
        return self._desk.node(attachment, seconds=60 * self._patience)

    def begin(self, attachment: str) -> None:
        """Mount it and begin to write; some blocks are there when this returns."""
        self.mount(self.node(attachment))
        self._desk.shell(
            # The one before has ended, but its name may still be taken.
            "systemctl stop testbed-writer 2>/dev/null\n"
            'rm -f "$1" "$1.stop"; exec systemd-run -q --collect --unit testbed-writer'
            ' python3 -c "$2" "$3" "$1"',
            self._status, _WRITER, self._path,
        )  # fmt: skip
        self.goes_on()

    def mount(self, node: str) -> None:
        """Mount the stick; the file system mends itself from its journal."""
        self._desk.shell(
            'mkdir -p "$1" && mount "$2" "$1"', MOUNT, node, timeout=60 * self._patience
        )

    def unmount(self) -> None:
        """Unmount, also when the device is gone."""
        self._desk.shell(
            'umount "$1" 2>/dev/null || umount -l "$1"', MOUNT, timeout=120 * self._patience
        )

    def progress(self) -> tuple[int, str]:
        """How many blocks were written, and how the writer is."""
        text = self._desk.shell('cat "$1" 2>/dev/null || echo 0 runs', self._status)
        number, _, told = text.strip().partition(" ")
        return int(number), told

    def goes_on(self, blocks: int = 5, seconds: int = 60) -> None:
        """Wait until that many more blocks are written; fails if the writer ended."""
        seconds *= self._patience
        self._desk.shell(
            'now() { [ -e "$status" ] && read -r number told < "$status" || number=0 told=runs; }\n'
            'status=$1; now; wanted=$((number + $2)); i=0\n'
            'while [ "$number" -lt $wanted ]; do\n'
            '[ "$told" = runs ] || { echo "the writer $told" >&2; exit 1; }\n'
            'i=$((i + 1)); [ $i -lt $3 ] || { echo "only $number blocks" >&2; exit 1; }\n'
            "sleep 0.1; now; done",
            self._status, str(blocks), str(seconds * 10), timeout=seconds * 3,
        )  # fmt: skip

    def stop(self) -> int:
        """Stop writing, which must have gone well to the end; the number of blocks."""
        self._desk.run("touch", f"{self._status}.stop")
        eventually(lambda: self.progress()[1] != Way.RUNS, 60 * self._patience, "the writer stops")
        number, told = self.progress()
        assert told == Way.STOPPED, f"a write failed: {told}"
        return number

    def failed(self) -> int:
        """Wait until a write has failed, and unmount; how many blocks were written before."""
        eventually(lambda: self.progress()[1].startswith(Way.FAILED), 60, "the writer fails")
        self.unmount()
        return self.progress()[0]

    def check(self, count: int) -> None:
        """All of `count` blocks must be on the mounted stick."""
        path = self._path
        said = self._desk.run(
            "python3", "-c", _CHECKER, path, str(count), timeout=120 * self._patience
        ).strip()
        assert said == "right", said

    def check_again(self, attachment: str, count: int) -> None:
        """Mount it again, check the blocks and that more can be written, and unmount."""
        self.mount(self.node(attachment))
        try:
            self.check(count)
            self._desk.shell('echo more > "$1/more" && sync "$1/more"', MOUNT)
        finally:
            self.unmount()

    @contextmanager
    def written(self, attachment: str) -> Iterator[None]:
        """Write all through the block, in which nothing may fail; then check everything."""
        self.begin(attachment)
        try:
            yield
            self.goes_on()
            self.check(self.stop())
        finally:
            self._desk.run("touch", f"{self._status}.stop")
            self.unmount()


class Identity:
    """What must not change while nothing is unplugged."""

    def __init__(self, desk: Desk, attachment: str) -> None:
        self._desk = desk
        self._attachment = attachment
        self.before = self.now()

    def now(self) -> tuple[object, ...]:
        """The port, the kernel's number of the device, owner and options."""
        known = self._desk.attachment(self._attachment)
        device = known["LocalBusId"]
        number = self._desk.run("cat", f"/sys/bus/usb/devices/{device}/devnum").strip()
        names = ("State", "Port", "OwnerUid", "Keep", "Persist", "DeviceNodes", "AttachedAt")
        return (device, number, *(known[name] for name in names))

    def check(self) -> None:
        """Nothing may have changed."""
        assert self.now() == self.before


@dataclass(frozen=True)
class _Process:
    pid: int
    parent: int
    session: int
    words: str


class Remote:
    """The processes and files of ours on pi."""

    def __init__(self, pi: Pi) -> None:
        self._pi = pi
        self._native = {p.words for p in self._processes() if p.parent == 1}

    def _processes(self) -> list[_Process]:
        found = []
        for line in self._pi.run("ps", "-ww", "-eo", "pid=,ppid=,sid=,args=").splitlines():
            pid, parent, session, words = line.split(None, 3)
            found.append(_Process(int(pid), int(parent), int(session), words.strip()))
        return found

    @staticmethod
    def _agents(processes: list[_Process]) -> list[_Process]:
        return [p for p in processes if "usbipssh-agent" in p.words and p.pid == p.session]

    def _the_agent(self) -> tuple[_Process, list[_Process]]:
        """Wait for one before it to end; the one agent, and every process then."""
        processes: list[_Process] = []

        def alone() -> bool:
            processes[:] = self._processes()
            return len(self._agents(processes)) == 1

        eventually(alone, 70, "one agent runs on pi")
        (agent,) = self._agents(processes)
        return agent, processes

    def sshd(self) -> int:
        """The sshd that the one agent belongs to."""
        return self._the_agent()[0].parent

    def agent(self) -> list[int]:
        """The processes of the one agent."""
        agent, processes = self._the_agent()
        return [p.pid for p in processes if p.session == agent.pid]

    def processes(self) -> int:
        """How many processes there are that are not the kernel's."""
        return sum(1 for p in self._processes() if p.session)

    def kill(self, *pids: int) -> None:
        """SIGKILL."""
        self._pi.shell('for p; do kill -9 "$p" 2>/dev/null; done; :', *map(str, pids))

    def strays(self) -> list[str]:
        """What is there beyond one agent that serves."""
        processes = self._processes()
        agents = [p.pid for p in self._agents(processes)]
        found = [
            f"without a parent: {p.words}"
            for p in processes
            if p.parent == 1 and p.words not in self._native
            if p.session not in agents
        ]
        folders = self._pi.shell("ls -d /run/usbipssh.* /tmp/usbipssh.* 2>/dev/null || :").split()
        folders = [each for each in folders if not each.endswith(".parked")]
        if len(agents) > 1 or len(folders) > 1:
            found.append(f"more than one agent: {agents} {folders}")
        return found


@dataclass(frozen=True)
class Scene:
    """Everything a test of a fault works with."""

    pair: Pair
    pi: Pi
    desk: Desk
    remote: Remote
    stick: Stick
    log: Log
    times: Table

    def settled(self, seconds: float) -> list[str]:
        """What is still attached or exported after it had that time to end, in words."""
        return self.pair.settled(self.pair.devices_left, seconds)


def forget(desk: Desk) -> None:
    """Detach everything and everybody: what a failed test left must not fail the next one."""
    script = 'systemctl stop testbed-writer 2>/dev/null; umount -l "$1" 2>/dev/null; :'
    desk.shell(script, MOUNT, timeout=180)
    hubs = [path for path in desk.objects() if "/hub/" in path]
    for path in hubs:
        desk.detach("root", path)
    desk.detach("root", "all")


def state(desk: Desk, attachment: str) -> str:
    """An attachment's State; empty once it is gone."""
    table = desk.objects().get(attachment, {})
    return str(table.get(f"{BUS_NAME}.Attachment", {}).get("State", ""))


def reboot(machine: Desk | Pi, *, hard: bool) -> float:
    """Boot a machine anew and wait until commands can be run; when that began.

    `hard`: as with the reset button, without a word to anybody.
    """
    machine.run("sync")
    before = machine.run("cat", "/proc/sys/kernel/random/boot_id")
    machine.ssh.disconnect()
    begun = time.monotonic()
    if hard:
        with machine.qmp() as qmp:
            qmp.command("system_reset")
    else:
        # It goes down under this command's feet.
        machine.ssh.attempt("systemctl", "reboot")
        machine.ssh.disconnect()

    def booted() -> bool:
        if not machine.ssh.answers():
            return False
        try:
            return machine.ssh.attempt("cat", "/proc/sys/kernel/random/boot_id").out not in (
                "",
                before,
            )
        except TestbedError:
            return False

    eventually(booted, 200, f"{machine.name} is up again")
    machine.ready()
    return begun
