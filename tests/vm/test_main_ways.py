# SPDX-License-Identifier: GPL-3.0-or-later
"""Root's ssh configuration, followed within the sandboxes of the real units."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from vm.faults import eventually
from vm.testbed.desk import Desk
from vm.testbed.pi import BUSIDS, Pi
from vm.testbed.systems import PI_ADDRESS

pytestmark = pytest.mark.usefixtures("listed")

# What a netcat does, in what every Debian has.
_PIPE = """#!/usr/bin/perl
use Socket;
socket(my $s, PF_INET, SOCK_STREAM, 0) or die;
connect($s, sockaddr_in($ARGV[1], inet_aton($ARGV[0]))) or die;
if (fork) { while (sysread(STDIN, my $b, 65536)) { syswrite($s, $b) } shutdown($s, 1); wait }
else { while (sysread($s, my $b, 65536)) { syswrite(STDOUT, $b) } }
"""
PIPE = "/usr/local/bin/testbed-pipe"


@contextmanager
def _configured(pi: Pi, desk: Desk, text: str) -> Iterator[None]:
    """What root has written on desk, and a remote `roundabout` that it is about."""
    key = pi.run("cat", "/etc/ssh/ssh_host_ed25519_key.pub")
    desk.run("sh", "-c", f"cat > {PIPE}; chmod 755 {PIPE}", data=_PIPE)
    desk.run("sh", "-c", "cat > /etc/ssh/ssh_known_hosts", data=f"{PI_ADDRESS} {key}")
    desk.run("sh", "-c", "mkdir -p /etc/usbipsshd; cat > /etc/usbipsshd/ssh_config", data=text)
    desk.manager("root", "AddRemote", "roundabout")
    try:
        yield
    finally:
        desk.manager("root", "RemoveRemote", "roundabout", timeout=120)
        desk.run("rm", "-f", "/etc/usbipsshd/ssh_config", "/etc/ssh/ssh_known_hosts", PIPE)


def test_a_stick_comes_by_way_of_a_command(pi: Pi, desk: Desk) -> None:
    way = f"ProxyCommand {PIPE} %h %p"
    text = f"Host roundabout\n HostName {PI_ADDRESS}\n User root\n {way}\n"
    with _configured(pi, desk, text):
        assert BUSIDS["stick"] in {d["busid"] for d in desk.list_remote("alice", "roundabout")}
        path = desk.attach("alice", BUSIDS["stick"], "roundabout")
        with desk.mounted(desk.node(path)) as folder:
            assert desk.run("cat", f"{folder}/hello.txt") == "Greetings from pi.\n"
        users = {
            line.split()[0]
            for line in desk.run("ps", "-eo", "user=,args=").splitlines()
            if PIPE in line
        }
        assert users == {"usbipssh"}
        assert desk.detach("alice", path) == 1
    eventually(lambda: PIPE not in desk.run("ps", "-eo", "args="), 60, "the command ends")
