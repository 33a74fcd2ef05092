# SPDX-License-Identifier: GPL-3.0-or-later
"""Root's ssh configuration, followed to real sshds: jump hosts, commands, identities, aliases."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakekernel import STICK
from integration.otherremotes import listed, other_sshd
from integration.sshd import KEYGEN, make_key, unused_port
from integration.world import ALICE, MANAGER, ROOT, World, wait_until, world

PIPE = """exec perl -MIO::Socket::INET -e '
my $s = IO::Socket::INET->new(PeerAddr => $ARGV[0], PeerPort => $ARGV[1]) or die;
if (my $child = fork) { while (sysread(STDIN, my $b, 65536)) { syswrite($s, $b) } shutdown($s, 1);
waitpid($child, 0) } else { while (sysread($s, my $b, 65536)) { syswrite(STDOUT, $b) } }' "$@"
"""
"""A netcat of our own: everything has perl."""


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    with world() as made:
        made.pi.plug("2-1", STICK)
        made.authorize()
        with (made.folder / "known_hosts").open("a") as file:
            file.write(f"[127.0.0.1]:{made.ssh.port} {made.ssh.host_keys[0]}\n")
        yield made


@pytest.fixture
def w(shared: World) -> Iterator[World]:
    yield shared
    shared.detach_all()
    (shared.folder / "etc/ssh_config").unlink(missing_ok=True)
    shared.check_clean()


def configure(w: World, text: str) -> Path:
    path = w.folder / "etc/ssh_config"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o644)
    return path


@contextlib.contextmanager
def remote(w: World, name: str, address: str = "") -> Iterator[str]:
    """A remote, listed without port and user, as people write them."""
    w.call(0, "AddRemote", "sa{sv}", name, "1", "address", "s", address or name)
    try:
        yield name
    finally:
        w.call(0, "RemoveRemote", "sa{sv}", name, "0")


def accepted(w: World) -> int:
    return w.ssh.log().count("Accepted publickey")


def test_host_name_port_and_user(w: World) -> None:
    configure(w, f"Host shelf\n HostName 127.0.0.1\n Port {w.ssh.port}\n User root\n")
    with remote(w, "shelf"):
        assert [d["busid"] for d in w.list(remote="shelf")] == ["2-1"]
        stick = w.attach("2-1", ALICE, "shelf")
        assert w.desk.transfer(int(w.get(stick, "org.usbipssh1.Attachment", "Port")), 9000) == 9000


def test_what_the_address_says_wins(w: World) -> None:
    configure(w, "Host *\n Port 1\n User nobody\n")
    with listed(w, "pi", w.ssh.port):
        assert w.list()


def test_a_jump_host_is_logged_in_to_and_its_key_is_checked(w: World) -> None:
    with other_sshd(w, own_key=True, known=False) as ports:
        configure(
            w,
            f"Host behind\n HostName 127.0.0.1\n Port {w.ssh.port}\n ProxyJump gate\n"
            f"Host gate\n HostName 127.0.0.1\n Port {ports[0]}\n",
        )
        with remote(w, "behind"):
            # Nobody knows the gate's key: that is told, and it is not offered as the remote's.
            message = w.refused(
                "ConnectionFailed", ALICE, "ListRemote", "ssa{sv}", "behind", "", "0", says="jump"
            )
            assert "SHA256" not in message
            path = f"{ROOT}/remote/behind"
            assert w.get(path, "org.usbipssh1.Remote", "OfferedHostKey") == ""
            key = subprocess.check_output(
                ["ssh-keyscan", "-p", str(ports[0]), "-t", "ed25519", "127.0.0.1"],
                text=True, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            known = w.folder / "known_hosts"
            before = known.read_text()
            known.write_text(before + key)
            try:
                stick = w.attach("2-1", ALICE, "behind")
                port = int(w.get(stick, "org.usbipssh1.Attachment", "Port"))
                assert w.desk.transfer(port, 300_000) == 300_000
                w.call(ALICE, "Detach", "sa{sv}", stick, "0")
                # The remote's own key is checked at the far end of the jump.
                known.write_text(key)
                w.call(0, "RemoveRemote", "sa{sv}", "behind", "0")
                w.call(0, "AddRemote", "sa{sv}", "behind", "0")
                w.refused("HostKeyUnknown", ALICE, "ListRemote", "ssa{sv}", "behind", "", "0")
                w.call(0, "TrustHostKey", "ssa{sv}", "behind", w.fingerprint(), "0")
                assert w.list(remote="behind")
            finally:
                known.write_text(before)


def test_two_jump_hosts_in_a_row(w: World) -> None:
    with other_sshd(w) as first, other_sshd(w) as second:
        configure(
            w,
            f"Host far\n HostName 127.0.0.1\n Port {w.ssh.port}\n"
            f" ProxyJump 127.0.0.1:{first[0]},root@127.0.0.1:{second[0]}\n",
        )
        with remote(w, "far"):
            assert w.list(remote="far")
            stick = w.attach("2-1", ALICE, "far")
            port = int(w.get(stick, "org.usbipssh1.Attachment", "Port"))
            assert w.desk.transfer(port, 300_000) == 300_000


def test_a_jump_host_that_is_off_or_reaches_nothing(w: World) -> None:
    with unused_port() as off, remote(w, "far"):
        configure(w, f"Host far\n ProxyJump 127.0.0.1:{off}\n HostName 127.0.0.1\n Port 1\n")
        w.refused(
            "ConnectionFailed", ALICE, "ListRemote", "ssa{sv}", "far", "", "0",
            says="its jump host cannot be reached",
        )  # fmt: skip
        configure(
            w, f"Host far\n ProxyJump 127.0.0.1:{w.ssh.port}\n HostName 127.0.0.1\n Port {off}\n"
        )
        w.refused(
            "ConnectionFailed", ALICE, "ListRemote", "ssa{sv}", "far", "", "0",
            says="its jump host does not reach it",
        )  # fmt: skip


def test_jump_hosts_in_a_circle(w: World) -> None:
    configure(w, "Host a\n ProxyJump b\nHost b\n ProxyJump a\n")
    with remote(w, "a"):
        w.refused("Failed", ALICE, "ListRemote", "ssa{sv}", "a", "", "0", says="configuration")


def test_a_proxy_command_runs_as_the_session_s_user_and_ends_with_it(w: World) -> None:
    script = w.folder / "pipe"
    note = w.folder / "who"
    note.mkdir()
    note.chmod(0o777)
    script.write_text(f"id -u > {note}/uid; echo $$ > {note}/pid\n{PIPE}")
    script.chmod(0o755)
    configure(
        w,
        f"Host piped\n HostName 127.0.0.1\n Port {w.ssh.port}\n ProxyCommand sh {script} %h %p\n",
    )
    with remote(w, "piped"):
        stick = w.attach("2-1", ALICE, "piped")
        assert (note / "uid").read_text().strip() not in {"", "0"}
        port = int(w.get(stick, "org.usbipssh1.Attachment", "Port"))
        assert w.desk.transfer(port, 300_000) == 300_000
        w.call(ALICE, "Detach", "sa{sv}", stick, "0")
        # Not a caller's word, and nothing that a shell would take for more than a word.
    pid = (note / "pid").read_text().strip()
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the command goes on")


def test_a_proxy_command_that_cannot_work(w: World) -> None:
    for command in ("exit 1", "/nonexistent/program %h", "echo nonsense", "ssh %C"):
        configure(w, f"Host piped\n ProxyCommand {command}\n")
        with remote(w, "piped"):
            answer = w.ask(ALICE, "ListRemote", "ssa{sv}", "piped", "", "0")
            assert answer.error.split(".")[-1] in {
                "ConnectionFailed", "RemoteUnsupported", "Failed",
            }, answer  # fmt: skip


def test_identities_and_certificates(w: World) -> None:
    keys = w.folder / "keys"
    keys.mkdir(mode=0o700)
    keys_file = w.ssh.folder / "authorized_keys"
    before = keys_file.read_text()
    try:
        for kind in ("ed25519", "ecdsa", "rsa"):
            public = make_key(keys / kind, kind)
            keys_file.write_text(public + "\n")
            configure(
                w,
                f"Host shelf\n HostName 127.0.0.1\n Port {w.ssh.port}\n"
                f" IdentityFile {keys / kind}\n",
            )
            with remote(w, "shelf"):
                assert w.list(remote="shelf"), kind
        authority = make_key(keys / "ca")
        keys_file.write_text(f"cert-authority {authority}\n")
        subprocess.run(
            [KEYGEN, "-q", "-s", keys / "ca", "-I", "usb", "-n", "root", keys / "rsa.pub"],
            check=True,
        )
        for line in (f"CertificateFile {keys / 'rsa-cert.pub'}", ""):
            configure(
                w,
                f"Host shelf\n HostName 127.0.0.1\n Port {w.ssh.port}\n"
                f" IdentityFile {keys / 'rsa'}\n IdentitiesOnly yes\n {line}\n",
            )
            with remote(w, "shelf"):
                assert w.list(remote="shelf"), line
        # One that others could read is not used, as with ssh.
        (keys / "rsa").chmod(0o644)
        with remote(w, "shelf"):
            w.refused("SshAuthFailed", ALICE, "ListRemote", "ssa{sv}", "shelf", "", "0")
    finally:
        keys_file.write_text(before)


def test_a_key_is_known_by_its_alias(w: World) -> None:
    configure(
        w,
        f"Host shelf\n HostName 127.0.0.1\n Port {w.ssh.port}\n HostKeyAlias shelf.example\n",
    )
    with remote(w, "shelf"):
        w.refused("HostKeyUnknown", ALICE, "ListRemote", "ssa{sv}", "shelf", "", "0")
        known = w.folder / "known_hosts"
        before = known.read_text()
        known.write_text(f"shelf.example {w.ssh.host_keys[0]}\n")
        try:
            assert w.list(remote="shelf")
        finally:
            known.write_text(before)


def test_a_file_with_a_mistake_or_of_somebody_else(w: World) -> None:
    with listed(w, "pi", w.ssh.port):
        path = configure(w, "Host *\n NoSuchOption yes\n")
        w.refused("Failed", ALICE, "ListRemote", "ssa{sv}", "pi", "", "0", says="its log says")
        assert "ssh_config: line 2: Bad configuration option" in w.log()
        configure(w, "")
        path.chmod(0o666)
        w.refused("Failed", ALICE, "ListRemote", "ssa{sv}", "pi", "", "0", says="its log says")
        assert "others than root can write to it" in w.log()
        path.chmod(0o644)
        assert w.list()
    assert w.get(ROOT, MANAGER, "PublicKey")
    assert accepted(w)
