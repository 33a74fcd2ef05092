# SPDX-License-Identifier: GPL-3.0-or-later
"""A caller's own ssh-agent: what it opens, for whom, and what a bad one cannot do."""

from __future__ import annotations

import asyncio
import base64
import fcntl
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fakekernel import SERIAL_ADAPTER, STICK
from integration.otherremotes import listed, other_sshd
from integration.recorder import recording
from integration.sshagents import (
    BODIES,
    WITH,
    PersonsAgent,
    _ask,
    ask_with,
    framed,
    made_up_agent,
    persons_agent,
)
from integration.sshd import KEYGEN, make_key
from integration.world import (
    ALICE,
    ATTACHMENT,
    BOB,
    ERROR,
    NAME,
    REMOTE,
    ROOT,
    World,
    check_refusal,
    wait_until,
    world,
)

KEEP = {"keep": True}
PI = f"{ROOT}/remote/pi"


@pytest.fixture(scope="module")
def shared() -> Iterator[World]:
    with world() as made:
        made.pi.plug("2-1", STICK)
        made.pi.plug("1-2", SERIAL_ADAPTER)
        made.desk.plug("2-1", STICK)
        # pi knows alice's key, and not the daemon's.
        made.add_remote(key=False)
        yield made


@pytest.fixture(scope="module")
def agent(shared: World) -> Iterator[PersonsAgent]:
    with persons_agent(ALICE, shared.ssh.client_key) as running:
        yield running


@pytest.fixture
def w(shared: World) -> Iterator[World]:
    files, tasks = shared.descriptors(), len(shared.tasks())
    yield shared
    shared.detach_all()
    # Nothing of it is left: no connection, no descriptor, nobody who waits.
    wait_until(lambda: not shared.sessions(), "a session stays")
    wait_until(lambda: shared.descriptors() <= files, "descriptors stay open")
    wait_until(lambda: len(shared.tasks()) <= tasks, "tasks stay")
    shared.check_clean()
    assert "Traceback" not in shared.log()


def attach(w: World, agent: PersonsAgent, busid: str = "2-1", **options: bool) -> str:
    with agent.connect() as sock:
        return str(ask_with(w, agent.uid, "Attach", ("pi", busid), sock, options).value())


def state(w: World, path: str) -> str:
    return str(w.get(path, ATTACHMENT, "State"))


def becomes(w: World, path: str, wanted: str) -> None:
    wait_until(lambda: state(w, path) == wanted, f"not {wanted}")


def test_it_opens_what_the_daemon_cannot_and_for_nobody_else(w: World, agent: PersonsAgent) -> None:
    w.refused("SshAuthFailed", ALICE, "ListRemote", "ssa{sv}", "pi", "", "0", says="PublicKey")
    before = w.get_all(PI, REMOTE)
    with recording(w.bus, NAME) as recorder:
        with agent.connect() as sock:
            found = ask_with(w, ALICE, "ListRemote", ("pi", ""), sock).value()
        assert [d["busid"] for d in found] == ["1-2", "2-1"]
        stick = attach(w, agent)
        port = int(w.get(stick, ATTACHMENT, "Port"))
        assert w.desk.transfer(port, 300_000) == 300_000
        # Her connection is there, and opens nothing to others, nor to herself without her agent.
        for uid in (0, ALICE):
            w.refused("SshAuthFailed", uid, "ListRemote", "ssa{sv}", "pi", "", "0")
            w.refused("SshAuthFailed", uid, "Attach", "ssa{sv}", "pi", "1-2", "0")
        w.refused("AccessDenied", BOB, "ListRemote", "ssa{sv}", "pi", "", "0")
        w.pi.unplug("1-2")
        w.pi.plug("1-2", SERIAL_ADAPTER)
        # It is hers like any other.
        w.refused("AccessDenied", BOB, "Detach", "sa{sv}", stick, "0")
        assert w.call(ALICE, "GetStatistics", "a{sv}", "0", path=stick, interface=ATTACHMENT)
        w.call(ALICE, "Detach", "sa{sv}", stick, "0")
        recorder.wait_removed(stick)
    # The remote that everybody sees tells nothing of it.
    assert w.get_all(PI, REMOTE) == before
    told = [s.member for s in recorder.signals if s.path == PI]
    assert "DevicesChanged" not in told
    assert "connected" not in recorder.values(PI, "State")


