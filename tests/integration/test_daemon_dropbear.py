# SPDX-License-Identifier: GPL-3.0-or-later
"""A remote whose ssh server is dropbear, which forwards no unix sockets."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakekernel import STICK
from integration.otherremotes import listed
from integration.sshd import free_ports
from integration.world import ALICE, ATTACHMENT, MANAGER, ROOT, World, wait_until, world

CONNECTORS = ("perl", "python3", "socat", "ncat", "bash", "busybox")


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    with world() as made:
        made.pi.plug("2-1", STICK)
        yield made


@pytest.fixture
def w(shared: World) -> Iterator[World]:
    yield shared
    shared.detach_all()
    shared.check_clean()
    shared.check_nothing_left_there()


@contextlib.contextmanager
def dropbear(w: World, only: str) -> Iterator[int]:
    """Run a dropbear that lets the daemon in as ``toor``, where one connector is; its port."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="dropbear-")))
        folder.chmod(0o755)
        keys = folder / "home/.ssh"
        keys.mkdir(mode=0o700, parents=True)
        (keys / "authorized_keys").write_text(w.get(ROOT, MANAGER, "PublicKey") + "\n")
        key = folder / "host"
        made = subprocess.run(
            ["dropbearkey", "-t", "ed25519", "-f", key], capture_output=True, check=True
        ).stdout.decode()
        public = next(line for line in made.splitlines() if line.startswith("ssh-ed25519 "))
        (folder / "passwd").write_text(
            Path("/etc/passwd").read_text() + f"toor:x:0:0::{folder}/home:/bin/sh\n"
        )
        (folder / "passwd").chmod(0o644)
        (folder / "run").mkdir(mode=0o755)
        w.run_folders.append(folder / "run")
        (folder / "nothing").touch(0o644)
        hidden = [shutil.which(c, path="/usr/bin:/bin") for c in CONNECTORS if c != only]
        binds = [f"mount --bind {folder}/run /run", f"mount --bind {folder}/passwd /etc/passwd"]
        binds += [f"mount --bind {folder}/nothing {Path(p).resolve()}" for p in hidden if p]
        (port,) = free_ports()
        log = stack.enter_context((folder / "log").open("wb"))
        process = subprocess.Popen(
            [
                "unshare", "--mount", "--propagation", "private", "sh", "-c",
                " && ".join([*binds, 'exec "$@"']), "sh",
                "dropbear", "-F", "-E", "-s", "-r", key, "-p", f"127.0.0.1:{port}",
                "-P", folder / "pid",
            ],
            stdin=subprocess.DEVNULL, stderr=log,
        )  # fmt: skip
        stack.callback(process.wait)
        stack.callback(process.terminate)
        wait_until((folder / "pid").exists, "dropbear does not start")
        with (w.folder / "known_hosts").open("a") as file:
            file.write(f"[127.0.0.1]:{port} {' '.join(public.split()[:2])}\n")
        yield port


@pytest.mark.parametrize("only", CONNECTORS)
def test_every_connector_works_with_it(w: World, only: str) -> None:
    with dropbear(w, only) as port, listed(w, f"bear-{only}", port, "toor") as name:
        path = w.attach("2-1", ALICE, name)
        assert w.desk.transfer(w.get(path, ATTACHMENT, "Port"), 300_000) == 300_000
        w.call(ALICE, "Detach", "sa{sv}", path, "0")
