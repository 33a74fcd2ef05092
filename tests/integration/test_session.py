# SPDX-License-Identifier: GPL-3.0-or-later
"""The session process against a real sshd, the real agent and two made-up kernels' halves."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from fakekernel import KEYBOARD, STICK, FakeKernel
from integration.sessions import SESSION_UID, Answer, SessionUnderTest, session
from integration.sshd import Sshd, make_key, sshd, unused_port
from integration.world import LONG

from usbipsshd.session.connection import KEEPALIVE_COUNT, KEEPALIVE_INTERVAL

IN_USE = 6
"""A port's status, as vhci tells it."""


@pytest.fixture(scope="module")
def server() -> Iterator[Sshd]:
    with sshd(host_key_kinds=("ed25519", "ecdsa")) as running:
        yield running


@pytest.fixture
def pi() -> Iterator[FakeKernel]:
    """The exporting machine, with a keyboard on 1-1 and a stick on 2-1."""
    with FakeKernel() as kernel:
        kernel.plug("1-1", KEYBOARD)
        kernel.plug("2-1", STICK)
        yield kernel
        kernel.check_clean()
        wait_for_no_folder(kernel.root)


def folders(root: Path) -> list[str]:
    """What agents on the tree ``root`` have made in /run; other tests have their own."""
    found = []
    for note in Path("/run").glob("usbipssh.*/held/agent"):
        with contextlib.suppress(OSError):
            if note.read_text().split()[-1:] == [str(root)]:
                found.append(note.parent.parent.name)
    return found


def wait_for_no_folder(root: Path) -> None:
    """Wait until every agent is gone with what it made."""
    end = time.monotonic() + 30
    while left := folders(root):
        assert time.monotonic() < end, left
        time.sleep(0.05)


