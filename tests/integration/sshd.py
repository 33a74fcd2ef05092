# SPDX-License-Identifier: GPL-3.0-or-later
"""A real OpenSSH server on loopback for one test, with keys of its own and an ssh-agent."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

KEYGEN = "/usr/bin/ssh-keygen"
_WORKERS = 8


def free_ports(count: int = 1) -> list[int]:
    """So many ports on 127.0.0.1, each another one, that nobody listens on now.

    They are none of those that the kernel gives to outgoing connections (ip(7),
    ip_local_port_range), so that none of these has one before the server starts.
    """
    # Tests that run side by side have ports of their own (gw0, gw1, ...).
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        while len(found) < count:
            port = random.SystemRandom().randrange(10_000 + worker, 32_000, _WORKERS)
            sock = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                sock.bind(("127.0.0.1", port))
                found.append(port)
    return found


@contextlib.contextmanager
def unused_port() -> Iterator[int]:
    """A port on 127.0.0.1 where nobody listens, nor begins to while the context lasts."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


def make_key(path: Path, kind: str = "ed25519") -> str:
    """Make a key pair; its public line."""
    subprocess.run([KEYGEN, "-q", "-t", kind, "-N", "", "-C", "", "-f", path], check=True)
    return path.with_suffix(".pub").read_text().strip()


@dataclass
class Sshd:
    """A running server: log in as root with ``client_key``, or through :meth:`agent_socket`."""

    folder: Path
    port: int
    host_keys: tuple[str, ...]
    client_key: Path
    process: subprocess.Popen[bytes]
    agent_path: Path
    host: str = "127.0.0.1"

    @property
    def known_hosts(self) -> bytes:
        """Its host keys in known_hosts format."""
        return "".join(f"[{self.host}]:{self.port} {key}\n" for key in self.host_keys).encode()

    def agent_socket(self) -> socket.socket:
        """A connected socket of the ssh-agent that has the key."""
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(self.agent_path))
        return sock

    def log(self) -> str:
        """What the server has written so far."""
        return (self.folder / "log").read_text(errors="replace")

    def ssh(self, *arguments: str) -> list[str]:
        """An ssh command line for this server, with OpenSSH's defaults otherwise."""
        known = self.folder / "known_hosts"
        known.write_bytes(self.known_hosts)
        return [
            "/usr/bin/ssh", "-F", "none", "-p", str(self.port), "-i", str(self.client_key),
            "-o", f"UserKnownHostsFile={known}", "-o", "IdentitiesOnly=yes",
            "-o", "IdentityAgent=none", "-o", "BatchMode=yes", *arguments, f"root@{self.host}",
        ]  # fmt: skip


@contextlib.contextmanager
def sshd(
    *,
    options: Sequence[str] = (),
    command: str = "",
    host_key_kinds: Sequence[str] = ("ed25519",),
    authorize: bool = True,
) -> Iterator[Sshd]:
    """Run a server. ``options`` are lines for its configuration, ``command`` a forced command."""
    folder = Path(tempfile.mkdtemp(prefix="sshd-"))
    (port,) = free_ports()
    host_keys = [make_key(folder / f"host_{kind}", kind) for kind in host_key_kinds]
    client_key = folder / "client"
    public = make_key(client_key)
    restriction = f'command="{command}" ' if command else ""
    (folder / "authorized_keys").write_text(f"{restriction}{public}\n" if authorize else "")
    lines = [
        *options,
        f"Port {port}",
        "ListenAddress 127.0.0.1",
        *(f"HostKey {folder}/host_{kind}" for kind in host_key_kinds),
        f"AuthorizedKeysFile {folder}/authorized_keys",
        f"PidFile {folder}/pid",
        "StrictModes no",
        "UsePAM no",
        "PermitRootLogin yes",
        "PasswordAuthentication no",
        "MaxStartups 100",
        "MaxSessions 100",
    ]
    (folder / "config").write_text("\n".join(lines) + "\n")
    Path("/run/sshd").mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        log = stack.enter_context((folder / "log").open("wb"))
        process = subprocess.Popen(
            [shutil.which("sshd") or "/usr/sbin/sshd", "-D", "-e", "-f", folder / "config"],
            stdin=subprocess.DEVNULL, stderr=log,
        )  # fmt: skip
        stack.callback(_stop, process)
        agent_path = folder / "agent"
        agent = subprocess.Popen(
            ["/usr/bin/ssh-agent", "-D", "-a", agent_path], stdout=subprocess.DEVNULL
        )
        stack.callback(_stop, agent)
        try:
            _wait_for(lambda: listens(("127.0.0.1", port)), process)
        except RuntimeError as error:
            raise RuntimeError(f"{error}: {(folder / 'log').read_text()}") from None
        _wait_for(lambda: listens(str(agent_path)), agent)
        subprocess.run(
            ["/usr/bin/ssh-add", "-q", client_key],
            env={**os.environ, "SSH_AUTH_SOCK": str(agent_path)}, check=True,
        )  # fmt: skip
        yield Sshd(folder, port, tuple(host_keys), client_key, process, agent_path)


def listens(address: str | tuple[str, int]) -> bool:
    """Whether a connection is taken; a socket's path is there before that."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as sock:
        sock.settimeout(30)
        try:
            sock.connect(address)
        except OSError:
            return False
    return True


def _wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 30
    while not condition():
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"{process.args!r} did not start")
        time.sleep(0.02)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
