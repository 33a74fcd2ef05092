# SPDX-License-Identifier: GPL-3.0-or-later
"""A session bus of one's own."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_CONFIG = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:path={folder}/socket</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/><allow own="*"/><allow send_destination="*"/><allow eavesdrop="false"/>
  </policy>
</busconfig>
"""
Spawn = Callable[..., subprocess.Popen[bytes]]

_LIMIT = 60.0


class SessionBus:
    """A plain bus, for any user."""

    def __init__(self, folder: Path, spawn: Spawn) -> None:
        self.folder = folder
        self._spawn = spawn
        self.address = f"unix:path={folder}/socket"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it listens."""
        read, write = os.pipe()
        try:
            self._process = self._spawn(
                ["dbus-daemon", f"--config-file={self.folder}/bus.conf", "--nofork",
                 "--nopidfile", f"--print-address={write}"],
                pass_fds=[write], stderr=subprocess.DEVNULL,
            )  # fmt: skip
            os.close(write)
            assert select.select([read], [], [], _LIMIT)[0]
            assert os.read(read, 1000)
        finally:
            os.close(read)

    def signal(self, number: int) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self) -> None:
        """End it; it can be started again."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(_LIMIT)
        (self.folder / "socket").unlink(missing_ok=True)


@contextmanager
def session_bus(spawn: Spawn = subprocess.Popen) -> Iterator[SessionBus]:
    """A running session bus. A dbus-daemon hangs up on users that are not known where it runs:
    ``spawn`` is another way to start it, such as :meth:`SystemBus.spawn`.
    """
    with tempfile.TemporaryDirectory(prefix="usbipssh-tray-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "bus.conf").write_text(_CONFIG.format(folder=folder))
        bus = SessionBus(folder, spawn)
        bus.start()
        try:
            yield bus
        finally:
            bus.stop()
