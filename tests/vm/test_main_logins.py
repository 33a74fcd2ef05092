# SPDX-License-Identifier: GPL-3.0-or-later
"""Ways to be let in at pi, on real machines: a person's agent, sudo, a jump host; and strangers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from vm.faults import eventually
from vm.testbed.desk import BUS_NAME, ROOT, CallFailed, Desk
from vm.testbed.pi import BUSIDS, Pi
from vm.testbed.systems import stick_files

pytestmark = pytest.mark.usefixtures("listed")

STICK = BUSIDS["stick"]
CONFIG = "/etc/usbipsshd/ssh_config"
KNOWN = "/etc/ssh/ssh_known_hosts"
HOME = "/home/alice"
SOCKET = f"{HOME}/agent"
READ = "read the list of remotes again"


@contextmanager
def remote(pi: Pi, desk: Desk, name: str, address: str, *, sudo: bool = False) -> Iterator[str]:
    """A remote, trusted for a while."""
    desk.trust(name, address, pi.fingerprint(), sudo=sudo)
    try:
        yield name
    finally:
        desk.manager("root", "RemoveRemote", name, timeout=120)


def read_stick(desk: Desk, path: str) -> None:
    """What is on the stick that is attached as ``path`` is what should be."""
    with desk.mounted(desk.node(path)) as folder:
        assert desk.run("cat", f"{folder}/hello.txt") == stick_files()["hello.txt"].decode()


def refused(desk: Desk, name: str, member: str = "ListRemote", pattern: str = "") -> CallFailed:
    with pytest.raises(CallFailed) as caught:
        desk.manager("alice", member, name, pattern)
    return caught.value


def until(desk: Desk, test: str, *words: str) -> None:
    """Wait until a shell's test holds on desk."""
    script = f"i=0; until {test}; do i=$((i+1)); [ $i -lt 180 ] || exit 1; sleep 0.5; done"
    desk.shell(script, *words, timeout=200)


def comes_back(desk: Desk, path: str, before: int) -> None:
    """It is attached anew, after ``before``."""
    get = 'busctl get-property "$1" "$2" "$1.Attachment"'
    test = f'{{ {get} State | grep -q attached && ! {get} AttachedAt | grep -q "$3"; }}'
    until(desk, test, BUS_NAME, path, str(before))


def kept_by_systemd(desk: Desk) -> int:
    """How many descriptors it keeps for the daemon."""
    return int(desk.run("systemctl", "show", "-P", "NFileDescriptorStore", "usbipsshd.service"))


@contextmanager
def alices_agent(pi: Pi, desk: Desk) -> Iterator[None]:
    """Alice's ssh-agent runs on desk with a key that the user pi accepts on pi."""
    script = (
        'cd; rm -f key key.pub agent; ssh-keygen -q -t ed25519 -N "" -f key\n'
        'eval "$(ssh-agent -a "$1")" >/dev/null; ssh-add -q key; rm key\n'
        'echo "$SSH_AGENT_PID"; cat key.pub'
    )
    out = desk.run("runuser", "-l", "alice", "-c", script.replace("$1", SOCKET))
    pid, public = out.splitlines()
    pi.authorize(public, "pi")
    try:
        yield
    finally:
        desk.run("sh", "-c", f"kill {pid}; rm -f {SOCKET} {HOME}/key.pub")
        pi.run("rm", "-f", "/home/pi/.ssh/authorized_keys")


def ctl(desk: Desk, *words: str) -> tuple[int, str]:
    """usbipsshctl as alice, with her agent; its status and what it says."""
    done = desk.ssh.attempt(
        "runuser", "-u", "alice", "--", "env", f"SSH_AUTH_SOCK={SOCKET}", "usbipsshctl", *words,
        timeout=120,
    )  # fmt: skip
    assert "Traceback" not in done.err, done.err
    return done.code, done.out + done.err


def test_a_person_whose_key_is_only_in_her_agent(pi: Pi, desk: Desk) -> None:
    desk.stop_daemon()
    with remote(pi, desk, "mine", "pi@pi", sudo=True), alices_agent(pi, desk):
        # The daemon's own key does not open it.
        assert refused(desk, "mine").name.endswith("SshAuthFailed")
        code, said = ctl(desk, "list", "mine")
        assert (code, "46f4:0001" in said) == (0, True), said
        code, said = ctl(desk, "attach", "--keep", "mine", "46f4:0001")
        assert code == 0, said
        ((path, _),) = [i for i in desk.objects().items() if "/attachment/" in i[0]]
        read_stick(desk, path)
        # Still nobody else's, though it is connected.
        assert refused(desk, "mine").name.endswith("SshAuthFailed")
        state = desk.properties(f"{ROOT}/remote/mine", f"{BUS_NAME}.Remote")["State"]
        assert state == "unreachable"
        # It comes back, also after the daemon was restarted: systemd keeps the agent's socket.
        desk.run("systemctl", "restart", "usbipsshd.service", timeout=120)
        assert desk.attachment(path)["State"] == "attached"
        before = desk.attachment(path)["AttachedAt"]
        desk.run("pkill", "-KILL", "-u", "usbipssh")
        comes_back(desk, path, before)
        read_stick(desk, path)
        eventually(lambda: kept_by_systemd(desk) == 2, 60, "its two sockets are kept")
        assert desk.detach("alice", path) == 1
        # With the attachment its session ends, and nobody keeps the agent's socket.
        until(desk, '[ "$(systemctl show -P NFileDescriptorStore usbipsshd.service)" = 0 ]')
        until(desk, "! pgrep -u usbipssh")


