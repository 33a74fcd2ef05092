# SPDX-License-Identifier: GPL-3.0-or-later
"""What the two machines consist of: packages, settings, people, and the stick's content."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .host import run
from .packages import unpack

FILES = Path(__file__).parent / "files"

PI_ADDRESS = "10.77.0.1"
DESK_ADDRESS = "10.77.0.2"

# Where pi has a python3 that nobody finds, for the one test that shows it.
HIDDEN_PYTHON = "/opt/testbed/python3/usr/bin/python3.11"
# Likewise udisksctl, and what lets ncat and socat be found only by the tests that are about them.
HIDDEN_PROGRAMS = "/opt/testbed/bin"
_HIDDEN_PROGRAMS = ("usr/bin/udisksctl", "usr/bin/socat", "usr/bin/ncat", "bin/busybox")
_HIDDEN_PACKAGES = ("python3.11-minimal", "libpython3.11-minimal")

STICK_LABEL = "TESTSTICK"
STICK_SIZE = "48M"

APT_OPTIONS = ['Acquire::Languages "none";']
DPKG_OPTIONS = [
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/usbipsshd/*",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/info/*",
    "force-unsafe-io",
]

# What the project's package depends on, for a desk to which its files are copied by hand.
PROJECT_NEEDS = (
    "python3-asyncssh",
    "python3-dbus-next",
    "python3-pyudev",
    "python3-uvloop",
    "python3-tomli-w",
    "python3-cryptography",
    "polkitd",
    "dbus",
    "usb.ids",
    "openssh-client",
)

# Maintainer scripts stop services by their program's path (start-stop-daemon), and would find this
# machine's: polkitd, for one.
AMONG_THEMSELVES = ("unshare", "--pid", "--fork", "--kill-child")

# Units that cost time at every boot and that no test has a use for.
MASKED = (
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "systemd-timesyncd.service",
    "systemd-hwdb-update.service",
    "systemd-journal-flush.service",
    "systemd-journal-catalog-update.service",
    "systemd-update-utmp.service",
    "systemd-update-utmp-runlevel.service",
    "systemd-random-seed.service",
    "systemd-pstore.service",
    "systemd-binfmt.service",
    "systemd-remount-fs.service",
    "systemd-machine-id-commit.service",
    "systemd-firstboot.service",
    "systemd-sysusers.service",
    "systemd-update-done.service",
    "ldconfig.service",
    "console-getty.service",
    "getty.target",
    "getty@tty1.service",
    "serial-getty@ttyS0.service",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "sys-kernel-config.mount",
    "sys-fs-fuse-connections.mount",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "modprobe@configfs.service",
    "modprobe@drm.service",
    "modprobe@efi_pstore.service",
    "modprobe@fuse.service",
    "modprobe@dm_mod.service",
    "modprobe@loop.service",
    "networking.service",
    "systemd-fsck-root.service",
    "systemd-quotacheck.service",
    "quotaon.service",
    "systemd-networkd-wait-online.service",
    "proc-sys-fs-binfmt_misc.automount",
    "udisks2.service",
    "lvm2-monitor.service",
    "lvm2-lvmpolld.socket",
    "dm-event.socket",
    "blk-availability.service",
    "apparmor.service",
)


@dataclass(frozen=True)
class System:
    """A machine's bare system: its name and the packages on top of Debian's essential ones."""

    name: str
    packages: tuple[str, ...]


_BOTH = (
    *("systemd-sysv", "udev", "kmod", "procps", "openssh-server", "iproute2", "dbus"),
    # What a stick's file systems may be behind
    *("e2fsprogs", "cryptsetup-bin", "lvm2"),
)
PI = System(
    "pi",
    (
        *_BOTH,
        # What python3, which some tests take away, needs
        *("sudo", "libexpat1", "zlib1g"),
        # Other ways to connect a socket, another shell, another ssh server
        *("socat", "ncat", "busybox", "dropbear-bin"),
        "udisks2",
    ),
)
DESK = System(
    "desk",
    # gdbus is in libglib2.0-bin.
    (*_BOTH, "usbutils", "apparmor", "libglib2.0-bin"),
)


def stick_files() -> Mapping[str, bytes]:
    """The files on the stick: a short text, and 4 MiB that do not compress."""
    blocks = [hashlib.sha512(b"%d" % number).digest() for number in range(4 * 1024 * 1024 // 64)]
    return {"hello.txt": b"Greetings from pi.\n", "random.bin": b"".join(blocks)}


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def _common(tree: Path, name: str, modules: Path, public_key: str) -> None:
    etc = tree / "etc"
    _write(etc / "hostname", f"{name}\n")
    _write(
        etc / "hosts",
        f"127.0.0.1 localhost\n::1 localhost\n{PI_ADDRESS} pi\n{DESK_ADDRESS} desk\n",
    )
    _write(etc / "machine-id", hashlib.sha256(name.encode()).hexdigest()[:32] + "\n", 0o444)
    _write(etc / "fstab", "")
    _write(etc / "sysctl.d/testbed.conf", "kernel.printk = 7 4 1 7\n")
    _write(
        etc / "systemd/journald.conf.d/testbed.conf",
        "[Journal]\nStorage=volatile\nReadKMsg=no\nAudit=no\nRateLimitIntervalSec=0\n",
    )
    _write(
        etc / "ssh/sshd_config.d/testbed.conf",
        "UsePAM no\nUseDNS no\nPrintMotd no\nMaxSessions 100\nMaxStartups 100\n",
    )
    root = tree / "root/.ssh"
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    root.chmod(0o700)
    _write(root / "authorized_keys", public_key, 0o600)
    for unit in MASKED:
        link = etc / "systemd/system" / unit
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to("/dev/null")
    target = tree / "usr/lib/modules" / modules.name
    shutil.copytree(modules, target)
    # Newer than everything below /usr: nothing is brought up to date at the first boot.
    (etc / ".updated").touch()
    (tree / "var/.updated").touch()


def _tidy(tree: Path) -> None:
    for folder in ("var/cache/apt", "var/lib/apt/lists", "var/log"):
        for path in (tree / folder).glob("*"):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def fill_pi(tree: Path, modules: Path, public_key: str) -> None:
    """Make the bare system into pi: a machine with an ssh server and nothing of ours."""
    _common(tree, "pi", modules, public_key)
    run(["chroot", tree, "useradd", "-m", "-s", "/bin/bash", "-p", "*", "pi"])
    _write(tree / "etc/sudoers.d/pi", "pi ALL=(ALL) NOPASSWD: ALL\n", 0o440)
    run(["chroot", tree, "useradd", "-m", "-s", "/bin/bash", "-p", "*", "guest"])
    for package in _HIDDEN_PACKAGES:
        unpack(package, tree / "opt/testbed/python3")
    hidden = tree / HIDDEN_PROGRAMS.lstrip("/")
    hidden.mkdir(parents=True)
    for program in _HIDDEN_PROGRAMS:
        (tree / program).rename(hidden / Path(program).name)
    # A login shell as plain as any; bash can then be taken away.
    run(["chroot", tree, "usermod", "-s", "/bin/sh", "root"])
    _tidy(tree)


def fill_desk(tree: Path, modules: Path, public_key: str, package: Path | None) -> None:
    """Make the bare system into desk: the project's package, installed with apt, and people."""
    for name in ("alice", "bob", "carol"):
        run(["chroot", tree, "useradd", "-m", "-s", "/bin/bash", "-p", "*", name])
    if package is None:
        wanted = list(PROJECT_NEEDS)
    else:
        shutil.copyfile(package, tree / "tmp" / package.name)
        wanted = [f"./tmp/{package.name}"]
    run([*AMONG_THEMSELVES, "--mount", "sh", FILES / "apt-in-tree", tree, *wanted], timeout=900)
    for file in (tree / "tmp").glob("*.deb"):
        file.unlink()
    _common(tree, "desk", modules, public_key)
    rules = tree / "etc/polkit-1/rules.d"
    rules.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(FILES / "50-testbed.rules", rules / "50-testbed.rules")
    (rules / "50-testbed.rules").chmod(0o644)
    _tidy(tree)
