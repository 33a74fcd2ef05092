# SPDX-License-Identifier: GPL-3.0-or-later
"""What would stop this from working, on either machine, and how to mend it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from usbipsshd.localusb import read_text
from usbipsshd.messages import BadPacket, Json, get_bool, get_int, get_str
from usbipsshd.vhci import Vhci

NAMES = 16
"""How many bus ids usbip-host's match_busid holds (drivers/usb/usbip/stub_main.c, MAX_BUSID)."""
SOUND_KERNEL = (5, 1)
"""Before, usbip-host's rebind did more with a pointer that may be stale (see agent.sh)."""
MAX_PORTS = 9999
MODULE_STATES = frozenset({"loaded", "there", "missing"})
FORWARDS = frozenset({"both", "unix", "tcp", "none", ""})
"""What a login may forward; "" where that was not tried."""

_PACKAGES = {
    **dict.fromkeys(("ubuntu", "linuxmint", "pop"), "linux-modules-extra-{release}"),
    **dict.fromkeys(("fedora", "rhel", "centos", "rocky", "almalinux"), "kernel-modules-extra"),
    **dict.fromkeys(("debian", "raspbian", "devuan"), "linux-image-{release}"),
    **dict.fromkeys(("opensuse-leap", "opensuse-tumbleweed", "opensuse", "suse"), "kernel-default"),
    **dict.fromkeys(("arch", "manjaro"), "linux"),
}


class Verdict(StrEnum):
    """How a finding is."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; the fields are the contract's keys."""

    id: str
    machine: str
    """here or there."""
    ok: Verdict
    summary: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a remote's agent says of its machine: nothing but numbers and words known here."""

    uid: int
    kernel: tuple[int, int]
    """(0, 0) if it makes no sense."""
    system: str
    """Its ID in os-release, or what it is like, if that is one of those whose packages are known;
    else empty."""
    connectors: int
    module: str
    """One of :data:`MODULE_STATES`: usbip-host."""
    names: int
    """Bus ids in match_busid."""
    by_path: bool = True
    """Whether one of the connectors reaches a unix socket."""
    forwards: str = ""
    """One of :data:`FORWARDS`."""
    vhci: str = ""
    """One of :data:`MODULE_STATES`: vhci-hcd, for exports to it; "" where that was not said."""
    free_ports: tuple[int, int] | None = None
    """Of vhci's pools for USB 2 and USB 3, where it is loaded."""


def facts_from_json(packet: Mapping[str, Json]) -> Facts:
    """The facts in a session's answer; raise :exc:`BadPacket`."""
    module, forwards = get_str(packet, "module", 16), get_str(packet, "forwards", 16)
    if forwards not in FORWARDS:
        raise BadPacket("forwards: unknown")
    systems = f"{get_str(packet, 'os', 64)} {get_str(packet, 'like', 640)}".split()
    # A session that has outlived an upgrade does not say the latter.
    vhci = get_str({"vhci": "", **packet}, "vhci", 16)
    if module not in MODULE_STATES or vhci not in {*MODULE_STATES, ""}:
        raise BadPacket("module: unknown")
    return Facts(
        uid=get_int(packet, "uid", (1 << 32) - 1),
        kernel=_kernel(get_str(packet, "kernel", 128)),
        system=next((system for system in systems if system in _PACKAGES), ""),
        connectors=get_int(packet, "connectors", 8),
        module=module,
        names=get_int(packet, "names", 4096),
        by_path=get_bool(packet, "by_path"),
        forwards=forwards,
        vhci=vhci,
        free_ports=_free_ports(packet.get("free_ports", [])),
    )


def _free_ports(value: Json) -> tuple[int, int] | None:
    if value == []:
        return None
    if not isinstance(value, list) or len(value) != 2:
        raise BadPacket("free_ports: not two numbers")
    return (
        get_int({"hs": value[0]}, "hs", MAX_PORTS), get_int({"ss": value[1]}, "ss", MAX_PORTS)
    )  # fmt: skip


def _kernel(release: str) -> tuple[int, int]:
    match = re.match(r"([0-9]{1,3})\.([0-9]{1,4})(?![0-9])", release, re.ASCII)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _package(system: str, release: str) -> str:
    name = _PACKAGES.get(system)
    if name is None:
        return "the package that has the kernel's further modules"
    return f"the package {name.format(release=release)}"


class LocalChecks:
    """Looks at this machine. Changes nothing, so no module is loaded."""

    def __init__(
        self,
        vhci: Vhci,
        release: str,
        modules: Path,
        os_release: Path,
        *,
        holds_sleep: Callable[[], bool],
        exports: Callable[[], bool],
    ) -> None:
        self._vhci = vhci
        self._release = release
        self._modules = modules
        self._os_release = os_release
        self._holds_sleep = holds_sleep
        """Whether logind waits for us before it lets the machine sleep."""
        self._exports = exports
        """Whether usbip-host is loaded."""

    def findings(self) -> Iterator[Finding]:
        """What was found here."""
        yield self._suspend()
        if (kernel := _kernel(self._release)) != (0, 0):
            running = "This machine runs Linux {}.{}.".format(*kernel)
            yield Finding("kernel", "here", Verdict.OK, running)
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
                    f"Install {_package(self._system(), self._release)}.",
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
                f"For that, install {_package(self._system(), self._release)}.",
            )
        return Finding("export-module", "here", Verdict.OK, summary)

    def _has_module(self, name: str) -> bool:
        folder = self._modules / self._release
        pattern = rf"/{re.escape(name)}\.ko"
        lists = ("modules.dep", "modules.builtin")
        return any(re.search(pattern, read_text(folder / each)) for each in lists)

    def _system(self) -> str:
        known = dict(
            re.findall(r'^(ID|ID_LIKE)="?([^"\n]*)"?$', read_text(self._os_release), re.MULTILINE)
        )
        for word in f"{known.get('ID', '')} {known.get('ID_LIKE', '')}".split():
            if word in _PACKAGES:
                return word
        return ""


