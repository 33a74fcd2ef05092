# SPDX-License-Identifier: GPL-3.0-or-later
"""polkit's yes, no and password, for real people at a real desk."""

from __future__ import annotations

import pytest
from vm.testbed.asking import PASSWORD, administrator, call_answering
from vm.testbed.desk import CallFailed, Desk
from vm.testbed.pi import BUSIDS, Pi

pytestmark = pytest.mark.usefixtures("listed")

DENIED = "org.freedesktop.DBus.Error.AccessDenied"
NOT_ASKED = "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired"


@pytest.mark.parametrize(("user", "error"), [("bob", DENIED), ("carol", NOT_ASKED)])
def test_without_permission_nothing_happens(pi: Pi, desk: Desk, user: str, error: str) -> None:
    attempts: list[tuple[str, list[str], dict[str, tuple[str, object]]]] = [
        ("Attach", ["pi", BUSIDS["stick"]], {}),
        ("AttachAll", ["pi", ""], {}),
        ("Export", ["pi", "MOUSE0002"], {}),
        ("Unbind", ["pi", ""], {}),
        ("Reset", ["pi", ""], {}),
        ("AddRemote", ["other"], {"address": ("s", "root@pi")}),
        ("RemoveRemote", ["pi"], {}),
    ]
    for member, arguments, options in attempts:
        with pytest.raises(CallFailed) as refused:
            desk.manager(user, member, *arguments, options=options)
        assert (member, refused.value.name) == (member, error)
    assert desk.objects(user).keys() == {"/org/usbipssh1/remote/pi"}
    assert pi.driver(BUSIDS["stick"]) == "usb"


def test_what_somebody_attached_is_not_everybodys(desk: Desk) -> None:
    path = desk.attach("alice", BUSIDS["adapter"])
    for user, error in (("bob", DENIED), ("carol", NOT_ASKED)):
        with pytest.raises(CallFailed) as refused:
            desk.detach(user, path)
        assert refused.value.name == error
        assert desk.detach(user, "all") == 0
    assert desk.attachment(path)["State"] == "attached"
    assert desk.detach("root", "all") == 1


def test_a_password_is_asked_for_once_and_only_if_the_caller_allows_it(pi: Pi, desk: Desk) -> None:
    attach = ("Attach", "ssa{sv}", "pi", BUSIDS["adapter"], "0")
    with administrator(desk, "carol"):
        wrong = call_answering(desk, "carol", "not-it", *attach)
        assert (wrong.questions, wrong.worked) == (1, False), wrong.shown
        assert "Access denied" in wrong.shown or "may not" in wrong.shown
        assert pi.driver(BUSIDS["adapter"]) == "usb"
        right = call_answering(desk, "carol", PASSWORD, *attach)
        assert (right.questions, right.worked) == (1, True), right.shown
    assert pi.driver(BUSIDS["adapter"]) == "usbip-host"
    # It is carol's own: nothing is asked for giving it back.
    assert desk.detach("carol", f"pi/{BUSIDS['adapter']}") == 1
