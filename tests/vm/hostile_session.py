# SPDX-License-Identifier: GPL-3.0-or-later
"""What hostile code inside a session would try: a program that says which of it works.

It runs in the place of the session, with the control socket as its standard input. It sends one
packet: a JSON object of attempts, each with what was reached, empty where nothing was. Debian's
Python alone, nothing of ours. Arguments: VICTIM PEER, the process id of another session, and the
`host:port` of a machine that may be reached.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ATTEMPTS: dict[str, Callable[[], object]] = {}
LIBC = ctypes.CDLL(None, use_errno=True)


def attempt(function: Callable[[], object]) -> Callable[[], object]:
    """What it returns was reached; what it raises was not."""
    ATTEMPTS[function.__name__.replace("_", " ")] = function
    return function


def call(number: int, *arguments: object) -> int:
    """A bare system call of x86-64; its result."""
    result = int(LIBC.syscall(number, *arguments))
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result


def readable(*paths: str) -> list[str]:
    """Those that can be opened for reading, folders that can be listed and are not empty."""
    found = []
    for path in paths:
        try:
            if Path(path).is_dir():
                found += [path] if list(Path(path).iterdir()) else []
            else:
                with Path(path).open("rb") as file:
                    file.read(1)
                found.append(path)
        except OSError:
            continue
    return found


def connectable(*paths: str) -> list[str]:
    """The sockets that take a connection."""
    found = []
    for path in paths:
        for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM):
            with socket.socket(socket.AF_UNIX, kind) as sock:
                try:
                    sock.connect(path)
                    found.append(path)
                    break
                except OSError:
                    continue
    return found


def others() -> list[int]:
    """Processes that are neither this one nor a child of it."""
    names = (path.name for path in Path("/proc").iterdir())
    return [int(name) for name in names if name.isdigit() and int(name) != os.getpid()]


@attempt
def passwords() -> object:
    return readable("/etc/shadow", "/etc/gshadow", "/etc/sudoers", "/etc/ssh/ssh_host_ed25519_key")


@attempt
def what_the_daemon_keeps() -> object:
    return readable(
        "/etc/usbipsshd", "/var/lib/usbipsshd", "/var/lib/usbipsshd/id_ed25519", "/run/usbipsshd"
    )


@attempt
def homes() -> object:
    return readable("/root", "/root/.ssh", "/home", "/home/alice", "/home/alice/for-everybody")


@attempt
def settings_and_logs() -> object:
    return readable(
        "/etc/machine-id", "/etc/polkit-1", "/etc/systemd", "/etc/dbus-1", "/var/log", "/var/lib",
        "/run/log", "/run/udev", "/run/systemd/units", "/boot", "/tmp/for-everybody",
    )  # fmt: skip


@attempt
def sysfs() -> object:
    return readable("/sys/bus/usb/devices", "/sys/devices/platform", "/sys/kernel", "/sys/fs")


@attempt
def what_the_kernel_tells() -> object:
    return readable("/proc/modules", "/proc/kallsyms", "/proc/net/unix", "/proc/sys/kernel")[:2]


@attempt
def other_processes() -> object:
    return [pid for pid in others() if readable(f"/proc/{pid}/cmdline")]


@attempt
def memory_of_other_processes() -> object:
    return [pid for pid in [*others(), VICTIM] if readable(f"/proc/{pid}/environ")]


@attempt
def devices() -> object:
    harmless = {"null", "zero", "full", "random", "urandom", "tty", "ptmx"}
    found = []
    for folder, _, names in os.walk("/dev"):
        for name in names:
            path = Path(folder, name)
            if name not in harmless and not path.is_symlink() and "/pts/" not in str(path):
                try:
                    os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))
                    found.append(str(path))
                except OSError:
                    continue
    return found


@attempt
def a_device_node_of_its_own() -> object:
    os.mknod("/tmp/node", 0o600 | 0o020000, os.makedev(1, 1))
    Path("/tmp/node").unlink()
    return "/tmp/node"


@attempt
def places_to_write() -> object:
    # /proc/self is its own.
    found = []
    for folder, below, _ in os.walk("/"):
        if folder == "/":
            below.remove("proc")
        if os.access(folder, os.W_OK):
            found.append(folder)
            below.clear()
    return found


@attempt
def buses_and_services() -> object:
    return connectable(
        "/run/dbus/system_bus_socket",
        "/run/systemd/private",
        "/run/systemd/journal/socket",
        "/run/systemd/notify",
        "/run/udev/control",
    )


@attempt
def another_session_from_systemd() -> object:
    return connectable("/run/usbipssh-session.sock")


@attempt
def signals_to_root() -> object:
    os.kill(1, 0)
    return 1


@attempt
def signals_to_another_session() -> object:
    # kill, tgkill, tkill, then by a handle: pidfd_open, pidfd_send_signal
    for numbers in ((62, VICTIM), (234, VICTIM, VICTIM), (200, VICTIM)):
        try:
            call(*numbers, 0)
        except OSError:
            continue
        return VICTIM
    call(424, call(434, VICTIM, 0), 0, 0, 0)
    return VICTIM


@attempt
def tracing_another_session() -> object:
    call(101, 0x4206, VICTIM, 0, 0)
    return VICTIM


@attempt
def memory_of_another_session() -> object:
    # EFAULT is said by a kernel that would have let it.
    try:
        call(310, VICTIM, 0, 0, 0, 0, 0)
    except OSError as error:
        return VICTIM if error.errno == errno.EFAULT else ""
    return VICTIM


@attempt
def becoming_root() -> object:
    os.setresuid(0, 0, 0)
    return "root"


@attempt
def a_program_that_is_setuid() -> object:
    # A copy of id that the test has made: it runs, as nobody but who runs it.
    done = subprocess.run(["/usr/local/bin/setuid-id", "-u"], stdout=subprocess.PIPE, check=True)
    return done.stdout == b"0\n" and "root"


@attempt
def namespaces() -> object:
    # User, mount, network, process: one is enough.
    found = []
    for flag in (0x10000000, 0x00020000, 0x40000000, 0x20000000):
        pid = os.fork()
        if not pid:
            os._exit(LIBC.unshare(flag) != 0)
        if os.waitpid(pid, 0)[1] == 0:
            found.append(hex(flag))
    return found


@attempt
def mounting() -> object:
    if LIBC.mount(b"none", b"/mnt", b"tmpfs", 0, None):
        return ""
    LIBC.umount(b"/mnt")
    return "/mnt"


@attempt
def kernel_modules() -> object:
    # What is no module at all is refused only after the right to load one was looked at.
    try:
        call(175, b"", 0, b"")
    except OSError as error:
        return "init_module" if error.errno not in (errno.EPERM, errno.ENOSYS) else ""
    return "init_module"


@attempt
def calls_that_kernels_were_broken_with() -> object:
    found = []
    tried: dict[str, tuple[Any, ...]] = {
        "bpf": (321, 0, 0, 0),
        "perf_event_open": (298, 0, 0, -1, -1, 0),
        "io_uring_setup": (425, 1, 0),
        "userfaultfd": (323, 0),
        "add_key": (248, b"user", b"a", b"b", 1, -2),
        "keyctl": (250, 0, -2, 0),
        "shmget": (29, 0, 4096, 0o1600),
    }
    for name, arguments in tried.items():
        try:
            call(*arguments)
            found.append(name)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOSYS):
                found.append(name)
    return found


@attempt
def kinds_of_sockets() -> object:
    # netlink, packet, vsock, bluetooth, alg; then raw IP
    found = []
    kinds = [(16, 3, 0), (17, 3, 0), (40, 1, 0), (31, 5, 0), (38, 5, 0), (2, 3, 1)]
    for family, kind, protocol in kinds:
        try:
            socket.socket(family, kind, protocol).close()
            found.append(family)
        except OSError:
            continue
    return found


@attempt
def listening() -> object:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 47111))
        sock.listen()
        return 47111


@attempt
def memory_to_write_and_run() -> object:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()
    return "mmap"


@attempt
def a_program_of_its_own() -> object:
    handle = os.memfd_create("program", 0)
    os.write(handle, Path("/usr/bin/true").read_bytes())
    return subprocess.run([f"/proc/self/fd/{handle}"], pass_fds=[handle], check=True).returncode + 1


@attempt
def changing_the_clock_or_the_name() -> object:
    found = []
    if LIBC.sethostname(b"desk", 4) == 0:
        found.append("sethostname")
    if LIBC.adjtimex(bytes(struct.pack("=I", 0x8000) + bytes(400))) >= 0:
        found.append("adjtimex")
    return found


def allowed() -> dict[str, object]:
    """What it must be able to do: reach a machine, by a name."""
    host, _, port = sys.argv[2].rpartition(":")
    with socket.create_connection((host, int(port)), 60) as sock:
        return {"greeting": sock.recv(4).decode()}


def main() -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    said: dict[str, object] = {}
    for name, function in ATTEMPTS.items():
        try:
            said[name] = function() or ""
        except (OSError, subprocess.SubprocessError, ValueError):
            said[name] = ""
    try:
        said["allowed"] = allowed()
    except OSError as error:
        said["allowed"] = str(error)
    os.write(0, json.dumps(said).encode())


if __name__ == "__main__":
    VICTIM = int(sys.argv[1])
    main()
