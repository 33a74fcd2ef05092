# SPDX-License-Identifier: GPL-3.0-or-later
"""Authority against the real polkitd, with real callers, rules and an authentication agent."""

from __future__ import annotations

import asyncio
import re
import subprocess
import time
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from integration.busfixtures import CHECKOUT, Agent, SystemBus, bus_call, polkitd, system_bus

from usbipsshd.authority import ANSWER_SECONDS, Action, Authority, Question, details
from usbipsshd.bus.connection import Connection
from usbipsshd.bus.values import Caller
from usbipsshd.device import Device, Interface
from usbipsshd.errors import Code, UsbipError

ALICE, BOB = 61001, 61002
USERS = {"alice": ALICE, "bob": BOB}
GROUPS = {"lab": ("alice",)}
EXAMPLE = (CHECKOUT / "polkit/50-usbipssh1-example.rules").read_text()
ROOT_ANSWERS = "polkit.addAdminRule(function(a, s) { return ['unix-user:root']; });\n"
# As the policy's defaults are for somebody at the machine: this machine has no logind.
AT_THE_MACHINE = (
    ROOT_ANSWERS
    + """polkit.addRule(function(action, subject) {
    if (action.id == "org.usbipssh1.list") return polkit.Result.YES;
    return polkit.Result.AUTH_ADMIN;
});
"""
)

ADAPTER = Device(
    busid="1-1.2",
    vendor_id=0x0403,
    product_id=0x6001,
    bcd_device=0x600,
    class_=0,
    subclass=0,
    protocol=0,
    busnum=1,
    devnum=5,
    speed=12.0,
    interfaces=(Interface(0, 0xFF, 0xFF, 0xFF),),
)
STICK = Device("2-1", 0x0781, 0x5581, 0x100, 0, 0, 0, 2, 3, 5000.0)


@dataclass
class Scene:
    """Authority on a bus, and a caller on it."""

    bus: SystemBus
    authority: Authority
    caller: Caller
    client: Any
    service: Connection

    async def check(
        self,
        *actions: Action,
        question: Question | None = None,
        more: bool = False,
        device: Device | None = STICK,
        remote: str = "pi",
    ) -> Code | None:
        """The error's code, or None for yes."""
        classes = ["%02x%02x%02x" % i.triple for i in device.interfaces] if device else []
        try:
            await self.authority.check(
                self.caller,
                actions,
                details(remote, device, "a thing", classes),
                question or Question(interactive=False),
                more=more,
            )
        except UsbipError as error:
            return error.code
        return None


@asynccontextmanager
async def scene(
    bus: SystemBus, uid: int, *, answer_seconds: float = 20.0, question_seconds: float = 300.0
) -> AsyncIterator[Scene]:
    service = Connection(bus.address)
    await service.start()
    client = bus.connect(uid)
    await client.connect()
    try:
        caller = await service.callers.get(client.unique_name)
        made = Authority(
            service.call, answer_seconds=answer_seconds, question_seconds=question_seconds
        )
        yield Scene(bus, made, caller, client, service)
    finally:
        client.disconnect()
        await client.wait_for_disconnect()
        await service.stop()


def play(rules: str, uid: int, act: Callable[[Scene], Awaitable[None]], **limits: float) -> None:
    with system_bus(USERS, GROUPS) as bus, polkitd(bus, rules):

        async def run() -> None:
            async with asyncio.timeout(120), scene(bus, uid, **limits) as here:
                await act(here)

        asyncio.run(run())


def test_nobody_may_anything_without_a_rule_and_root_everything() -> None:
    async def alice(here: Scene) -> None:
        for action in Action:
            assert await here.check(action) is Code.INTERACTIVE_REQUIRED
            # There is nobody to answer the question.
            assert await here.check(action, question=Question(True)) is Code.ACCESS_DENIED

    async def root(here: Scene) -> None:
        assert here.caller.uid == 0
        assert await here.check(*Action) is None

    play("", ALICE, alice)
    play("", 0, root)


