# SPDX-License-Identifier: GPL-3.0-or-later
"""Remotes that cannot do what is needed, and each way of connecting a socket there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from fakekernel import STICK, FakeKernel
from integration.otherremotes import bad, listed, other_sshd, saying_port
from integration.world import ALICE, ATTACHMENT, World, world

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


def root_with_sh() -> str:
    # The first line for a name counts, so root's own is not used: bash may be hidden.
    return "toor:x:0:0::/root:/bin/sh\n"


@pytest.mark.parametrize("only", CONNECTORS)
def test_each_connector_alone_is_enough(w: World, only: str) -> None:
    hide = [c for c in CONNECTORS if c != only]
    with (
        other_sshd(w, hide=hide, passwd=root_with_sh()) as ports,
        listed(w, only, ports[0], "toor"),
    ):
        path = w.attach("2-1", ALICE, only)
        assert w.desk.transfer(w.get(path, ATTACHMENT, "Port"), 300_000) == 300_000
        w.call(ALICE, "Detach", "sa{sv}", path, "0")


def test_no_connector(w: World) -> None:
    with (
        other_sshd(w, hide=CONNECTORS, passwd=root_with_sh()) as ports,
        listed(w, "bare", ports[0], "toor"),
    ):
        assert len(w.list(remote="bare")) == 1
        w.refused("RemoteUnsupported", ALICE, "Attach", "ssa{sv}", "bare", "2-1", "0", says="bare")


@pytest.mark.parametrize(
    ("config", "hide"),
    [
        (["AllowStreamLocalForwarding no", "AllowTcpForwarding no"], []),
        (["DisableForwarding yes"], []),
        (["AllowTcpForwarding no"], [c for c in CONNECTORS if c not in ("bash", "busybox")]),
    ],
)
def test_forwarding_refused(w: World, config: Sequence[str], hide: Sequence[str]) -> None:
    with (
        other_sshd(w, config=config, hide=hide, passwd=root_with_sh()) as ports,
        listed(w, "strict", ports[0], "toor"),
    ):
        assert len(w.list(remote="strict")) == 1
        message = w.refused(
            "RemoteUnsupported", ALICE, "Attach", "ssa{sv}", "strict", "2-1", "0", says="strict"
        )
        assert "forwarding" in message


@pytest.mark.parametrize("only", CONNECTORS)
def test_the_other_kind_of_forwarding_will_do(w: World, only: str) -> None:
    config = ["AllowStreamLocalForwarding no"]
    hide = [c for c in CONNECTORS if c != only]
    with (
        other_sshd(w, config=config, hide=hide, passwd=root_with_sh()) as ports,
        listed(w, "half", ports[0], "toor"),
    ):
        path = w.attach("2-1", ALICE, "half")
        assert w.desk.transfer(w.get(path, ATTACHMENT, "Port"), 1000) == 1000
        w.call(ALICE, "Detach", "sa{sv}", path, "0")


def test_a_login_that_is_not_root(w: World) -> None:
    users = "carl:x:61004:61004::/tmp:/bin/sh\n"
    with other_sshd(w, passwd=users) as ports:
        with listed(w, "plain", ports[0], "carl"):
            assert len(w.list(remote="plain")) == 1
            w.refused(
                "NotPermittedThere", ALICE, "Attach", "ssa{sv}", "plain", "2-1", "0", says="plain"
            )
        with listed(w, "asks", ports[0], "carl", "sudo", "b", "true"):
            w.refused(
                "NotPermittedThere",
                ALICE,
                "ListRemote",
                "ssa{sv}",
                "asks",
                "",
                "0",
                says="sudo on asks asks for a password",
            )


def test_a_login_without_a_shell(w: World) -> None:
    users = "none:x:0:0::/root:/usr/sbin/nologin\n"
    with other_sshd(w, passwd=users) as ports, listed(w, "closed", ports[0], "none"):
        w.refused(
            "RemoteUnsupported", ALICE, "ListRemote", "ssa{sv}", "closed", "", "0", says="closed"
        )


def test_a_user_that_is_not_there(w: World) -> None:
    with other_sshd(w) as ports, listed(w, "pi", ports[0], "nobodyhere"):
        w.refused("SshAuthFailed", ALICE, "ListRemote", "ssa{sv}", "pi", "", "0", says="pi")


def test_a_command_that_is_forced(w: World) -> None:
    forced = [bad("instead", "Only backups here.")]
    with other_sshd(w, forced=forced) as ports, listed(w, "backup", ports[0]):
        message = w.refused(
            "RemoteUnsupported", ALICE, "ListRemote", "ssa{sv}", "backup", "", "0", says="backup"
        )
        assert "Only backups" not in message


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"", "ConnectionFailed"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "RemoteUnsupported"),
        (b"SSH-2.0-x\r\n" + bytes(4096), "RemoteUnsupported"),
        (bytes(100_000), "RemoteUnsupported"),
    ],
    ids=["nothing", "http", "half", "zeros"],
)
def test_a_port_that_is_no_sshd(w: World, text: bytes, code: str) -> None:
    with saying_port(text) as port, listed(w, "web", port):
        w.refused(code, ALICE, "ListRemote", "ssa{sv}", "web", "", "0", says="web")
        fingerprint = "SHA256:" + "A" * 43
        w.refused(code, ALICE, "TrustHostKey", "ssa{sv}", "web", fingerprint, "0", says="web")


def test_modules_that_are_missing() -> None:
    here = FakeKernel(modules=("usbip-host",), missing=("vhci-hcd",))
    there = FakeKernel(modules=("vhci-hcd",), missing=("usbip-host",))
    with world(desk=here, pi=there) as w:
        w.pi.plug("2-1", STICK)
        w.add_remote()
        assert w.get("/org/usbipssh1", "org.usbipssh1.Manager", "VhciAvailable") is False
        assert w.get("/org/usbipssh1", "org.usbipssh1.Manager", "FreePorts") == {"hs": 0, "ss": 0}
        message = w.refused(
            "ModuleUnavailable", ALICE, "Attach", "ssa{sv}", "pi", "2-1", "0", says="vhci-hcd"
        )
        assert "This machine" in message
        assert "package" in message
        w.check_clean()
        w.desk.ask("missing", module="vhci-hcd", missing=False)
        message = w.refused(
            "ModuleUnavailable", ALICE, "Attach", "ssa{sv}", "pi", "2-1", "0", says="usbip-host"
        )
        assert "pi" in message
        assert "package" in message
        assert w.get("/org/usbipssh1", "org.usbipssh1.Manager", "VhciAvailable") is True
        w.check_clean()
        w.pi.ask("missing", module="usbip-host", missing=False)
        w.attach("2-1")