def test_all_that_can_bring_one(w: World, agent: PersonsAgent) -> None:
    with agent.connect() as sock:
        findings = ask_with(w, ALICE, "Preflight", ("pi",), sock).value()
        assert {f["ok"] for f in findings if f["machine"] == "there"} == {"ok"}
        hub = ask_with(w, ALICE, "AttachAll", ("pi", ""), sock).value()
    wait_until(lambda: len(w.attachments()) == 2, "not both")
    for path in w.attachments():
        becomes(w, path, "attached")
    w.pi.unplug("1-2")
    wait_until(lambda: len(w.attachments()) == 1, "still there")
    w.pi.plug("1-2", SERIAL_ADAPTER)
    wait_until(lambda: len(w.attachments()) == 2, "not again")
    with agent.connect() as sock:
        busids = ask_with(w, ALICE, "Unbind", ("pi", "2-1"), sock).value()
    assert busids == ["2-1"]
    w.call(ALICE, "Detach", "sa{sv}", hub, "0")


@pytest.mark.parametrize("kind", ["rsa", "ecdsa", "certificate"])
def test_every_kind_of_key(w: World, kind: str, tmp_path: Path) -> None:
    public = make_key(tmp_path / "key", "ed25519" if kind == "certificate" else kind)
    keys = w.ssh.folder / "authorized_keys"
    before = keys.read_text()
    if kind == "certificate":
        public = "cert-authority " + make_key(tmp_path / "ca")
        subprocess.run(
            [KEYGEN, "-q", "-s", tmp_path / "ca", "-I", "x", "-n", "root", tmp_path / "key.pub"],
            check=True,
        )
    keys.write_text(public + "\n")
    try:
        with persons_agent(ALICE, tmp_path / "key") as other, other.connect() as sock:
            assert ask_with(w, ALICE, "ListRemote", ("pi", "2-1"), sock).value()
    finally:
        keys.write_text(before)


def test_kept_it_comes_back_for_as_long_as_the_agent_is_there(w: World) -> None:
    with persons_agent(ALICE, w.ssh.client_key) as mine:
        stick = attach(w, mine, keep=True)
        (session,) = w.sessions()
        os.kill(session, signal.SIGKILL)
        wait_until(lambda: w.sessions() not in ([], [session]), "no new session")
        becomes(w, stick, "attached")
        # Its key is taken away, then the agent itself: it waits, and says what is missing.
        mine.clear()
        kill_session(w)
        says(w, stick, "offers no key")
        mine.add(w.ssh.client_key)
        becomes(w, stick, "attached")
        mine.stop()
        kill_session(w)
        says(w, stick, "does not answer")
    w.refused(
        "InvalidArgs", ALICE, "SetOptions", "a{sv}", "1", "persist", "b", "true",
        path=stick, interface=ATTACHMENT, says="persist",
    )  # fmt: skip
    assert not (w.folder / "state/persistent.json").exists()
    becomes(w, stick, "waiting")


def kill_session(w: World) -> None:
    """Kill the only session, once one that is ending has ended."""
    wait_until(lambda: len(w.sessions()) == 1, "there is another")
    (session,) = w.sessions()
    os.kill(session, signal.SIGKILL)
    wait_until(lambda: session not in w.sessions(), "it is still there")


def says(w: World, path: str, text: str) -> None:
    def told() -> bool:
        name, message = w.get(path, ATTACHMENT, "LastError")
        return bool(name == ERROR + "SshAuthFailed" and text in message)

    wait_until(told, f"never says: {text}")