def test_example_rules_let_the_lab_attach_serial_adapters_of_bench3() -> None:
    async def alice(here: Scene) -> None:
        attach = Action.ATTACH
        assert await here.check(Action.LIST, device=None, remote="bench3") is None
        assert await here.check(attach, device=ADAPTER, remote="bench3") is None
        assert await here.check(attach, device=ADAPTER, remote="pi") is Code.INTERACTIVE_REQUIRED
        assert await here.check(attach, device=STICK, remote="bench3") is Code.INTERACTIVE_REQUIRED
        assert (
            await here.check(Action.ATTACH_INPUT, device=ADAPTER, remote="bench3")
            is Code.INTERACTIVE_REQUIRED
        )

    async def bob(here: Scene) -> None:
        assert (
            await here.check(Action.ATTACH, device=ADAPTER, remote="bench3")
            is Code.INTERACTIVE_REQUIRED
        )

    play(EXAMPLE, ALICE, alice)
    play(EXAMPLE, BOB, bob)


def test_rules_see_every_detail() -> None:
    rules = """polkit.addRule(function(action, subject) {
        var want = {"remote": "pi", "busid": "1-1.2", "device.vendor-id": "0403",
                    "device.product-id": "6001", "device.classes": "ffffff",
                    "device.name": "a thing"};
        for (var key in want)
            if (action.lookup(key) != want[key]) return polkit.Result.NO;
        return subject.user == "alice" ? polkit.Result.YES : polkit.Result.NO;
    });"""

    async def alice(here: Scene) -> None:
        assert await here.check(Action.ATTACH, device=ADAPTER) is None
        assert await here.check(Action.ATTACH, device=STICK) is Code.ACCESS_DENIED

    play(rules, ALICE, alice)


def test_attach_implies_list_and_attach_input_implies_attach() -> None:
    def only(action: str) -> str:
        return (
            "polkit.addRule(function(a, s) {"
            f"if (a.id == '{action}') return polkit.Result.YES; }});"
        )

    async def with_attach(here: Scene) -> None:
        assert await here.check(Action.LIST) is None
        assert await here.check(Action.ATTACH_INPUT) is Code.INTERACTIVE_REQUIRED

    async def with_input(here: Scene) -> None:
        assert await here.check(Action.ATTACH) is None
        assert await here.check(Action.UNBIND) is Code.INTERACTIVE_REQUIRED

    play(only(Action.ATTACH), ALICE, with_attach)
    play(only(Action.ATTACH_INPUT), ALICE, with_input)


def test_one_action_asks_its_own_question_in_words_a_person_understands() -> None:
    async def alice(here: Scene) -> None:
        async with Agent(here.bus, ALICE, lambda action, text: True) as agent:
            question = Question(interactive=True)
            assert await here.check(Action.LIST, question=question, more=True) is None
            assert await here.check(Action.ATTACH, question=question) is None
            assert agent.asked == [
                (
                    "org.usbipssh1.attach",
                    "Authentication is required to attach a USB device of pi: a thing",
                )
            ]

    play(AT_THE_MACHINE, ALICE, alice)


def test_a_request_that_needs_several_permissions_asks_one_question() -> None:
    async def alice(here: Scene) -> None:
        async with Agent(here.bus, ALICE, lambda action, text: True) as agent:
            question = Question(interactive=True)
            first = (Action.LIST, Action.USE_UNLISTED_REMOTE)
            assert await here.check(*first, question=question, more=True) is None
            then = (Action.ATTACH_INPUT, Action.MANAGE_REMOTES)
            assert await here.check(*then, question=question) is None
            assert [action for action, _text in agent.asked] == [Action.ANSWER_FOR_ALL]
            # The next request asks anew.
            assert await here.check(*then, question=Question(interactive=True)) is None
            assert len(agent.asked) == 2

    play(AT_THE_MACHINE, ALICE, alice)


def test_the_answer_to_a_weaker_question_is_no_answer_to_another_one() -> None:
    # Own password for unlisted remotes: that must not open what needs an administrator.
    rules = (
        ROOT_ANSWERS
        + """polkit.addRule(function(action, subject) {
        if (action.id == "org.usbipssh1.use-unlisted-remote") return polkit.Result.AUTH_SELF;
        return polkit.Result.AUTH_ADMIN;
    });"""
    )

    async def alice(here: Scene) -> None:
        # She knows her own password and not the administrator's.
        own = Action.USE_UNLISTED_REMOTE
        async with Agent(here.bus, ALICE, lambda action, text: action == own):
            question = Question(interactive=True)
            assert await here.check(own, question=question) is None
            assert await here.check(Action.ATTACH, question=question) is Code.ACCESS_DENIED

    play(rules, ALICE, alice)