def there(remote: str, facts: Facts) -> Iterator[Finding]:
    """What the facts mean."""

    def finding(id_: str, bad: Verdict | None, summary: str, remedy: str = "") -> Finding:
        return Finding(id_, "there", bad or Verdict.OK, summary, remedy)

    if facts.uid == 0:
        yield finding("root", None, f"The login on {remote} is root there.")
    else:
        yield finding(
            "root",
            Verdict.PROBLEM,
            f"The login on {remote} is not root there.",
            "Log in as root, or list the remote with sudo and allow sudo without a password.",
        )
    if facts.module == "missing":
        yield finding(
            "module",
            Verdict.PROBLEM,
            f"{remote} has no kernel module usbip-host.",
            f"Install {_package(facts.system, '$(uname -r)')} there.",
        )
    elif facts.module == "loaded":
        yield finding("module", None, f"usbip-host is loaded on {remote}.")
    else:
        yield finding("module", None, f"{remote} has usbip-host; it is loaded when needed.")
    if facts.kernel != (0, 0):
        running = "{} runs Linux {}.{}".format(remote, *facts.kernel)
        if facts.kernel < SOUND_KERNEL:
            yield finding(
                "kernel",
                Verdict.WARNING,
                f"{running}, whose usbip-host can halt it when a device is unplugged.",
                "Use Linux {}.{} or newer there.".format(*SOUND_KERNEL),
            )
        else:
            yield finding("kernel", None, f"{running}.")
    if facts.connectors:
        yield finding("connector", None, f"{remote} has a program that can connect a socket.")
    else:
        yield finding(
            "connector",
            Verdict.PROBLEM,
            f"{remote} has no program that can connect a socket.",
            "Install perl, python3 or socat there.",
        )
    yield from _forwarding(remote, facts)
    left = NAMES - min(NAMES, facts.names)
    summary = f"usbip-host on {remote} can take {left} more devices."
    if left:
        yield finding("names", None, summary)
    else:
        yield finding(
            "names",
            Verdict.WARNING,
            summary,
            "Detach something; a restart there frees stale names.",
        )
    yield from _lending(remote, facts)


def _lending(remote: str, facts: Facts) -> Iterator[Finding]:
    """What an export to it needs; nobody else is kept from anything."""

    def finding(id_: str, ok: Verdict, summary: str, remedy: str = "") -> Finding:
        return Finding(f"export-{id_}", "there", ok, summary, remedy)

    match facts.vhci:
        case "missing":
            yield finding(
                "module",
                Verdict.WARNING,
                f"Nothing can be exported to {remote}: it has no kernel module vhci-hcd.",
                f"For that, install {_package(facts.system, '$(uname -r)')} there.",
            )
        case "there":
            yield finding(
                "module",
                Verdict.OK,
                f"For exports, {remote} has vhci-hcd; it is loaded when needed.",
            )
        case "loaded":
            yield finding("module", Verdict.OK, f"For exports, vhci-hcd is loaded on {remote}.")
    pools = (("hs", "USB 2"), ("ss", "USB 3"))
    for (kind, what), left in zip(pools, facts.free_ports or (), strict=False):
        if left:
            summary = f"For exports, {left} virtual {what} ports of {remote} are free."
            yield finding(f"ports-{kind}", Verdict.OK, summary)
        else:
            yield finding(
                f"ports-{kind}",
                Verdict.WARNING,
                f"No {what} device can be exported to {remote}: it has no free virtual port.",
                "For that, detach something there first.",
            )


def _forwarding(remote: str, facts: Facts) -> Iterator[Finding]:
    if not facts.forwards or not facts.connectors:
        return
    usable = facts.forwards in ("both", "tcp") or (facts.forwards == "unix" and facts.by_path)
    if usable:
        yield Finding(
            "forwarding", "there", Verdict.OK, f"The ssh server on {remote} forwards sockets."
        )
        return
    if facts.forwards == "unix":
        summary = f"{remote} has no program that connects to what its ssh server may forward."
        remedy = "Install perl, python3 or socat there, or set AllowTcpForwarding yes."
    else:
        summary = f"The ssh server on {remote} refuses to forward sockets for this login."
        remedy = (
            "Set AllowTcpForwarding yes (or remote) and AllowStreamLocalForwarding yes in its "
            "sshd_config, without DisableForwarding, and let the key have no restriction of that."
        )
    yield Finding("forwarding", "there", Verdict.PROBLEM, summary, remedy)
