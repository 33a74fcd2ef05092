# SPDX-License-Identifier: GPL-3.0-or-later
"""What would stop this from working, and how to mend it: findings, and those about a remote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from usbipsshd.kernels import version
from usbipsshd.messages import BadPacket, Json, get_bool, get_int, get_str

NAMES = 16
"""How many bus ids usbip-host's match_busid holds (drivers/usb/usbip/stub_main.c, MAX_BUSID)."""
SOUND_KERNEL = (5, 1)
"""Before, usbip-host's rebind did more with a pointer that may be stale (see agent.d)."""
MAX_PORTS = 9999
MODULE_STATES = frozenset({"loaded", "there", "missing"})
FORWARDS = frozenset({"both", "unix", "tcp", "none", ""})
"""What a login may forward; "" where that was not tried."""

PACKAGES = {
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
        kernel=version(get_str(packet, "kernel", 128))[:2],
        system=next((system for system in systems if system in PACKAGES), ""),
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


def package_of(system: str, release: str) -> str:
    """What brings more modules for the kernel ``release`` of a system of that ID, in words."""
    name = PACKAGES.get(system)
    if name is None:
        return "the package that has the kernel's further modules"
    return f"the package {name.format(release=release)}"


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
            f"Install {package_of(facts.system, '$(uname -r)')} there.",
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
                f"For that, install {package_of(facts.system, '$(uname -r)')} there.",
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
