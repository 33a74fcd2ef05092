# SPDX-License-Identifier: GPL-3.0-or-later
"""README's "First use", its lines run as they stand, by root on desk."""

from __future__ import annotations

import re
import shlex

from vm.testbed.host import CHECKOUT
from vm.testbed.pair import Pair
from vm.testbed.pi import BUSIDS

_SECTION = re.compile(r"<!-- first-use -->(.*)<!-- first-use end -->", re.DOTALL)
_STEP = re.compile(r"^(\d+)\. (.*?)(?=^\d+\. |\Z)", re.DOTALL | re.MULTILINE)
_BLOCK = re.compile(r"^ *```sh\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)


def steps() -> dict[int, tuple[str, str]]:
    """The numbered steps: what each says, and the lines to run."""
    (section,) = _SECTION.findall((CHECKOUT / "README.md").read_text())
    found = {}
    for number, text in _STEP.findall(section):
        (lines,) = _BLOCK.findall(text)
        found[int(number)] = (text, re.sub(r"^ +", "", lines, flags=re.MULTILINE))
    return found


def test_first_use(machines: Pair) -> None:
    pi, desk = machines.pi, machines.desk
    written = steps()
    # As on the first day: pi is not listed, and does not know the daemon's key.
    if "/org/usbipssh1/remote/pi" in desk.objects():
        desk.manager("root", "RemoveRemote", "pi")
    pi.shell("sed -i '/usbipsshd@/d' /root/.ssh/authorized_keys")
    desk.stop_daemon()
    done: list[int] = []

    def run(number: int, **variables: str) -> str:
        done.append(number)
        given = "".join(f"{name}={shlex.quote(value)}\n" for name, value in variables.items())
        return desk.shell(given + written[number][1], timeout=120)

    kind, key = run(1).split(" ", 1)
    assert kind == "s"
    assert "/root/.ssh/authorized_keys" in written[1][0]
    (line,) = shlex.split(key)
    pi.shell('printf "%s\\n" "$1" >> /root/.ssh/authorized_keys', line)

    assert run(2) == 'o "/org/usbipssh1/remote/pi"\n'

    (command,) = re.findall(r"`(ssh-keygen [^`]*)`", written[3][0])
    fingerprint = pi.shell(command).split()[1]
    assert fingerprint.startswith("SHA256:")
    run(3, FINGERPRINT=fingerprint)

    listed = run(4)
    assert listed.startswith("aa{sv} ")
    for busid in (BUSIDS["keyboard"], BUSIDS["stick"]):
        assert f'"busid" s "{busid}"' in listed

    attached = run(5)
    path = shlex.split(attached)[1]
    assert path.startswith("/org/usbipssh1/attachment/")

    assert path in run(6)
    assert "usb-storage" in desk.usb_tree()
    node = desk.node(path)
    # lsblk tells what udev has found out by then.
    desk.run("udevadm", "settle", "--timeout=60", timeout=90)
    assert desk.run("lsblk", "-n", "-o", "LABEL", node).strip() == "TESTSTICK"
    found = desk.attachment(path)
    assert (found["State"], found["OwnerUid"]) == ("attached", 0)

    assert run(7) == "u 1\n"
    assert machines.devices_left() == []
    assert pi.interface_drivers(BUSIDS["stick"]) == {"2-2:1.0": "usb-storage"}
    assert done == sorted(written)