def test_a_user_with_sudo(pi: Pi, desk: Desk) -> None:
    # So that no other agent has a folder there; one that was told to end takes a moment.
    desk.stop_daemon()
    eventually(lambda: pi.agents_left() == [], 60, "the agent before has ended")
    pi.authorize(desk.properties(ROOT, f"{BUS_NAME}.Manager")["PublicKey"], "pi")
    with remote(pi, desk, "helper", "pi@pi", sudo=True):
        path = desk.attach("alice", STICK, "helper")
        # The folder of the forwarded socket belongs to who logged in, and is open to nobody else.
        where = pi.shell("stat -c '%U %a %n' /run/usbipssh.*").split()
        assert where[:2] == ["pi", "700"]
        assert pi.ssh.attempt("runuser", "-u", "guest", "--", "ls", where[2]).code != 0
        assert pi.ssh.attempt("runuser", "-u", "guest", "--", "touch", f"{where[2]}/x").code != 0
        read_stick(desk, path)
        assert desk.detach("alice", path) == 1
        assert pi.driver(STICK) == "usb"
    with remote(pi, desk, "plain", "pi@pi"):
        desk.list_remote("alice", "plain")
        told = refused(desk, "plain", "Attach", STICK)
        assert told.name.endswith("NotPermittedThere")
        assert "not root" in told.message
    pi.run("rm", "-f", "/home/pi/.ssh/authorized_keys")


RULES = ["guest ALL=(ALL) ALL", pytest.param("Defaults:guest requiretty", marks=pytest.mark.long)]


@pytest.mark.parametrize("rule", RULES)
def test_a_user_whose_sudo_asks_or_refuses(pi: Pi, desk: Desk, rule: str) -> None:
    pi.authorize(desk.properties(ROOT, f"{BUS_NAME}.Manager")["PublicKey"], "guest")
    pi.shell('printf "%s\\n" "$1" >/etc/sudoers.d/guest; chmod 440 /etc/sudoers.d/guest', rule)
    try:
        with remote(pi, desk, "asks", "guest@pi", sudo=True):
            told = refused(desk, "asks")
            assert told.name.endswith("NotPermittedThere"), told
            assert "sudo on asks asks for a password, or refuses" in told.message
    finally:
        pi.run("rm", "-rf", "/etc/sudoers.d/guest", "/home/guest/.ssh")


# Connects to whatever listens on loopback, sshd's own port aside, as soon as it does and for as
# long as it lasts, and notes each connection and each byte that comes.
_STRANGER = r"""
use Socket; use Fcntl;
$| = 1; print "ready\n";
my ($met, $got, %open) = (0, 0);
my $end = time + 600;
until (-e "/tmp/enough" or time > $end) {
    my %ports;
    if (open(my $f, "<", "/proc/net/tcp")) {
        while (<$f>) { $ports{hex $1} = 1 if /: 0100007F:(\S+) \S+ 0A / }
    }
    for my $port (keys %ports) {
        next if $port == 22 or scalar(keys %open) > 40;
        socket(my $s, PF_INET, SOCK_STREAM, 0) or next;
        if (connect($s, sockaddr_in($port, INADDR_LOOPBACK))) {
            open(my $f, ">", "/tmp/met") unless $met++;
            syswrite($s, $met % 2 ? "x" x 32 . "\n" : "");
            fcntl($s, F_SETFL, O_NONBLOCK); $open{$s} = $s;
        }
    }
    for my $s (values %open) {
        my $n = sysread($s, my $data, 4096);
        if ($n) { $got += $n } elsif (defined $n) { delete $open{$s} }
    }
    select(undef, undef, undef, 0.002);
}
print "$met $got\n";
"""


