# SPDX-License-Identifier: GPL-3.0-or-later
"""`make demo`: the main job, for real, on two virtual machines, told line by line."""

from __future__ import annotations

import hashlib
import io
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr
from types import FrameType
from typing import Any

from vm.testbed import images, pair
from vm.testbed.desk import BUS_NAME, ROOT, CallFailed, Desk
from vm.testbed.host import TestbedError
from vm.testbed.keys import KeyEvent, key_events
from vm.testbed.pair import Pair
from vm.testbed.pi import BUSIDS, Pi
from vm.testbed.systems import stick_files

STICK, KEYBOARD = BUSIDS["stick"], BUSIDS["keyboard"]
KEYS = {"u": 22, "s": 31, "b": 48}
"""The keys that are pressed, and their codes in linux/input-event-codes.h."""
TICK_SECONDS = 10.0

_begin = time.monotonic()


class Wrong(Exception):
    """Something is not as it should be."""


def spent(seconds: float) -> str:
    """`75.2` as `1 min 15 s`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def tell(text: str = "", *, mark: str = " ") -> None:
    """A line of the story, with the seconds since it began."""
    stamp = f"{time.monotonic() - _begin:5.0f} s"
    print(f"{stamp} {mark} {text}".rstrip(), flush=True)


class Retold(io.TextIOBase):
    """Where the testbed tells what it does: its lines become part of the story."""

    def write(self, text: str) -> int:
        for line in text.splitlines():
            if line.strip():
                tell(line.removeprefix("testbed: "))
        return len(text)


def title(text: str) -> None:
    """The headline of a chapter."""
    print(flush=True)
    tell(text, mark="*")


def show(text: str) -> None:
    """Lines that a program printed."""
    for line in text.rstrip().splitlines():
        print(f"            {line}", flush=True)


def check(right: bool, good: str, bad: str) -> None:
    """Say that something is so, or raise Wrong."""
    if not right:
        raise Wrong(bad)
    tell(good, mark="+")


@contextmanager
def ticking(what: str) -> Iterator[None]:
    """Say every few seconds that something still goes on."""
    over = threading.Event()
    since = time.monotonic()

    def tick() -> None:
        while not over.wait(TICK_SECONDS):
            tell(f"... {what}, for {spent(time.monotonic() - since)} now")

    ticker = threading.Thread(target=tick, daemon=True)
    ticker.start()
    try:
        yield
    finally:
        over.set()
        ticker.join()


def table(devices: list[dict[str, Any]]) -> str:
    """Devices as lines for people."""
    rows = [("BUS ID", "VID:PID", "MBIT/S", "WHAT", "DRIVER", "NAME")]
    for device in devices:
        kinds = " ".join(dict.fromkeys(i["name"] for i in device["interfaces"]))
        drivers = " ".join(dict.fromkeys(i["driver"] for i in device["interfaces"]))
        ids = f"{device['vendor-id']:04x}:{device['product-id']:04x}"
        speed = f"{device['speed']:g}"
        rows.append((device["busid"], ids, speed, kinds, drivers, device["product"]))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def introduce(pi: Pi, desk: Desk) -> None:
    """desk's daemon and pi come to trust each other."""
    title("desk and pi are introduced, once, by desk's administrator")
    begin = time.monotonic()
    key = desk.properties(ROOT, f"{BUS_NAME}.Manager")["PublicKey"]
    tell(f"the first call on the bus started the daemon ({spent(time.monotonic() - begin)})")
    pi.authorize(key)
    tell("pi: the daemon's public key is in root's authorized_keys")
    fingerprint = pi.fingerprint()
    desk.trust("pi", "root@pi", fingerprint)
    tell(f"desk: AddRemote pi, TrustHostKey {fingerprint[:19]}...")
    check(
        pi.ssh.attempt("python3", "-c", "").code != 0,
        "pi runs sshd and has perl; there is no python3 there, and nothing of this project",
        "pi has a python3, so this would prove less than it says",
    )


def list_devices(pi: Pi, desk: Desk) -> dict[str, dict[str, str]]:
    """List, as somebody who may and as somebody who may not; pi's drivers as they are now."""
    title("alice, who is no administrator, lists the devices of pi")
    devices = desk.list_remote("alice", "pi")
    show(table(devices))
    found = {device["busid"] for device in devices}
    check({STICK, KEYBOARD} <= found, "the stick and the keyboard are there", "not all are there")
    forbidden: dict[str, Callable[[], object]] = {
        "list them": lambda: desk.list_remote("bob", "pi"),
        "attach the stick": lambda: desk.attach("bob", STICK),
    }
    for what, action in forbidden.items():
        try:
            action()
        except CallFailed as refused:
            name = refused.name.rpartition(".")[2]
            check(name == "AccessDenied", f"bob may not {what}: {name}", str(refused))
        else:
            raise Wrong(f"bob could {what}, though polkit's rules forbid it")
    return {busid: pi.interface_drivers(busid) for busid in (STICK, KEYBOARD)}


