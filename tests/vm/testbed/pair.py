# SPDX-License-Identifier: GPL-3.0-or-later
"""Both machines together."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import mkdtemp

from . import accel, images
from .desk import Desk
from .host import TestbedError, say, step
from .images import Images
from .kernel import Kernel
from .pi import Pi


@dataclass(frozen=True)
class Pair:
    """Two machines that see each other, and nothing else."""

    pi: Pi
    desk: Desk
    folder: Path

    def devices_left(self) -> list[str]:
        """Devices that are still attached or exported, in words; empty when all is well."""
        return [
            f"{machine.name}: {each}"
            for machine in (self.pi, self.desk)
            for each in machine.exports_left() + machine.ports_left()
        ]

    def settled(self, look: Callable[[], list[str]], seconds: float = 60) -> list[str]:
        """What `look` still finds after it had `seconds` to become empty."""
        deadline = time.monotonic() + seconds
        while (found := look()) and time.monotonic() < deadline:
            time.sleep(0.5)
        return found

    def trouble(self) -> list[str]:
        """What either kernel complained of since it booted."""
        return [
            f"{machine.name}: {line}"
            for machine in (self.pi, self.desk)
            for line in machine.trouble()
        ]

    def stop(self) -> None:
        """Switch both off."""
        for machine in (self.pi, self.desk):
            machine.stop()


def up(folder: Path, *, tied: bool, package: Path | None = None) -> Pair:
    """Build what is missing and boot both; commands can be run when this returns.

    `tied`: the machines end with this process, however that ends.
    """
    built = images.build(package=package)
    (folder / "images.json").write_text(json.dumps(asdict(built), default=str))
    pair = Pair(Pi(folder, built), Desk(folder, built), folder)
    options = accel.accelerator(built.kernel)
    with step("booting pi and desk"):
        begin = time.monotonic()
        try:
            for machine in (pair.desk, pair.pi):
                machine.start(options, tied=tied)
            for machine in (pair.pi, pair.desk):
                machine.ready()
                say(f"{machine.name} is ready after {time.monotonic() - begin:.1f} s")
            pair.pi.wait_plugged()
        except BaseException:
            pair.stop()
            raise
    return pair


def running(folder: Path) -> Pair:
    """The pair that an earlier `up` left running in `folder`."""
    note = folder / "images.json"
    if not note.exists():
        raise TestbedError("no pair is up: run `up` first")
    known = json.loads(note.read_text())
    core = Kernel(
        known["kernel"]["release"],
        *(Path(known["kernel"][name]) for name in ("image", "initrd", "modules")),
    )
    paths = (Path(known[name]) for name in ("pi", "desk", "stick", "key"))
    built = Images(core, *paths)
    pair = Pair(Pi(folder, built), Desk(folder, built), folder)
    if not (pair.pi.running() and pair.desk.running()):
        raise TestbedError("the pair is not running any more: run `down`, then `up`")
    return pair


@contextmanager
def temporary(*, package: Path | None = None) -> Iterator[Pair]:
    """A pair that lives as long as the block."""
    folder = Path(mkdtemp(prefix="usbipsshd-vm-"))
    try:
        pair = up(folder, tied=True, package=package)
        try:
            yield pair
        finally:
            pair.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
