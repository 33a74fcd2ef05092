# SPDX-License-Identifier: GPL-3.0-or-later
"""Hostile code in a session that the daemon starts itself, where there is no systemd."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any

from integration.sessions import SESSION_UID

from usbipsshd.launcher import SpawnLauncher

PROBE = Path(__file__).parents[1] / "vm/hostile_session.py"

PROMISED = (
    "passwords",
    "what the daemon keeps",
    "a device node of its own",
    "signals to root",
    "tracing another session",
    "becoming root",
    "mounting",
    "kernel modules",
    "changing the clock or the name",
)
"""What another user without privileges does not give; the unit's sandbox is more than that."""


def test_it_is_another_user_without_any_privilege(tmp_path: Path) -> None:
    # The folders above are only their owner's.
    probe = Path("/tmp") / f"hostile-{tmp_path.name}.py"
    shutil.copyfile(PROBE, probe)
    probe.chmod(0o644)

    async def main() -> dict[str, Any]:
        command = ("/usr/bin/python3", "-I", str(probe), "1", "127.0.0.1:1")
        launcher = SpawnLauncher(str(SESSION_UID), command=command)
        async with asyncio.timeout(120), launcher.session() as channel:
            received = await channel.receive()
            assert received is not None
            packet, fds = received
            fds.close()
            return dict(packet)

    try:
        said = asyncio.run(main())
    finally:
        probe.unlink()
    assert {name: said[name] for name in PROMISED} == dict.fromkeys(PROMISED, "")
    # It has run: what everybody may, it may.
    assert said["places to write"]
