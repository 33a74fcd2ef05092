# SPDX-License-Identifier: GPL-3.0-or-later
"""Hardware virtualisation, where a guest really runs under it; emulation everywhere else.

/dev/kvm may exist and be writable, and yet leave a guest hanging for ever (nested machines,
some cloud runners). So a guest is started and has to say a word within a few seconds.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

from .host import cache_folder, say
from .kernel import Kernel

EMULATION = ["-accel", "tcg,thread=multi", "-cpu", "max"]
HARDWARE = ["-accel", "kvm", "-cpu", "host"]
PROBE_SECONDS = 8.0
PROBE_WORD = b"testbed: a guest runs"


def _guest_runs(kernel: Kernel) -> bool:
    command = [
        "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none",
        "-machine", "pc", *HARDWARE, "-m", "256", "-no-reboot", "-serial", "stdio",
        "-kernel", str(kernel.image), "-initrd", str(kernel.initrd),
        "-append", "console=ttyS0 panic=-1 testbed.probe",
    ]  # fmt: skip
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as guest:
        try:
            printed, _ = guest.communicate(timeout=PROBE_SECONDS)
        except subprocess.TimeoutExpired:
            guest.kill()
            printed, _ = guest.communicate()
        return PROBE_WORD in printed


def accelerator(kernel: Kernel) -> list[str]:
    """QEMU's options for the fastest way in which a guest runs here.

    The answer of a probe is kept until this machine boots again.
    """
    if not Path("/dev/kvm").exists():
        return EMULATION
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    note = cache_folder() / f"kvm-{boot}"
    if not note.exists():
        works = _guest_runs(kernel)
        for old in cache_folder().glob("kvm-*"):
            old.unlink()
        note.write_text("works" if works else "hangs")
    if note.read_text() == "works":
        return HARDWARE
    say("/dev/kvm does not run guests here: emulating")
    return EMULATION