def test_a_refusal_counts_although_a_question_was_answered() -> None:
    rules = AT_THE_MACHINE.replace(
        "return polkit.Result.AUTH_ADMIN;",
        "return action.id == 'org.usbipssh1.unbind' ? 'no' : polkit.Result.AUTH_ADMIN;",
    )

    async def alice(here: Scene) -> None:
        async with Agent(here.bus, ALICE, lambda action, text: True) as agent:
            question = Question(interactive=True)
            assert await here.check(Action.ATTACH, question=question, more=True) is None
            assert await here.check(Action.UNBIND, question=question) is Code.ACCESS_DENIED
            # Nobody is asked for something that is refused anyway.
            both = (Action.ATTACH, Action.UNBIND)
            assert await here.check(*both, question=Question(True)) is Code.ACCESS_DENIED
            assert len(agent.asked) == 1

    play(rules, ALICE, alice)


def test_nobody_is_asked_unless_the_message_allows_it() -> None:
    async def alice(here: Scene) -> None:
        async with Agent(here.bus, ALICE, lambda action, text: True) as agent:
            assert await here.check(Action.ATTACH) is Code.INTERACTIVE_REQUIRED
            assert agent.asked == []

    play(AT_THE_MACHINE, ALICE, alice)


def test_no_is_no() -> None:
    async def alice(here: Scene) -> None:
        async with Agent(here.bus, ALICE, lambda action, text: False):
            question = Question(interactive=True)
            assert await here.check(Action.ATTACH, question=question) is Code.ACCESS_DENIED
            assert not question.answered

    play(AT_THE_MACHINE, ALICE, alice)


def test_a_cancelled_request_withdraws_its_question() -> None:
    async def alice(here: Scene) -> None:
        async with Agent(here.bus, ALICE, lambda action, text: None) as agent:
            task = asyncio.ensure_future(here.check(Action.ATTACH, question=Question(True)))
            async with asyncio.timeout(30):
                await agent.open.wait()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                await agent.withdrawn.wait()

    play(AT_THE_MACHINE, ALICE, alice)


def test_a_question_that_nobody_answers_is_withdrawn_in_the_end() -> None:
    async def alice(here: Scene) -> None:
        async with Agent(here.bus, ALICE, lambda action, text: None) as agent:
            assert await here.check(Action.ATTACH, question=Question(True)) is Code.ACCESS_DENIED
            async with asyncio.timeout(30):
                await agent.withdrawn.wait()

    # Long enough for polkit to put it.
    play(AT_THE_MACHINE, ALICE, alice, question_seconds=5)


def test_without_polkit_only_root_may() -> None:
    with system_bus(USERS) as bus:

        async def run() -> None:
            async with scene(bus, ALICE) as here:
                assert await here.check(Action.LIST) is Code.ACCESS_DENIED
            async with scene(bus, 0) as here:
                assert await here.check(*Action) is None

        asyncio.run(run())


def test_a_polkit_that_hangs_or_dies_means_no_within_its_time() -> None:
    yes = "polkit.addRule(function(a, s) { return polkit.Result.YES; });"
    with system_bus(USERS) as bus, polkitd(bus, yes) as polkit:

        async def run() -> None:
            async with scene(bus, ALICE) as here:
                assert await here.check(Action.LIST) is None
                polkit.freeze()
                patient, here.authority = (
                    here.authority, Authority(here.service.call, answer_seconds=1),
                )  # fmt: skip
                start = time.monotonic()
                assert await here.check(Action.LIST) is Code.ACCESS_DENIED
                assert time.monotonic() - start < ANSWER_SECONDS
                polkit.thaw()
                here.authority = patient
                assert await here.check(Action.LIST) is None
                polkit.freeze()
                waiting = asyncio.ensure_future(here.check(Action.LIST))
                await bus_call(here.client, "GetId")
                polkit.process.kill()
                assert await waiting is Code.ACCESS_DENIED

        asyncio.run(run())


