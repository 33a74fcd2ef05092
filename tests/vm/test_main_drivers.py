# SPDX-License-Identifier: GPL-3.0-or-later
"""What desk's kernel would make of a device decides what is asked for it, whatever its class."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from unit.made import raw_descriptors
from vm.faults import eventually
from vm.testbed.desk import CallFailed, Desk
from vm.testbed.pi import Pi

pytestmark = pytest.mark.usefixtures("listed")

FOLDER = "/run/testbed-disguise"
BLUETOOTH = (0xFF, 0x01, 0x01)
"""Broadcom's own class for Bluetooth: nothing that is known without its driver, btusb."""
RULES = "/etc/polkit-1/rules.d/60-testbed-carol.rules"
RULE = """polkit.addRule(function (action, subject) {
    if (action.id.indexOf("org.usbipssh1.") !== 0 || subject.user !== "carol")
        return polkit.Result.NOT_HANDLED;
    return action.id === "org.usbipssh1.list" ? polkit.Result.YES : polkit.Result.NO;
});
"""
OVERLAY = (
    'cd /sys/bus/usb/devices/"$1"; for file in *; do'
    f' [ ! -e {FOLDER}/"$file" ] || mount --bind {FOLDER}/"$file" "$file"; done'
)


@contextmanager
def disguised(pi: Pi, busid: str, vendor_id: int, product_id: int) -> Iterator[None]:
    """pi's sysfs says that a device is another one, with an interface of a vendor's own class."""
    raw = raw_descriptors(vendor_id, product_id, BLUETOOTH)
    files = {
        "idVendor": b"%04x\n" % vendor_id,
        "idProduct": b"%04x\n" % product_id,
        "descriptors": raw,
    }
    for name, content in files.items():
        pi.run("sh", "-c", f"mkdir -p {FOLDER}; cat >{FOLDER}/{name}", data=content)
    try:
        pi.shell(OVERLAY, busid)
        yield
    finally:
        pi.shell(
            # Also of one that is just being read.
            f'for file in {" ".join(files)}; do umount -l "/sys/bus/usb/devices/$1/$file"; done'
            f"; rm -r {FOLDER}",
            busid,
        )


@contextmanager
def carol_may_list_only(desk: Desk) -> Iterator[None]:
    """Whatever else is asked for her is refused, and the refusal says what it was."""

    def may_list() -> bool:
        try:
            desk.list_remote("carol", "pi")
        except CallFailed:
            return False
        return True

    desk.run("sh", "-c", f"cat >{RULES}", data=RULE)
    try:
        eventually(may_list, 60, "polkitd has read the rule")
        yield
    finally:
        desk.run("rm", RULES)
        eventually(lambda: not may_list(), 60, "polkitd has read that it is gone")


def refused(desk: Desk, busid: str) -> str:
    """What Carol may not when she attaches a device."""
    with pytest.raises(CallFailed) as caught:
        desk.attach("carol", busid)
    assert caught.value.name == "org.freedesktop.DBus.Error.AccessDenied"
    return caught.value.message


def test_a_vendors_own_class_that_a_driver_here_makes_bluetooth_of(pi: Pi, desk: Desk) -> None:
    (stick,) = desk.list_remote("alice", "pi", "46f4:1")
    busid = stick["busid"]
    with carol_may_list_only(desk):
        assert "org.usbipssh1.attach." in refused(desk, busid)
        with disguised(pi, busid, 0x0A5C, 0x21E8):
            (other,) = desk.list_remote("alice", "pi", busid)
            assert (other["vendor-id"], other["product-id"]) == (0x0A5C, 0x21E8)
            assert "org.usbipssh1.attach-input." in refused(desk, busid)
        # The same class, of a vendor whose devices no driver there knows.
        with disguised(pi, busid, 0x1209, 0x0001):
            assert "org.usbipssh1.attach." in refused(desk, busid)
    assert "0a5c:21e8 can type or carry the network: btusb would take it" in desk.journal()