def attach(desk: Desk) -> tuple[str, str]:
    """Attach both; the stick's disk, and the keyboard's node."""
    title("alice attaches the stick and the keyboard")
    found = []
    for pattern, what, node in (
        ("46f4:0001", "the stick", "/dev/sd"),
        ("030101", "the keyboard", "/dev/input/event"),
    ):
        begin = time.monotonic()
        path = desk.attach("alice", pattern)
        found.append(desk.node(path, node))
        attachment = desk.attachment(path)
        nodes = " ".join(attachment["DeviceNodes"])
        check(
            attachment["State"] == "attached" and bool(nodes),
            f'Attach pi "{pattern}": {what} is {attachment["LocalBusId"]} here, as {nodes}'
            f" ({spent(time.monotonic() - begin)})",
            f"{what} is not attached: {attachment}",
        )
    tell("what `lsusb -t` shows on desk (bus 1 is its own; controllers without a device left out):")
    show(busy_part(desk.usb_tree()))
    tell(f"what `busctl tree {BUS_NAME}` shows:")
    show(desk.run("busctl", "--system", "--no-pager", "tree", BUS_NAME))
    stick, keyboard = found
    return stick, keyboard


def busy_part(tree: str) -> str:
    """The controllers that have a device, of what `lsusb -t` printed."""
    blocks: list[list[str]] = []
    for line in tree.splitlines():
        if line.startswith("/:"):
            blocks.append([])
        if blocks:
            blocks[-1].append(line)
    return "\n".join(line for block in blocks if len(block) > 1 for line in block)


def read_stick(desk: Desk, node: str) -> None:
    """Mount it, and compare what is on it with what was put there when it was made."""
    title("the stick is mounted on desk and read")
    begin = time.monotonic()
    with ticking("reading"), desk.mounted(node) as folder:
        sums = desk.checksums(folder)
    for name, data in stick_files().items():
        expected = hashlib.sha256(data).hexdigest()
        check(
            sums.get(name) == expected,
            f"{name}, {len(data)} bytes: SHA-256 {expected[:16]}... as it was put there",
            f"{name} has the checksum {sums.get(name)}, not {expected}",
        )
    tell(f"mounted, read and unmounted in {spent(time.monotonic() - begin)}")


def type_keys(pi: Pi, desk: Desk, node: str) -> None:
    """Press keys at pi, and see them arrive."""
    title("somebody types on the keyboard at pi")
    with key_events(desk, node) as events:
        for key, code in KEYS.items():
            begin = time.monotonic()
            pi.press(key)
            down, up = next(events, None), next(events, None)
            check(
                (down, up) == (KeyEvent(code, 1), KeyEvent(code, 0)),
                f'"{key}" is pressed at pi, and arrives in {node} on desk'
                f" ({(time.monotonic() - begin) * 1000:.0f} ms, down and up)",
                f'"{key}" did not arrive: {down}, {up}',
            )


def detach(both: Pair, drivers: Mapping[str, Mapping[str, str]]) -> None:
    """Give both back, and look at pi."""
    pi, desk = both.pi, both.desk
    title("alice detaches")
    count = desk.detach("alice", "all")
    check(count == 2, "Detach all: 2 devices were given back", f"{count} were detached, not 2")
    left = both.settled(both.devices_left)
    check(not left, "desk: no port is taken. pi: nothing is exported", "; ".join(left))
    for busid, before in drivers.items():
        now = pi.interface_drivers(busid)
        shown = ", ".join(now.values())
        check(now == before, f"pi: {busid} has its driver back: {shown}", f"{busid} has {now}")
    desk.stop_daemon()
    left = both.settled(pi.agents_left)
    check(not left, "the daemon stopped, and left no process and no file on pi", "; ".join(left))
    complaints = both.trouble()
    check(not complaints, "neither kernel complained of anything", "; ".join(complaints))


def story() -> None:
    """Everything, in order. Raises Wrong or TestbedError."""
    tell("Two virtual machines: pi has USB devices, desk will use them, over ssh alone.")
    tell("Your own USB devices are not touched. It takes 2 to 4 minutes, the first time about 5.")
    package = images.project_package()
    if package is None:
        raise TestbedError("there is no dist/usbipsshd_*.deb: run `make deb`")
    title("making what is missing, and booting Debian twice (desk with the new package)")
    with ExitStack() as machines:
        with ticking("at it"), redirect_stderr(Retold()):
            both = machines.enter_context(pair.temporary(package=package))
        tell(f"both run Debian's kernel {both.pi.run('uname', '-r').strip()}")
        introduce(both.pi, both.desk)
        drivers = list_devices(both.pi, both.desk)
        stick, keyboard = attach(both.desk)
        read_stick(both.desk, stick)
        type_keys(both.pi, both.desk, keyboard)
        detach(both, drivers)


def _interrupted(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """The whole demo; 0 if all of it worked."""
    signal.signal(signal.SIGTERM, _interrupted)
    signal.signal(signal.SIGHUP, _interrupted)
    verdict, code = "", 1
    try:
        story()
    except KeyboardInterrupt:
        verdict, code = "demo: stopped; both machines are off", 130
    except (Wrong, TestbedError) as error:
        verdict = f"demo: FAILED: {error}"
    except Exception as error:
        verdict = f"demo: FAILED: {type(error).__name__}: {error}"
    else:
        verdict, code = f"demo: everything worked, in {spent(time.monotonic() - _begin)}", 0
    print(f"\n{verdict}", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