def test_a_key_that_is_for_this_host_only(w: World, tmp_path: Path) -> None:
    """ssh-add -h: the agent has the host prove, for each login, that it is the one."""
    host = f"[127.0.0.1]:{w.ssh.port}"
    other = "[127.0.0.1]:1"
    known = tmp_path / "known_hosts"
    known.write_text(
        f"{host} {(w.ssh.folder / 'host_ed25519.pub').read_text()}"
        f"{other} {make_key(tmp_path / 'another')}\n"
    )
    with persons_agent(ALICE) as mine:
        mine.add_for(w.ssh.client_key, other, known)
        with mine.connect() as sock:
            answer = ask_with(w, ALICE, "ListRemote", ("pi", ""), sock)
        check_refusal(answer, "SshAuthFailed", "ssh-agent")
        mine.clear()
        mine.add_for(w.ssh.client_key, host, known)
        with mine.connect() as sock:
            assert ask_with(w, ALICE, "ListRemote", ("pi", "2-1"), sock).value()
        stick = attach(w, mine, keep=True)
        # The agent ties a connection to one login, and what is kept has no other connection.
        kill_session(w)
        says(w, stick, "good for one login")
        # One that is for every host takes its place there.
        mine.add(w.ssh.client_key)
        becomes(w, stick, "attached")


def test_a_key_that_is_for_one_host_only_behind_a_jump_host(w: World, tmp_path: Path) -> None:
    host = f"[127.0.0.1]:{w.ssh.port}"
    known = tmp_path / "known_hosts"
    known.write_text(f"{host} {(w.ssh.folder / 'host_ed25519.pub').read_text()}")
    with persons_agent(ALICE) as mine:
        mine.add_for(w.ssh.client_key, host, known)
        with behind_a_gate(w), mine.connect() as sock:
            found = ask_with(w, ALICE, "ListRemote", ("behind", ""), sock)
        assert [d["busid"] for d in found.value()] == ["1-2", "2-1"]


def test_one_that_is_not_kept_ends_with_its_connection(w: World, agent: PersonsAgent) -> None:
    attach(w, agent)
    kill_session(w)
    wait_until(lambda: not w.attachments(), "still there")


def test_it_does_not_persist(w: World, agent: PersonsAgent) -> None:
    for member in ("Attach", "AttachAll", "Export"):
        with agent.connect() as sock:
            answer = ask_with(w, ALICE, member, ("pi", "2-1"), sock, {"persist": True})
        check_refusal(answer, "InvalidArgs", "persist")


@contextmanager
def behind_a_gate(w: World) -> Iterator[None]:
    """pi is listed as ``behind``, too, which is reached over a jump host."""
    config = w.folder / "etc/ssh_config"
    config.parent.mkdir(exist_ok=True)
    with other_sshd(w) as ports, listed(w, "behind", w.ssh.port):
        w.call(0, "TrustHostKey", "ssa{sv}", "behind", w.fingerprint(), "0")
        config.write_text(
            f"Host gate\n HostName 127.0.0.1\n Port {ports[0]}\nHost 127.0.0.1\n ProxyJump gate\n"
        )
        try:
            yield
        finally:
            config.unlink()


def test_jump_hosts_are_logged_in_to_as_root_has_configured(w: World, agent: PersonsAgent) -> None:
    with behind_a_gate(w), agent.connect() as sock:
        found = ask_with(w, ALICE, "ListRemote", ("behind", ""), sock)
    # The gate knows the daemon's key only, the machine behind it hers only.
    assert [d["busid"] for d in found.value()] == ["1-2", "2-1"]