@pytest.mark.parametrize(
    "answer",
    [
        (),
        (True,),
        ([1, 0, {}],),
        ([True],),
        ([True, False, {}], 1),
        ([False, False, {}],),
        ("yes",),
    ],
)
def test_an_answer_that_is_not_polkits_yes_is_no(answer: Sequence[object]) -> None:
    async def call(*args: object, **more: object) -> tuple[object, ...]:
        return tuple(answer)

    async def run() -> None:
        with pytest.raises(UsbipError) as caught:
            await Authority(call).check(
                Caller(":1.5", ALICE), [Action.LIST], details("pi"), Question(True)
            )
        assert caught.value.code is Code.ACCESS_DENIED

    asyncio.run(run())


@pytest.mark.parametrize(("took", "code"), [(15.0, None), (10.0, Code.ACCESS_DENIED)])
def test_rules_that_polkit_stopped_are_asked_again(took: float, code: Code | None) -> None:
    clock = [1000.0]
    answers = [False, True]
    limits: list[float] = []

    async def call(*_: Any, **more: Any) -> tuple[object, ...]:
        clock[0] += took
        limits.append(more["timeout"])
        return ([answers.pop(0), False, {}],)

    async def run() -> None:
        authority = Authority(call, clock=lambda: clock[0])
        question = Question(interactive=False)
        await authority.check(Caller(":1.5", ALICE), [Action.LIST], details("pi"), question)

    if code is None:
        asyncio.run(run())
        # Whoever set no limit of their own waits for 25 seconds, and hears of it.
        assert took + limits[1] < 25
        return
    with pytest.raises(UsbipError) as caught:
        asyncio.run(run())
    assert caught.value.code is code
    assert answers == [True]


def _pkaction(bus: SystemBus) -> str:
    done = bus.run_as(ALICE, "pkaction", "--verbose")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_policys_defaults_are_the_designed_ones() -> None:
    want = {
        Action.LIST: ("auth_admin", "auth_admin", "yes"),
        Action.ATTACH: ("auth_admin", "auth_admin", "auth_admin_keep"),
        Action.ATTACH_INPUT: ("auth_admin", "auth_admin", "auth_admin"),
        Action.EXPORT: ("auth_admin", "auth_admin", "auth_admin"),
        Action.DETACH_OTHERS: ("auth_admin", "auth_admin", "auth_admin_keep"),
        Action.UNBIND: ("auth_admin", "auth_admin", "auth_admin_keep"),
        Action.RESET: ("auth_admin", "auth_admin", "auth_admin_keep"),
        Action.MANAGE_REMOTES: ("auth_admin", "auth_admin", "auth_admin"),
        Action.USE_UNLISTED_REMOTE: ("auth_admin", "auth_admin", "auth_admin"),
        Action.ANSWER_FOR_ALL: ("auth_admin", "auth_admin", "auth_admin"),
    }
    with system_bus(USERS) as bus, polkitd(bus):
        text = _pkaction(bus)
    seen = {}
    for block in re.split(r"\n\n+", text.strip()):
        values = dict(re.findall(r"implicit (\w+): +(\w+)", block))
        seen[block.split(":")[0].strip()] = (values["any"], values["inactive"], values["active"])
    assert seen == {action.value: defaults for action, defaults in want.items()}


def test_every_action_is_told_in_three_languages() -> None:
    root = ET.parse(CHECKOUT / "polkit/org.usbipssh1.policy").getroot()
    language = "{http://www.w3.org/XML/1998/namespace}lang"
    for action in root.iter("action"):
        for part in ("description", "message"):
            texts = {e.get(language): e.text for e in action.findall(part)}
            assert set(texts) == {None, "de", "fr"}
            assert all(texts.values())
            keys = [sorted(re.findall(r"\$\(.*?\)", text or "")) for text in texts.values()]
            assert keys[0] == keys[1] == keys[2]


def test_the_machine_itself_is_not_changed() -> None:
    with system_bus(USERS) as bus, polkitd(bus, EXAMPLE):
        known = subprocess.run(["getent", "passwd", "alice"], capture_output=True, check=False)
        assert known.returncode != 0
        mounts = Path("/proc/self/mounts").read_text()
        assert str(bus.folder) not in mounts