def sha256(line: str) -> str:
    """The fingerprint of a public key's line."""
    digest = hashlib.sha256(base64.b64decode(line.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


async def connect(running: SessionUnderTest, server: Sshd) -> None:
    await running.open(server.host, server.port, server.agent_socket(), server.known_hosts)


async def device(running: SessionUnderTest, busid: str) -> dict[str, Any]:
    rows = await running.rows("list", busid="", descriptors=False)
    return next(row["device"] for row in rows if row["device"]["busid"] == busid)


async def export(running: SessionUnderTest, busid: str) -> socket.socket:
    found = await device(running, busid)
    return await running.export(**wanted(found))


def wanted(found: dict[str, Any]) -> dict[str, Any]:
    return {
        "busid": found["busid"],
        "vendor_id": found["vendor_id"],
        "product_id": found["product_id"],
        "devid": found["busnum"] << 16 | found["devnum"],
        "unmount": True,
    }


def test_lists_exports_and_gives_back(server: Sshd, pi: FakeKernel) -> None:
    async def main() -> None:
        async with session(agent_sysfs=str(pi.root)) as running:
            await connect(running, server)
            names = {
                row["device"]["busid"]
                for row in await running.rows("list", busid="", descriptors=False)
            }
            assert {"1-1", "2-1"} <= names
            one = await running.rows("list", busid="1-1", descriptors=True)
            assert one[0]["device"]["descriptors"].startswith("1201")
            with await export(running, "1-1") as near:
                state = pi.state()
                assert state["devices"]["1-1"]["usbip_status"] == 2
                assert state["connected"] == ["1-1"]
                assert near.fileno() >= 0
                with pytest.raises(Answer, match="AlreadyAttached"):
                    await export(running, "1-1")
                assert await running.ask("statistics", busid="1-1") == {"received": 0, "sent": 0}
                await running.ask("release", busid="1-1", rebind=True)
                assert await asyncio.to_thread(near.recv, 1) == b""
            state = pi.state()
            assert state["devices"]["1-1"]["driver"] == "usb"
            with pytest.raises(Answer, match="NotAttached"):
                await running.ask("release", busid="1-1", rebind=True)
            await running.ask("close")
            assert await running.wait_ended() == 0

    asyncio.run(main())


def test_two_devices_at_once_and_release_without_rebind(server: Sshd, pi: FakeKernel) -> None:
    async def main() -> None:
        async with session(agent_sysfs=str(pi.root)) as running:
            await connect(running, server)
            nears = await asyncio.gather(export(running, "1-1"), export(running, "2-1"))
            assert pi.state()["connected"] == ["1-1", "2-1"]
            await running.ask("release", busid="2-1", rebind=False)
            assert pi.state()["devices"]["2-1"]["driver"] == ""
            assert pi.state()["connected"] == ["1-1"]
            for near in nears:
                near.close()
            event = await running.event()
            assert event == {"event": "released", "busid": "1-1", "error": None}

    asyncio.run(main())


def test_it_tells_what_it_exports(server: Sshd, pi: FakeKernel) -> None:
    async def main() -> None:
        async with session(agent_sysfs=str(pi.root)) as running:
            await connect(running, server)
            assert await running.ask("exports") == {"busids": []}
            nears = [await export(running, busid) for busid in ("2-1", "1-1")]
            assert await running.ask("exports") == {"busids": ["1-1", "2-1"]}
            await running.ask("release", busid="2-1", rebind=True)
            assert await running.ask("exports") == {"busids": ["1-1"]}
            for near in nears:
                near.close()

    asyncio.run(main())


def test_it_tells_when_something_is_plugged_in_there(server: Sshd, pi: FakeKernel) -> None:
    async def main() -> None:
        async with session(agent_sysfs=str(pi.root)) as running:
            await connect(running, server)
            await running.rows("list", busid="", descriptors=False)
            pi.unplug("1-1")
            assert await running.event(changed=True) == {"event": "changed"}

    asyncio.run(main())


def test_how_it_is_given_back_is_said_with_the_export(server: Sshd, pi: FakeKernel) -> None:
    async def main() -> None:
        async with session(agent_sysfs=str(pi.root)) as running:
            await connect(running, server)
            asked = {**wanted(await device(running, "1-1")), "rebind": False}
            (await running.export(**asked)).close()
            assert (await running.event())["busid"] == "1-1"
            assert pi.state()["devices"]["1-1"]["driver"] == ""

    asyncio.run(main())


def test_closing_the_near_end_gives_the_device_back(server: Sshd, pi: FakeKernel) -> None:
    async def main() -> None:
        async with session(agent_sysfs=str(pi.root)) as running:
            await connect(running, server)
            (await export(running, "1-1")).close()
            assert (await running.event())["busid"] == "1-1"
            assert pi.state()["devices"]["1-1"]["driver"] == "usb"
            (await export(running, "1-1")).close()
            assert (await running.event())["event"] == "released"

    asyncio.run(main())


def test_a_device_that_is_pulled_out_ends_its_export_alone(server: Sshd, pi: FakeKernel) -> None:
    async def main() -> None:
        async with session(agent_sysfs=str(pi.root)) as running:
            await connect(running, server)
            keyboard, stick = await export(running, "1-1"), await export(running, "2-1")
            pi.unplug("1-1")
            assert (await running.event())["busid"] == "1-1"
            assert await asyncio.to_thread(keyboard.recv, 1) == b""
            assert pi.state()["connected"] == ["2-1"]
            keyboard.close()
            stick.close()
            await running.event()

    asyncio.run(main())


@pytest.mark.parametrize("how", ["control socket", "SIGTERM", "SIGKILL", "server"])
def test_everything_is_given_back_however_it_ends(pi: FakeKernel, how: str) -> None:
    async def main() -> None:
        with sshd() as own:
            async with session(agent_sysfs=str(pi.root)) as running:
                await connect(running, own)
                near = await export(running, "1-1")
                if how == "control socket":
                    running.control.close()
                elif how == "SIGTERM":
                    running.process.send_signal(signal.SIGTERM)
                elif how == "SIGKILL":
                    running.process.kill()
                else:
                    for child in children(own.process.pid):
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(child, signal.SIGKILL)
                    event = await running.event()
                    assert event["event"] == "closed"
                    assert event["error"]["code"] == "ConnectionFailed"
                assert await asyncio.to_thread(near.recv, 1) == b""
                near.close()
                await asyncio.to_thread(running.process.wait, 30)
            await asyncio.to_thread(
                pi.wait, lambda state: state["devices"]["1-1"]["driver"] == "usb", 30
            )

    asyncio.run(main())


def children(pid: int) -> list[int]:
    """All descendants of a process that are sshd's own, the listener left out."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        if Path(f"/proc/{child}/comm").read_text().startswith("sshd"):
            found += [int(child), *children(int(child))]
    return found


def read_status(pid: int) -> str:
    return Path(f"/proc/{pid}/status").read_text()


def test_runs_without_any_privilege(server: Sshd, pi: FakeKernel) -> None:
    async def main() -> None:
        async with session(agent_sysfs=str(pi.root)) as running:
            await connect(running, server)
            status = read_status(running.process.pid)
            fields = dict(line.split(":", 1) for line in status.splitlines())
            assert fields["Uid"].split() == [str(SESSION_UID)] * 4
            assert int(fields["CapEff"], 16) == 0

    asyncio.run(main())


def test_a_cancelled_export_leaves_nothing(server: Sshd, pi: FakeKernel) -> None:
    async def main(operation: str) -> None:
        pi.delay(operation, LONG)
        begun = pi.state()["log"].count(f"{operation} 1-1")
        async with session(agent_sysfs=str(pi.root)) as running:
            await connect(running, server)
            id_ = await running.start("export", **wanted(await device(running, "1-1")))
            await asyncio.to_thread(pi.wait, lambda s: s["log"].count(f"{operation} 1-1") > begun)
            await running.ask("cancel", request=id_)
            pi.delay(operation, 0)
            with pytest.raises(Answer, match="Cancelled"):
                await running.finish(id_)
            assert pi.state()["devices"]["1-1"]["driver"] == "usb"
            pi.check_clean()
            (await export(running, "1-1")).close()
            await running.event()

    asyncio.run(main("bind"))
    asyncio.run(main("sockfd"))


def test_one_slow_device_does_not_delay_another() -> None:
    async def main() -> None:
        with stub_remote() as own:
            async with session() as running:
                await connect(running, own)
                slow = await running.start("export", **wanted(await device(running, "1-5")))
                near = await export(running, "1-1")
                near.close()
                _, _, fds = await running.finish(slow)
                os.close(fds[0])

    asyncio.run(main())


@pytest.mark.parametrize("direction", ["to the remote", "from the remote"])
def test_a_stalled_side_does_not_make_memory_grow(direction: str) -> None:
    """200 MB are pushed; what does not fit anywhere stays with the sender."""

    async def main() -> None:
        with stub_remote() as own:
            async with session() as running:
                await connect(running, own)
                before = resident(running.process.pid)
                # 1-4 never reads; 1-3 sends without end.
                near = await export(running, "1-4" if direction == "to the remote" else "1-3")
                if direction == "to the remote":
                    near.setblocking(False)
                    taken = await push(near, 200_000_000)
                    assert taken < 16_000_000
                else:
                    counted = -1
                    while (now := await received(running, "1-3")) > counted:
                        counted = now
                        await asyncio.sleep(0.3)
                    assert counted < 16_000_000
                assert resident(running.process.pid) - before < 16_000_000
                # and nobody else is held up
                other = await export(running, "1-1")
                other.sendall(b"hello")
                assert await asyncio.to_thread(other.recv, 5) == b"hello"
                other.close()
                near.close()

    asyncio.run(main())


@pytest.mark.parametrize("connector", ["perl", "bash"])
def test_strangers_at_the_forwarded_socket_break_nothing(connector: str) -> None:
    async def main() -> None:
        with stub_remote(f"{connector} strangers") as own:
            async with session() as running:
                await connect(running, own)
                near = await export(running, "1-1")
                near.sendall(b"hello")
                assert await asyncio.to_thread(near.recv, 5) == b"hello"
                near.close()
                await running.event()

    asyncio.run(main())


def test_a_peer_that_falls_silent_is_noticed() -> None:
    # As is promised; a machine that is busy may take longer.
    assert KEEPALIVE_INTERVAL * (KEEPALIVE_COUNT + 2) <= 15

    async def main() -> None:
        with stub_remote() as own:
            async with session() as running:
                await connect(running, own)
                near = await export(running, "1-1")
                frozen = children(own.process.pid)
                for pid in frozen:
                    os.kill(pid, signal.SIGSTOP)
                try:
                    event = await running.event()
                    assert event["event"] == "closed"
                    assert event["error"]["code"] == "ConnectionFailed"
                    near.close()
                    assert await running.wait_ended() == 0
                finally:
                    for pid in frozen:
                        os.kill(pid, signal.SIGKILL)

    asyncio.run(main())


async def received(running: SessionUnderTest, busid: str) -> int:
    return int((await running.ask("statistics", busid=busid))["received"])


async def push(sock: socket.socket, size: int) -> int:
    """Write until nothing more was taken for a second; how much was."""
    block = bytes(1_000_000)
    taken = 0
    with contextlib.suppress(TimeoutError):
        while taken < size:
            async with asyncio.timeout(1):
                await asyncio.get_running_loop().sock_sendall(sock, block)
            taken += len(block)
    return taken


def resident(pid: int) -> int:
    """Bytes of memory in use."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def stub_remote(
    arguments: str = "", options: Sequence[str] = ()
) -> contextlib.AbstractContextManager[Sshd]:
    """A server whose only command is the stub."""
    script = Path(__file__).with_name("stubremote.py")
    return sshd(command=f"{sys.executable} {script} /dev/null {arguments}", options=options)


@pytest.mark.parametrize(
    "option",
    [
        "RekeyLimit 2M",
        "Ciphers aes256-gcm@openssh.com",
        "Ciphers chacha20-poly1305@openssh.com",
        "Ciphers aes128-ctr",
    ],
)
def test_bytes_stay_whole_through_new_keys_and_other_ciphers(option: str) -> None:
    data = os.urandom(24_000_000)

    def echo(sock: socket.socket) -> bytes:
        found = bytearray()
        sender = threading.Thread(target=sock.sendall, args=(data,))
        sender.start()
        while len(found) < len(data) and (more := sock.recv(1 << 20)):
            found += more
        sender.join()
        return bytes(found)

    async def main() -> None:
        with stub_remote(options=[option]) as own:
            async with session() as running:
                await connect(running, own)
                with await export(running, "1-1") as near:
                    near.settimeout(120)
                    assert await asyncio.to_thread(echo, near) == data

    asyncio.run(main())


@pytest.mark.parametrize(
    ("operation", "code"), [("bind", "DeviceFailed"), ("sockfd", "DeviceFailed")]
)
def test_what_fails_there_is_told_and_undone(
    server: Sshd, pi: FakeKernel, operation: str, code: str
) -> None:
    async def main() -> None:
        async with session(agent_sysfs=str(pi.root)) as running:
            await connect(running, server)
            pi.fail(operation, "EIO", -1)
            with pytest.raises(Answer, match=code):
                await export(running, "1-1")
            pi.fail(operation, "EIO", 0)
            assert pi.state()["devices"]["1-1"]["driver"] == "usb"
            found = await device(running, "1-1")
            with pytest.raises(Answer, match="DeviceChanged"):
                await running.export(**wanted({**found, "product_id": 1}))
            with pytest.raises(Answer, match="DeviceNotFound"):
                await running.export(**wanted({**found, "busid": "1-7"}))

    asyncio.run(main())


def test_unbind_takes_back_what_another_session_exported(server: Sshd, pi: FakeKernel) -> None:
    async def main() -> None:
        async with session(agent_sysfs=str(pi.root)) as one:
            await connect(one, server)
            near = await export(one, "1-1")
            async with session(agent_sysfs=str(pi.root)) as two:
                await connect(two, server)
                await two.ask("unbind", busid="1-1")
                assert pi.state()["devices"]["1-1"]["driver"] == "usb"
            near.close()
            assert (await one.event())["event"] == "released"

    asyncio.run(main())


def test_unix_forwarding_refused_falls_back_to_tcp(pi: FakeKernel) -> None:
    async def main() -> None:
        with sshd(options=["AllowStreamLocalForwarding no"]) as own:
            async with session(agent_sysfs=str(pi.root)) as running:
                await connect(running, own)
                near = await export(running, "1-1")
                assert pi.state()["connected"] == ["1-1"]
                near.close()
                await running.event()

    asyncio.run(main())


def test_all_forwarding_refused_is_said(pi: FakeKernel) -> None:
    async def main() -> None:
        with sshd(options=["DisableForwarding yes"]) as own:
            async with session(agent_sysfs=str(pi.root)) as running:
                await connect(running, own)
                with pytest.raises(Answer, match=r"RemoteUnsupported.*forward"):
                    await export(running, "1-1")
                assert pi.state()["devices"]["1-1"]["driver"] == "usb"

    asyncio.run(main())


# Host keys and login


def failing_open(server: Sshd, known_hosts: bytes, **changes: Any) -> Answer:
    async def main() -> Answer:
        async with session() as running:
            fields: dict[str, Any] = {"host": server.host, "port": server.port} | changes
            with pytest.raises(Answer) as caught:
                await running.open(
                    fields["host"], fields["port"], server.agent_socket(), known_hosts
                )
            return caught.value

    return asyncio.run(main())


def test_an_unknown_host_key_is_named(server: Sshd) -> None:
    answer = failing_open(server, b"")
    assert (answer.code, answer.detail) == ("HostKeyUnknown", sha256(server.host_keys[0]))


def test_a_wrong_host_key_is_a_mismatch(server: Sshd, tmp_path: Path) -> None:
    other = make_key(tmp_path / "other")
    answer = failing_open(server, f"[127.0.0.1]:{server.port} {other}\n".encode())
    assert (answer.code, answer.detail) == ("HostKeyMismatch", sha256(server.host_keys[0]))


def test_a_known_key_of_a_type_that_is_not_offered_is_a_mismatch(
    server: Sshd, tmp_path: Path
) -> None:
    other = make_key(tmp_path / "other", "rsa")
    answer = failing_open(server, f"[127.0.0.1]:{server.port} {other}\n".encode())
    assert answer.code == "HostKeyMismatch"


def test_a_revoked_key_is_refused(server: Sshd) -> None:
    revoked = f"@revoked [127.0.0.1]:{server.port} {server.host_keys[0]}\n".encode()
    first = f"[127.0.0.1]:{server.port} {server.host_keys[0]}\n".encode()
    assert failing_open(server, revoked + first).code == "HostKeyMismatch"


@pytest.mark.parametrize("kind", ["second key", "hashed", "bad line before"])
def test_known_hosts_as_people_have_them(server: Sshd, kind: str, tmp_path: Path) -> None:
    known = server.known_hosts
    if kind == "second key":
        known = f"[127.0.0.1]:{server.port} {server.host_keys[1]}\n".encode()
    elif kind == "hashed":
        path = tmp_path / "known"
        path.write_bytes(known)
        hashing = ["/usr/bin/ssh-keygen", "-q", "-H", "-f", str(path)]
        subprocess.run(hashing, check=True, capture_output=True)
        known = path.read_bytes()
        assert b"127.0.0.1" not in known
    else:
        known = b"@nonsense x y\nnonsense\n\xff\xfe\n" + known

    async def main() -> None:
        async with session(agent_sysfs="/nonexistent") as running:
            await running.open(server.host, server.port, server.agent_socket(), known)

    asyncio.run(main())


def test_host_key_is_read_without_login(server: Sshd) -> None:
    async def main() -> None:
        async with session() as running:
            place: dict[str, Any] = {"host": server.host, "port": server.port}
            first, second = (" ".join(key.split()[:2]) for key in server.host_keys)
            assert await running.ask("host-key", fingerprint="", **place) == {"key": first}
            fingerprint = sha256(second)
            found = await running.ask("host-key", fingerprint=fingerprint, **place)
            assert found == {"key": second}
            unknown = await running.ask("host-key", fingerprint="SHA256:x", **place)
            assert unknown == {"key": first}

    asyncio.run(main())


def test_a_key_that_is_not_authorized() -> None:
    with sshd(authorize=False) as own:
        assert failing_open(own, own.known_hosts).code == "SshAuthFailed"


def test_hosts_that_are_not_there(server: Sshd) -> None:
    with unused_port() as port:
        refused = failing_open(server, b"", port=port)
    assert (refused.code, refused.detail) == ("ConnectionFailed", "connection refused")
    unknown = failing_open(server, b"", host="nowhere.invalid")
    assert unknown.code == "ConnectionFailed"


@pytest.mark.parametrize(
    "said",
    [
        "sudo: a password is required",
        "sudo: Ein Passwort ist notwendig",
        "sudo: sorry, you must have a tty to run sudo",
        "bash: line 1: exec: sudo: not found",
        "guest is not in the sudoers file.",
    ],
)
def test_sudo_that_refuses_is_told(tmp_path: Path, said: str) -> None:
    script = tmp_path / "shell"
    script.write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
    script.chmod(0o755)
    with sshd(command=str(script)) as own:

        async def main() -> None:
            async with session() as running:
                with pytest.raises(Answer, match="NotPermittedThere"):
                    await running.open(
                        own.host, own.port, own.agent_socket(), own.known_hosts, sudo=True
                    )

        asyncio.run(main())


def test_the_bytes_arrive_as_they_were_sent(server: Sshd, pi: FakeKernel) -> None:
    """Through both made-up kernels, and counted."""
    with FakeKernel() as desk:

        async def main() -> None:
            async with session(agent_sysfs=str(pi.root)) as running:
                await connect(running, server)
                near = await export(running, "2-1")
                found = await device(running, "2-1")
                devid = found["busnum"] << 16 | found["devnum"]
                attach = desk.root / "devices/platform/vhci_hcd.0/attach"
                port = 8
                await asyncio.to_thread(attach.write_text, f"{port} {near.fileno()} {devid} 5")
                near.close()
                # The two kernels speak of what the device is before anything else.
                await asyncio.to_thread(
                    desk.wait, lambda state: [p["status"] for p in state["ports"]] == [IN_USE]
                )
                size = 4 * 1024 * 1024
                assert await asyncio.to_thread(desk.transfer, port, size) == size
                counted = await running.ask("statistics", busid="2-1")
                assert counted["received"] >= size
                assert counted["sent"] >= size
                await running.ask("release", busid="2-1", rebind=True)

        asyncio.run(main())
        desk.wait(lambda state: state["ports"] == [])