def no_sockets() -> Iterator[tuple[str, int]]:
    """Descriptors that are no connected unix stream socket of hers."""
    read, write = os.pipe()
    yield "a pipe", read
    yield "a pipe", write
    yield "a folder", os.open("/tmp", os.O_RDONLY)
    yield "udp", socket.socket(socket.AF_INET, socket.SOCK_DGRAM).detach()
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield "tcp", socket.create_connection(server.getsockname()).detach()
    yield "not connected", socket.socket(socket.AF_UNIX).detach()
    for kind in (socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
        one, other = socket.socketpair(socket.AF_UNIX, kind)
        yield "no stream", one.detach()
        other.close()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("")
        listener.listen()
        yield "a listener", os.dup(listener.fileno())
    # It leads to a program of root's, who may be believed what is written.
    one, other = socket.socketpair()
    yield "root's", one.detach()
    other.close()


def test_only_a_connected_socket_of_one_s_own_is_taken(w: World, agent: PersonsAgent) -> None:
    files = w.descriptors()
    for what, fd in no_sockets():
        for member in ("ListRemote", "Attach"):
            answer = ask_with(w, ALICE, member, ("pi", "2-1"), 0, stray=[fd])
            check_refusal(answer, "InvalidArgs", "ssh-agent")
            assert w.descriptors() <= files + 1, what
        os.close(fd)
    for index in (1, 7, 0xFFFF):
        with agent.connect() as sock:
            answer = ask_with(w, ALICE, "ListRemote", ("pi", ""), index, stray=[sock.fileno()])
        assert answer.error.endswith(("InvalidArgs", "Disconnected")), answer
    assert w.sessions() == []
    # What it names of several is used, the others are closed.
    with agent.connect() as sock, agent.connect() as other:
        answer = ask_with(
            w, ALICE, "ListRemote", ("pi", "2-1"), sock, stray=[other.fileno(), other.fileno()]
        )
        assert len(answer.value()) == 1


def test_who_is_refused_has_its_agent_asked_nothing(w: World) -> None:
    asked: list[bytes] = []
    with made_up_agent(BOB, lambda sock: asked.append(sock.recv(4096))) as sock:
        for member in sorted(set(BODIES) - {"Preflight"}):
            answer = ask_with(w, BOB, member, ("pi", "2-1"), sock)
            check_refusal(answer, "AccessDenied")
    assert asked == [b""]


def test_the_flags_of_the_caller_s_socket_stay_as_they_are(w: World, agent: PersonsAgent) -> None:
    for blocking in (True, False):
        with agent.connect() as sock:
            sock.setblocking(blocking)
            before = fcntl.fcntl(sock, fcntl.F_GETFL)
            stick = str(ask_with(w, ALICE, "Attach", ("pi", "2-1"), sock).value())
            assert fcntl.fcntl(sock, fcntl.F_GETFL) == before
            w.call(ALICE, "Detach", "sa{sv}", stick, "0")
            assert fcntl.fcntl(sock, fcntl.F_GETFL) == before


def silent(sock: socket.socket) -> None:
    while sock.recv(4096):
        pass


def asked_for_keys(sock: socket.socket) -> None:
    """Wait until it is: first it is told which host the login is for, which it does not know."""
    if sock.recv(4096)[4:5] == b"\x1b":
        sock.sendall(framed(b"\x05"))
        sock.recv(4096)


def dripping(sock: socket.socket) -> None:
    asked_for_keys(sock)
    sock.sendall(struct.pack(">I", 100_000))
    sock.settimeout(0.05)
    while True:
        sock.send(b"\0")
        try:
            if not sock.recv(4096):
                return
        except TimeoutError:
            continue


def endless(sock: socket.socket) -> None:
    asked_for_keys(sock)
    while True:
        sock.sendall(framed(b"\x0c" + b"\0" * 65_536))


def saying(data: bytes) -> Callable[[socket.socket], None]:
    def behave(sock: socket.socket) -> None:
        asked_for_keys(sock)
        sock.sendall(data)
        silent(sock)

    return behave


def closing(sock: socket.socket) -> None:
    asked_for_keys(sock)
    sock.sendall(framed(b"\x0c\0\0\0\1")[:6])


def noisy(sock: socket.socket) -> None:
    sock.recv(4096)
    sock.sendall(os.urandom(5000))
    silent(sock)


def talkative(sock: socket.socket) -> None:
    sock.sendall(b"unasked")
    silent(sock)


def unable(sock: socket.socket) -> None:
    """Has a key that pi knows, and answers nothing that is a signature."""
    blob = _known_blob[0]
    entry = struct.pack(">I", len(blob)) + blob + b"\0\0\0\0"
    while sock.recv(4096):
        sock.sendall(framed(b"\x0c\0\0\0\1" + entry))


_known_blob: list[bytes] = []

ODD = b"\x0c" + struct.pack(">I", 3) + b"".join(
    struct.pack(">I", len(blob)) + blob + struct.pack(">I", 4) + b"\x1b[2J"
    for blob in (b"\0\0\0\x05\xff\xfe\xfd\xfc\xfb", b"", b"\0\0\0\x09no-such-k\0\0\0\1x")
)  # fmt: skip

BAD = {
    "silent": silent,
    "slow": dripping,
    "endless": endless,
    "closing": closing,
    "talkative": talkative,
    "unable": unable,
    "failure": saying(framed(b"\x05")),
    "nothing": saying(framed(b"")),
    "four gigabytes": saying(b"\xff\xff\xff\xff" + b"x" * 1000),
    "many keys": saying(framed(b"\x0c\xff\xff\xff\xff" + b"\0" * 100_000)),
    "odd keys": saying(framed(ODD)),
    "noise": saying(os.urandom(5000)),
    "noise at once": noisy,
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_agent_costs_its_own_call_and_nothing_else(w: World, kind: str) -> None:
    line = w.ssh.client_key.with_suffix(".pub").read_text()
    _known_blob[:] = [base64.b64decode(line.split()[1])]
    started = time.monotonic()
    with made_up_agent(ALICE, BAD[kind]) as sock:
        answer = ask_with(w, ALICE, "ListRemote", ("pi", ""), sock)
    check_refusal(answer, "SshAuthFailed", "ssh-agent")
    assert time.monotonic() - started < 40
    assert w.daemon is not None
    status = Path(f"/proc/{w.daemon.pid}/status").read_text()
    resident = next(int(x.split()[1]) for x in status.splitlines() if x.startswith("VmRSS"))
    assert resident < 100_000


def test_who_leaves_in_the_middle_leaves_nothing(w: World, agent: PersonsAgent) -> None:
    async def leave(sock: socket.socket, member: str, turns: float) -> None:
        call = asyncio.ensure_future(_ask(w, ALICE, member, ("pi", "2-1"), sock, {}, ()))
        await asyncio.wait([call], timeout=turns)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)

    for member in ("ListRemote", "Attach", "AttachAll"):
        for turns in (0.0, 0.05, 0.6):
            with made_up_agent(ALICE, silent) as sock:
                asyncio.run(leave(sock, member, turns))
            with agent.connect() as sock:
                asyncio.run(leave(sock, member, turns))


def test_it_is_no_option_of_anything_else(w: World, agent: PersonsAgent) -> None:
    for member, words in (
        ("ListLocal", ("sa{sv}", "")),
        ("Detach", ("sa{sv}", "all")),
        ("AddRemote", ("sa{sv}", "x")),
    ):
        w.refused("InvalidArgs", ALICE, member, *words, "1", WITH, "s", "x")
    w.refused("InvalidArgs", ALICE, "ListRemote", "ssa{sv}", "pi", "", "1", WITH, "u", "0")


def test_a_key_that_the_agent_refuses_to_use_does_not_stop_the_next(
    w: World, tmp_path: Path
) -> None:
    """As when somebody says no to ssh-agent's question about one key."""
    line = make_key(tmp_path / "refused")
    keys = w.ssh.folder / "authorized_keys"
    before = keys.read_text()
    keys.write_text(before + line + "\n")
    refused = base64.b64decode(line.split()[1])
    entry = struct.pack(">I", len(refused)) + refused + b"\0\0\0\0"
    try:
        with w.ssh.agent_socket() as good:

            def behave(sock: socket.socket) -> None:
                whole = socket.MSG_WAITALL
                while size := sock.recv(4, whole):
                    message = sock.recv(struct.unpack(">I", size)[0], whole)
                    good.sendall(size + message)
                    answer = good.recv(struct.unpack(">I", good.recv(4, whole))[0], whole)
                    if message == b"\x0b":
                        sock.sendall(framed(b"\x0c\0\0\0\2" + entry + answer[5:]))
                    else:
                        sock.sendall(framed(b"\x05" if refused in message else answer))

            with made_up_agent(ALICE, behave) as sock:
                assert ask_with(w, ALICE, "ListRemote", ("pi", "2-1"), sock).value()
    finally:
        keys.write_text(before)
