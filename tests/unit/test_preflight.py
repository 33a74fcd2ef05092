# SPDX-License-Identifier: GPL-3.0-or-later
"""What the doctor makes of facts, and which facts it takes from a session."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from usbipsshd.kernels import trusts_remotes, version
from usbipsshd.localchecks import Kernel, LocalChecks
from usbipsshd.messages import BadPacket, Json
from usbipsshd.preflight import Facts, Finding, Verdict, facts_from_json, there
from usbipsshd.session.replies import BadReply, Reply
from usbipsshd.vhci import Vhci

SOUND = Facts(
    0, (6, 1), "debian", 2, "there", 3, forwards="both", vhci="loaded", free_ports=(120, 7)
)  # fmt: skip
PACKET: dict[str, Json] = {
    "uid": 0, "kernel": "6.1.0-13-amd64", "os": "debian", "connectors": 2, "module": "there",
    "names": 3, "like": "", "by_path": True, "forwards": "both", "vhci": "loaded",
    "free_ports": [120, 7],
}  # fmt: skip


def verdicts(facts: Facts) -> dict[str, Verdict]:
    return {one.id: one.ok for one in there("pi", facts)}


def test_a_sound_machine() -> None:
    found = list(there("pi", SOUND))
    assert {one.ok for one in found} == {Verdict.OK}
    assert {one.machine for one in found} == {"there"}
    assert not any(one.remedy for one in found)
    told = {one.id: one.summary for one in found}
    assert "13 more" in told["names"]
    assert "vhci-hcd" in told["export-module"]
    assert "120 virtual USB 2" in told["export-ports-hs"]
    assert "7 virtual USB 3" in told["export-ports-ss"]


def test_what_a_session_from_before_an_upgrade_does_not_say_is_not_mentioned() -> None:
    old = {name: value for name, value in PACKET.items() if name not in ("vhci", "free_ports")}
    assert not [one for one in there("pi", facts_from_json(old)) if one.id.startswith("export-")]


@pytest.mark.parametrize(
    ("changes", "id_", "verdict", "says"),
    [
        ({"uid": 1000}, "root", Verdict.PROBLEM, "sudo"),
        ({"module": "missing", "system": "ubuntu"}, "module", Verdict.PROBLEM, "linux-modules-ex"),
        ({"module": "missing", "system": ""}, "module", Verdict.PROBLEM, "further modules"),
        ({"kernel": (4, 19)}, "kernel", Verdict.WARNING, "5.1"),
        ({"connectors": 0}, "connector", Verdict.PROBLEM, "Install"),
        ({"names": 16}, "names", Verdict.WARNING, "restart"),
        ({"forwards": "none"}, "forwarding", Verdict.PROBLEM, "AllowStreamLocalForwarding"),
        ({"forwards": "unix", "by_path": False}, "forwarding", Verdict.PROBLEM, "perl"),
        # Whoever only imports from there is kept from nothing.
        (
            {"vhci": "missing", "free_ports": None, "system": "fedora"},
            "export-module",
            Verdict.WARNING,
            "kernel-modules-extra",
        ),
        ({"free_ports": (0, 5)}, "export-ports-hs", Verdict.WARNING, "detach"),
        ({"free_ports": (5, 0)}, "export-ports-ss", Verdict.WARNING, "detach"),
    ],
)
def test_what_is_wrong_has_a_remedy(
    changes: dict[str, Any], id_: str, verdict: Verdict, says: str
) -> None:
    values = {name: getattr(SOUND, name) for name in Facts.__slots__} | changes
    facts = Facts(**values)
    (bad,) = [one for one in there("pi", facts) if one.ok is not Verdict.OK]
    assert (bad.id, bad.ok) == (id_, verdict)
    assert says in bad.remedy


def test_a_kernel_that_makes_no_sense_is_not_mentioned() -> None:
    assert "kernel" not in verdicts(Facts(0, (0, 0), "", 1, "loaded", 0))


def test_facts_from_a_session() -> None:
    assert facts_from_json(PACKET) == SOUND
    like = facts_from_json({**PACKET, "os": "neon", "like": "fancy ubuntu debian"})
    assert like.system == "ubuntu"
    strange = facts_from_json({**PACKET, "os": "EvilOS", "kernel": "x\n6.1"})
    assert (strange.system, strange.kernel) == ("", (0, 0))


@pytest.mark.parametrize(
    "changes",
    [
        {"forwards": "all"},
        {"by_path": 1},
        {"like": ["debian"]},
        {"module": "ready"},
        {"uid": -1},
        {"names": "3"},
        {"connectors": 9},
        {"kernel": None},
        {"vhci": "ready"},
        {"vhci": 1},
        {"free_ports": 120},
        {"free_ports": [120]},
        {"free_ports": [120, "7"]},
        {"free_ports": [120, -1]},
        {"free_ports": [120, 10_000]},
    ],
)
def test_facts_that_are_none(changes: dict[str, Json]) -> None:
    with pytest.raises(BadPacket):
        facts_from_json({**PACKET, **changes})


def test_the_agents_lines() -> None:
    reply = Reply()
    for line in ("m loaded", "s 16", "v there", "p 120 0", "l ubuntu", "l debian", "ok"):
        reply.add(line)
    assert (reply.vhci, reply.free_ports) == ("there", (120, 0))
    assert reply.like == ["ubuntu", "debian"]
    assert (reply.module, reply.names, reply.done) == ("loaded", 16, True)
    for bad in (
        *("m ready", "s many", "s 1000", "s -1", "m", "l", "l A B"),
        *("v", "v ready", "p", "p 1", "p 1 2 3", "p -1 2", "p 1 99999", "p 1  2"),
    ):
        with pytest.raises(BadReply):
            Reply().add(bad)


def local(
    tmp_path: Path,
    system: str = "ID=ubuntu\n",
    modules: str = "",
    *,
    sleeps: bool = True,
    exports: bool = False,
    build: str = "",
) -> dict[str, Finding]:
    """What is found here, by id."""
    (tmp_path / "os-release").write_text(system)
    (tmp_path / "modules/6.1").mkdir(parents=True)
    (tmp_path / "modules/6.1/modules.dep").write_text(modules)
    checks = LocalChecks(
        Vhci(tmp_path / "sys"),
        Kernel("6.1", build),
        [tmp_path / "modules"],
        tmp_path / "os-release",
        holds_sleep=lambda: sleeps,
        exports=lambda: exports,
    )
    return {one.id: one for one in checks.findings()}


def test_here_a_module_that_is_missing_names_its_package(tmp_path: Path) -> None:
    found = local(tmp_path)["module"]
    assert (found.id, found.machine, found.ok) == ("module", "here", Verdict.PROBLEM)
    assert "linux-modules-extra-6.1" in found.remedy


def test_here_a_relative_of_a_known_system(tmp_path: Path) -> None:
    found = local(tmp_path, 'ID=neon\nID_LIKE="ubuntu debian"\n')["module"]
    assert "linux-modules-extra-6.1" in found.remedy


def test_here_a_module_that_can_be_loaded(tmp_path: Path) -> None:
    dep = "kernel/drivers/usb/usbip/vhci-hcd.ko.xz: kernel/drivers/usb/usbip/usbip-core.ko.xz\n"
    found = local(tmp_path, modules=dep)["module"]
    assert found.ok is Verdict.OK


def test_here_what_exports_need(tmp_path: Path) -> None:
    bad = local(tmp_path)["export-module"]
    assert (bad.machine, bad.ok) == ("here", Verdict.WARNING)
    assert "linux-modules-extra-6.1" in bad.remedy
    (tmp_path / "loaded").mkdir()
    assert local(tmp_path / "loaded", exports=True)["export-module"].ok is Verdict.OK
    (tmp_path / "built in").mkdir()
    dep = "kernel/drivers/usb/usbip/usbip-host.ko:\n"
    assert local(tmp_path / "built in", modules=dep)["export-module"].ok is Verdict.OK


def test_here_a_kernel_that_believes_remotes(tmp_path: Path) -> None:
    build = "#1 SMP PREEMPT_DYNAMIC Debian 6.1.153-1 (2025-09-20)"
    bad = local(tmp_path, build=build)["kernel"]
    assert (bad.machine, bad.ok) == ("here", Verdict.WARNING)
    assert "6.1.153" in bad.summary
    assert "6.1.175" in bad.remedy
    (tmp_path / "mended").mkdir()
    assert local(tmp_path / "mended", build=build.replace("153", "192"))["kernel"].ok is Verdict.OK


@pytest.mark.parametrize(
    ("release", "build", "wanted", "mended"),
    [
        ("6.1.0-40-amd64", "#1 SMP Debian 6.1.153-1 (2025-09-20)", (6, 1, 153), "6.1.175"),
        ("6.1.0-49-amd64", "#1 SMP Debian 6.1.175-1 (2026-07-01)", (6, 1, 175), ""),
        ("6.12.43+deb13-amd64", "#1 SMP Debian 6.12.43-1~bpo12+1", (6, 12, 43), "6.12.83"),
        ("6.12.47+rpt-rpi-v8", "#1 SMP PREEMPT", (6, 12, 47), "6.12.83"),
        ("6.18.24-200.fc43.x86_64", "#1 SMP", (6, 18, 24), ""),
        ("6.19.13-arch1-1", "#1 SMP", (6, 19, 13), "6.19.14"),
        # Which upstream version these are is not told; a line that ended; one that is newer.
        ("5.15.0-160-generic", "#170-Ubuntu SMP", (5, 15, 0), ""),
        ("6.12.0-55.el10.x86_64", "#1 SMP", (6, 12, 0), ""),
        ("6.8.12-5-pve", "#1 SMP", (6, 8, 12), ""),
        ("7.1.2", "#1 SMP", (7, 1, 2), ""),
        ("7.2-rc1", "", (7, 2, 0), ""),
        ("unknown", "", (0, 0, 0), ""),
    ],
)  # fmt: skip
def test_which_kernels_are_known(
    release: str, build: str, wanted: tuple[int, int, int], mended: str
) -> None:
    assert version(release, build) == wanted
    assert trusts_remotes(wanted) == mended


def test_here_sleep_is_waited_for_or_stands_still(tmp_path: Path) -> None:
    assert local(tmp_path)["suspend"].ok is Verdict.OK
    (tmp_path / "other").mkdir()
    bad = local(tmp_path / "other", sleeps=False)["suspend"]
    assert (bad.ok, bad.machine) == (Verdict.WARNING, "here")
    assert "Detach" in bad.remedy
