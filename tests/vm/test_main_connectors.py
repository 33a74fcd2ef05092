# SPDX-License-Identifier: GPL-3.0-or-later
"""Any one of perl, python3 and bash is enough on pi."""

from __future__ import annotations

import hashlib

import pytest
from vm.testbed.desk import Desk
from vm.testbed.pi import BUSIDS, CONNECTORS, Pi
from vm.testbed.systems import stick_files

pytestmark = pytest.mark.usefixtures("listed")


@pytest.mark.parametrize("name", CONNECTORS)
def test_one_is_enough(pi: Pi, desk: Desk, name: str) -> None:
    # A connection that is up has looked already.
    desk.stop_daemon()
    with pi.only_connector(name):
        assert (pi.ssh.attempt("python3", "-c", "").code == 0) == (name == "python3")
        path = desk.attach("alice", "46f4:1")
        node = desk.node(path)
        with desk.mounted(node) as folder:
            begin = desk.shell('head -c 1000000 "$1/random.bin" | sha256sum', folder)
        assert begin.split()[0] == hashlib.sha256(stick_files()["random.bin"][:1000000]).hexdigest()
        assert desk.detach("alice", path) == 1
        assert pi.interface_drivers(BUSIDS["stick"]) == {"2-2:1.0": "usb-storage"}
        desk.stop_daemon()
