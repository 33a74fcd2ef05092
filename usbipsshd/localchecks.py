# SPDX-License-Identifier: GPL-3.0-or-later
"""What would stop this from working on this machine, and how to mend it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from usbipsshd.kernels import trusts_remotes, version
from usbipsshd.localusb import read_text
from usbipsshd.preflight import PACKAGES, Finding, Verdict, package_of
from usbipsshd.vhci import Vhci


@dataclass(frozen=True, slots=True)
class Kernel:
    """What uname(2) says of this machine's kernel."""

    release: str
    build: str = ""
    """Its field "version"."""


class LocalChecks:
    """Looks at this machine. Changes nothing, so no module is loaded."""

    def __init__(
        self,
        vhci: Vhci,
        kernel: Kernel,
        modules: Sequence[Path],
        os_release: Path,
        *,
        holds_sleep: Callable[[], bool],
        exports: Callable[[], bool],
    ) -> None:
        self._vhci = vhci
        self._kernel = kernel
        self._modules = modules
        self._os_release = os_release
        self._holds_sleep = holds_sleep
        """Whether logind waits for us before it lets the machine sleep."""
        self._exports = exports
        """Whether usbip-host is loaded."""

    def findings(self) -> Iterator[Finding]:
        """What was found here."""
        yield self._suspend()
        yield from self._bad_kernel()
        yield self._lending()
        if not self._vhci.available:
            if self._has_module("vhci-hcd"):
                yield Finding(
                    "module", "here", Verdict.OK, "vhci-hcd is there, and loaded when needed."
                )
            else:
                yield Finding(
                    "module",
                    "here",
                    Verdict.PROBLEM,
                    "This machine's kernel has no module vhci-hcd.",
                    f"Install {package_of(self._system(), self._kernel.release)}.",
                )
            return
        yield Finding("module", "here", Verdict.OK, "vhci-hcd is loaded.")
        free = self._vhci.free()
        for kind, what in (("hs", "USB 2"), ("ss", "USB 3")):
            left = free.get(kind, 0)
            summary = f"{left} virtual {what} ports are free."
            if left:
                yield Finding(f"ports-{kind}", "here", Verdict.OK, summary)
            else:
                yield Finding(
                    f"ports-{kind}", "here", Verdict.WARNING, summary, "Detach something first."
                )

    def _suspend(self) -> Finding:
        if self._holds_sleep():
            return Finding(
                "suspend",
                "here",
                Verdict.OK,
                "Before this machine sleeps, devices are given back; after that they come back.",
            )
        return Finding(
            "suspend",
            "here",
            Verdict.WARNING,
            "This machine cannot sleep while a device is attached: logind does not wait for "
            "usbipsshd.",
            "Detach everything before it sleeps, or see whether systemd-logind runs.",
        )

    def _bad_kernel(self) -> Iterator[Finding]:
        running = version(self._kernel.release, self._kernel.build)
        if not any(running):
            return
        mended = trusts_remotes(running)
        if mended:
            yield Finding(
                "kernel",
                "here",
                Verdict.WARNING,
                "This machine runs Linux {}.{}.{}, whose vhci-hcd lets a remote that lies write "
                "over kernel memory (CVE-2026-31607).".format(*running),
                f"Update this machine's kernel, to Linux {mended} or newer.",
            )
        else:
            summary = "This machine runs Linux {}.{}.".format(*running[:2])
            yield Finding("kernel", "here", Verdict.OK, summary)

    def _lending(self) -> Finding:
        if self._exports():
            summary = "For exports, usbip-host is loaded on this machine."
        elif self._has_module("usbip-host"):
            summary = "For exports, this machine has usbip-host; it is loaded when needed."
        else:
            return Finding(
                "export-module",
                "here",
                Verdict.WARNING,
                "Nothing of this machine can be exported: it has no kernel module usbip-host.",
                f"For that, install {package_of(self._system(), self._kernel.release)}.",
            )
        return Finding("export-module", "here", Verdict.OK, summary)

    def _has_module(self, name: str) -> bool:
        pattern = rf"/{re.escape(name)}\.ko"
        return any(
            re.search(pattern, read_text(place / self._kernel.release / each))
            for place in self._modules
            for each in ("modules.dep", "modules.builtin")
        )

    def _system(self) -> str:
        known = dict(
            re.findall(r'^(ID|ID_LIKE)="?([^"\n]*)"?$', read_text(self._os_release), re.MULTILINE)
        )
        for word in f"{known.get('ID', '')} {known.get('ID_LIKE', '')}".split():
            if word in PACKAGES:
                return word
        return ""
