# SPDX-License-Identifier: GPL-3.0-or-later
"""A disk that is mounted here is not pulled by a click or a short command."""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakekernel import KEYBOARD, STICK
from integration.sessionbus import session_bus
from integration.test_ctl import SECONDS, Done, line
from integration.trays import tray
from integration.world import ALICE, ATTACHMENT, BOB, World, world


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    with world() as made:
        made.pi.plug("2-1", STICK)
        made.pi.plug("1-1", KEYBOARD)
        made.add_remote()
        yield made


@pytest.fixture
def w(shared: World) -> Iterator[World]:
    yield shared
    shared.detach_all()
    shared.check_clean()


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that everybody can read."""
    with tempfile.TemporaryDirectory(prefix="usbipsshd-test-") as made:
        Path(made).chmod(0o755)
        yield Path(made)


def mounted(w: World, path: str, folder: Path, place: str) -> list[str]:
    """A command that runs another one where the stick's partition is mounted on ``place``."""
    nodes = w.get(path, ATTACHMENT, "DeviceNodes")
    (part,) = (Path(node).name for node in nodes if node.endswith("1"))
    disk = folder / "block" / part.removesuffix("1")
    (disk / part).mkdir(parents=True)
    (disk / "dev").write_text("8:0\n")
    (disk / part / "dev").write_text("8:1\n")
    (disk / part / "partition").write_text("1\n")
    (folder / "block" / part).symlink_to(disk / part)
    script = (
        f"mount --bind {folder}/block /sys/class/block && mkdir -p '{place}' && "
        f"mount -t tmpfs /dev/{part} '{place}' && exec \"$@\""
    )
    return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]


def ctl(within: list[str], w: World, *words: str, uid: int = ALICE) -> Done:
    command, environment = line(w, uid, *words)
    environment["PATH"] += ":/usr/sbin:/sbin"
    done = subprocess.run(
        [*within, *command], env=environment, capture_output=True, text=True,
        timeout=SECONDS, check=False, cwd="/",
    )  # fmt: skip
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("target", ["pi/2-1", "all", "object path", "local bus id"])
def test_the_command_line_says_where_it_is_mounted(w: World, folder: Path, target: str) -> None:
    path = w.attach("2-1")
    keyboard = w.attach("1-1")
    place = f"{folder}/A Stick"
    within = mounted(w, path, folder, place)
    names = {"object path": path, "local bus id": w.get(path, ATTACHMENT, "LocalBusId")}
    refused = ctl(within, w, "detach", names.get(target, target))
    assert refused.code == 5
    assert f"SanDisk Ultra is mounted here, on {place}; unmount it first" in refused.err
    assert w.attachments() == [path, keyboard]
    # Other devices, and other people's, are none of its business.
    assert ctl(within, w, "detach", "pi/1-1").code == 0
    assert ctl(within, w, "detach", "all", uid=BOB).out.startswith("0 ")
    assert ctl(within, w, "detach", "--force", names.get(target, target)).code == 0
    assert w.attachments() == []


def test_the_tray_says_so(w: World, folder: Path) -> None:
    async def main() -> None:
        path = await asyncio.to_thread(w.attach, "2-1")
        within = mounted(w, path, folder, f"{folder}/mnt")
        with session_bus(w.bus.spawn) as session:
            async with tray(session, w, ALICE, within=within) as (shown, told):
                menu = await shown.menu_with(lambda m: m.find("Disk: SanDisk Ultra").checked)
                await shown.click(menu.find("Disk: SanDisk Ultra"))
                summary, body = await told.next("did not work")
                assert "Detaching" in summary
                assert body == f"SanDisk Ultra is mounted on {folder}/mnt; unmount it first."
                assert w.attachments() == [path]

    asyncio.run(main())
