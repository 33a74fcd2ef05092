# SPDX-License-Identifier: GPL-3.0-or-later
"""More machines to log in to: other sshds in front of the same made-up kernel."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from integration.sshd import free_ports, make_key
from integration.world import MANAGER, ROOT, World, wait_until

BADREMOTE = Path(__file__).with_name("badremote.py")


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@contextlib.contextmanager
def other_sshd(
    w: World,
    *,
    hide: Sequence[str] = (),
    passwd: str = "",
    config: Sequence[str] = (),
    forced: Sequence[str] = (),
    known: bool = True,
    own_key: bool = False,
) -> Iterator[list[int]]:
    """Run another sshd that lets the daemon in; its ports. Its /run is its own.

    Programs in ``hide`` are not there, ``passwd`` are lines for the list of users. It has a port
    for each forced command in ``forced``, and one where there is none. Its host key is that of
    ``w``'s sshd unless ``own_key``, and that one is known for it if ``known``.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sshd-")))
        folder.chmod(0o755)
        key = folder / "host"
        if own_key:
            make_key(key)
        else:
            shutil.copy(w.ssh.folder / "host_ed25519", key)
        (folder / "authorized_keys").write_text(w.get(ROOT, MANAGER, "PublicKey") + "\n")
        ports = free_ports(len(forced) or 1)
        lines = [
            *config,
            *(f"Port {port}" for port in ports),
            "ListenAddress 127.0.0.1",
            f"HostKey {key}",
            f"AuthorizedKeysFile {folder}/authorized_keys",
            "PidFile none",
            "StrictModes no",
            "UsePAM no",
            "PermitRootLogin yes",
            "PasswordAuthentication no",
            "MaxStartups 100",
        ]
        for port, command in zip(ports, forced, strict=False):
            lines += [f"Match LocalPort {port}", f"ForceCommand {command}"]
        (folder / "config").write_text("\n".join(lines) + "\n")
        run = folder / "run"
        (run / "sshd").mkdir(parents=True)
        run.chmod(0o755)
        w.run_folders.append(run)
        binds = [f"mount --bind {run} /run"]
        if passwd:
            (folder / "passwd").write_text(Path("/etc/passwd").read_text() + passwd)
            (folder / "passwd").chmod(0o644)
            binds.append(f"mount --bind {folder}/passwd /etc/passwd")
        (folder / "nothing").touch(0o644)
        for name in hide:
            # Root may run only what has an x bit somewhere.
            program = shutil.which(name, path="/usr/bin:/bin")
            if program:
                binds.append(f"mount --bind {folder}/nothing {Path(program).resolve()}")
        script = " && ".join([*binds, 'exec "$@"'])
        log = stack.enter_context((folder / "log").open("wb"))
        process = subprocess.Popen(
            [
                "unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh",
                shutil.which("sshd") or "/usr/sbin/sshd", "-D", "-e", "-f", str(folder / "config"),
            ],
            stdin=subprocess.DEVNULL, stderr=log,
        )  # fmt: skip
        stack.callback(process.wait)
        stack.callback(process.terminate)
        wait_until(lambda: process.poll() is not None or _answers(ports[-1]), "sshd does not start")
        assert process.poll() is None, (folder / "log").read_text()
        if known:
            with (w.folder / "known_hosts").open("a") as file:
                for port in ports:
                    file.write(f"[127.0.0.1]:{port} {w.ssh.host_keys[0]}\n")
        yield ports


@contextlib.contextmanager
def listed(w: World, name: str, port: int, user: str = "root", *options: str) -> Iterator[str]:
    """A remote, listed as ``name`` for a while."""
    address = f"{user}@127.0.0.1:{port}"
    count = str(1 + len(options) // 3)
    w.call(0, "AddRemote", "sa{sv}", name, count, "address", "s", address, *options)
    try:
        yield name
    finally:
        w.call(0, "RemoveRemote", "sa{sv}", name, "0")


def bad(mode: str, point: str = "") -> str:
    """A forced command that runs the real agent, but spoils what it says: see badremote.py."""
    return f"{sys.executable} {BADREMOTE} {mode} '{point}'"


@contextlib.contextmanager
def silent_port() -> Iterator[tuple[int, socket.socket]]:
    """A port where somebody listens, takes connections and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1], listener


@contextlib.contextmanager
def saying_port(text: bytes) -> Iterator[int]:
    """A port that says ``text`` to everybody, and hangs up."""

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                with sock, contextlib.suppress(OSError):
                    sock.sendall(text)
                    sock.shutdown(socket.SHUT_WR)
                    while sock.recv(4096):
                        pass

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