def test_a_guest_who_connects_first_gets_nothing_and_breaks_nothing(pi: Pi, desk: Desk) -> None:
    """Bash alone connects by TCP on pi's loopback, where everybody can."""
    desk.stop_daemon()
    pi.run("rm", "-f", "/tmp/enough", "/tmp/met")
    with pi.only_connector("bash"):
        stranger = pi.ssh.start(
            "runuser", "-u", "guest", "--", "/usr/bin/perl.hidden", "-e", _STRANGER
        )
        try:
            assert stranger.stdout is not None
            assert stranger.stdout.readline() == b"ready\n"
            # Who is first is a matter of luck: until it was the stranger.
            for _ in range(20):
                path = desk.attach("alice", STICK)
                read_stick(desk, path)
                assert desk.detach("alice", path) == 1
                if pi.ssh.attempt("test", "-e", "/tmp/met").code == 0:
                    break
        finally:
            pi.run("touch", "/tmp/enough")
            out, err = stranger.communicate(timeout=150)
            pi.run("rm", "-f", "/tmp/enough", "/tmp/met")
        desk.stop_daemon()
    met, got = (int(word) for word in out.split())
    assert met > 0, err
    assert got == 0
    eventually(
        lambda: "without the token" in desk.journal("usbipssh-session@"), 60, "the log tells of it"
    )


@contextmanager
def another_sshd(pi: Pi) -> Iterator[int]:
    """On pi's loopback, where only pi itself gets to."""
    pi.run(
        "/usr/sbin/sshd", "-o", "Port=2222", "-o", "ListenAddress=127.0.0.1",
        "-o", "PidFile=/run/sshd-inner.pid",
    )  # fmt: skip
    # It goes into the background before it listens, and notes its process after that.
    pi.shell(
        "i=0; until [ -s /run/sshd-inner.pid ]; do"
        " i=$((i+1)); [ $i -lt 600 ] || exit 1; sleep 0.1; done",
        timeout=120,
    )
    try:
        yield 2222
    finally:
        pi.shell("kill $(cat /run/sshd-inner.pid); rm -f /run/sshd-inner.pid")


def test_by_way_of_a_jump_host(pi: Pi, desk: Desk) -> None:
    key = pi.run("cat", "/etc/ssh/ssh_host_ed25519_key.pub")
    with another_sshd(pi) as port:
        text = f"Host inner\n HostName 127.0.0.1\n Port {port}\n User root\n ProxyJump root@pi\n"
        desk.run("sh", "-c", f"mkdir -p /etc/usbipsshd; cat >{CONFIG}", data=text)
        desk.run("sh", "-c", f"cat >{KNOWN}", data=f"pi {key}[127.0.0.1]:{port} {key}")
        desk.manager("root", "AddRemote", "inner")
        try:
            path = desk.attach("alice", STICK, "inner")
            read_stick(desk, path)
            assert desk.detach("alice", path) == 1
        finally:
            desk.manager("root", "RemoveRemote", "inner", timeout=120)
            desk.run("rm", "-f", CONFIG, KNOWN)


def test_systemctl_reload_reads_the_remotes_again(pi: Pi, desk: Desk) -> None:
    folder = "/etc/usbipsshd/remotes.d"
    shelf, broken = f"{ROOT}/remote/shelf", f"{ROOT}/remote/broken"

    def write(name: str, text: str) -> None:
        desk.run("sh", "-c", f"mkdir -p {folder}; cat >{folder}/{name}.toml", data=text)

    def reload() -> None:
        done = desk.journal("usbipsshd").count(READ)
        desk.run("systemctl", "reload", "usbipsshd.service", timeout=60)
        log = "journalctl --no-pager -o cat -u usbipsshd.service"
        until(desk, f'[ "$({log} | grep -c "$1")" -gt "$2" ]', READ, str(done))

    before = set(desk.objects())
    path = desk.attach("alice", STICK)
    try:
        write("shelf", 'address = "root@pi"\nlabel = "Shelf"\n')
        write("broken", 'label = "x"\naddress = \n')
        reload()
        assert set(desk.objects()) == before | {shelf, path}
        assert desk.properties(shelf, f"{BUS_NAME}.Remote")["Label"] == "Shelf"
        assert "broken.toml:2: " in desk.journal("usbipsshd")
        desk.manager("root", "TrustHostKey", "shelf", pi.fingerprint())
        assert STICK in {d["busid"] for d in desk.list_remote("alice", "shelf")}
        write("shelf", 'address = "root@pi:1"\nlabel = "Elsewhere"\n')
        write("broken", 'address = "root@pi"\n')
        reload()
        assert set(desk.objects()) == before | {shelf, broken, path}
        assert desk.properties(shelf, f"{BUS_NAME}.Remote")["Label"] == "Elsewhere"
        assert desk.attachment(path)["State"] == "attached"
        read_stick(desk, path)
    finally:
        desk.run("rm", "-f", f"{folder}/shelf.toml", f"{folder}/broken.toml")
        reload()
        desk.detach("root", path)
    assert set(desk.objects()) == before
