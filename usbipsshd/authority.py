# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may do what: the actions, and polkit's word on them. Denies by default.

See "The polkit D-Bus API", org.freedesktop.PolicyKit1.Authority, and
polkit/org.usbipssh1.policy for what the actions mean and what is asked without any rule.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from itertools import count

from usbipsshd.bus.values import BusError, Caller, CallFunction, Disconnected, Variant
from usbipsshd.device import Device
from usbipsshd.errors import NO_AGENT, Code, UsbipError

_LOG = logging.getLogger(__name__)

_POLKIT = "org.freedesktop.PolicyKit1"
_PATH = "/org/freedesktop/PolicyKit1/Authority"
_INTERFACE = "org.freedesktop.PolicyKit1.Authority"
_ALLOW_USER_INTERACTION = 1
_CHECK = "(sa{sv})sa{ss}us"

ANSWER_SECONDS = 20.0
"""How long polkit may take when it asks nobody: longer than its rules, shorter than the 25 seconds
for which a caller waits who set no limit (D-Bus libraries' default)."""
RULES_SECONDS = 14.0
"""A little less than the 15 after which polkit stops its rules, and says no
(RUNAWAY_KILLER_TIMEOUT, src/polkitbackend/polkitbackendcommon.h)."""
_AGAIN_SECONDS = 5.0
QUESTION_SECONDS = 300.0
"""How long a person may take."""
MAX_QUESTIONS_PER_UID = 8
MAX_QUESTIONS = 128
"""Open at a time: one user's, and everybody's."""


class Action(StrEnum):
    """The polkit actions; everything that needs a permission needs some of these."""

    LIST = "org.usbipssh1.list"
    ATTACH = "org.usbipssh1.attach"
    ATTACH_INPUT = "org.usbipssh1.attach-input"
    EXPORT = "org.usbipssh1.export"
    DETACH_OTHERS = "org.usbipssh1.detach-others"
    UNBIND = "org.usbipssh1.unbind"
    RESET = "org.usbipssh1.reset"
    MANAGE_REMOTES = "org.usbipssh1.manage-remotes"
    USE_UNLISTED_REMOTE = "org.usbipssh1.use-unlisted-remote"
    ANSWER_FOR_ALL = "org.usbipssh1.answer-for-all"
    """Never needed by itself: the one question of a request that needs several."""


_WHAT = {
    Action.LIST: "list USB devices of other machines",
    Action.ATTACH: "attach USB devices of other machines",
    Action.ATTACH_INPUT: "attach USB devices that can type or carry the network",
    Action.EXPORT: "hand USB devices of this machine to other machines",
    Action.DETACH_OTHERS: "detach USB devices that somebody else attached",
    Action.UNBIND: "take USB devices back from those who use them",
    Action.RESET: "reset USB devices",
    Action.MANAGE_REMOTES: "change the list of remotes",
    Action.USE_UNLISTED_REMOTE: "use machines that are not in the list of remotes",
    Action.ANSWER_FOR_ALL: "do all that this request needs",
}


def details(
    remote: str, device: Device | None = None, name: str = "", classes: Sequence[str] = ()
) -> dict[str, str]:
    """What the rules may look at, and what the questions name.

    ``name`` is the device's name from this machine's usb.ids, never what a remote said, or,
    without a device, what there is instead. ``classes`` is every interface's class, subclass and
    protocol in hex, of all configurations, such as ``030101``. Ids are four hex digits. All keys
    are always there, so that a rule needs no care. ``remote`` is empty for this machine.
    """
    return {
        "remote": remote,
        "machine": remote or os.uname().nodename,
        "busid": device.busid if device else "",
        "device.vendor-id": f"{device.vendor_id:04x}" if device else "",
        "device.product-id": f"{device.product_id:04x}" if device else "",
        "device.classes": " ".join(classes),
        "device.name": name,
    }


class _Answer(IntEnum):
    NO = 0
    QUESTION = 1
    YES = 2


@dataclass(slots=True)
class Question:
    """One request's permission to ask a person, which is used once.

    Made by whoever begins to answer a call, and given to each check of that call.
    ``interactive`` is whether the message allowed it.
    """

    interactive: bool
    answered: bool = False
    """Whether ``answer-for-all`` was answered with yes: what else would only need a
    question needs none any more. What a rule refuses stays refused."""


class Authority:
    """Asks polkit through ``call``."""

    def __init__(
        self,
        call: CallFunction,
        *,
        answer_seconds: float = ANSWER_SECONDS,
        question_seconds: float = QUESTION_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._call = call
        self._clock = clock
        self._answer_seconds = answer_seconds
        self._question_seconds = question_seconds
        self._ids = count(1)
        self._questions: Counter[int] = Counter()

    async def check(
        self,
        caller: Caller,
        actions: Sequence[Action],
        details: Mapping[str, str],
        question: Question,
        *,
        more: bool = False,
    ) -> None:
        """Return if ``caller`` may do all of ``actions``; otherwise raise :exc:`UsbipError`.

        AccessDenied, InteractiveAuthorizationRequired where a person would have to be asked
        and the message did not allow it, or LimitsExceeded where too much is being asked
        already. uid 0 may do everything, with or without polkit;
        for everybody else no polkit means no. ``more`` says that this request will be checked
        again, for things that are not known yet.

        Polkit does not tell whether it would ask for the caller's own password or an
        administrator's, so the answer to one action's question says nothing about another
        one. A request that needs several therefore asks one question that is about all of
        them, ``answer-for-all``, and none of the others.

        Nothing is asked before polkit has been heard on every action, so that nobody types a
        password for something that is refused anyway. Cancelling withdraws the question.
        """
        if caller.uid == 0:
            return
        asked: list[Action] = []
        for action in actions:
            answer = await self._ask_patiently(caller, action, details)
            if answer is _Answer.NO:
                raise _denied(action)
            if answer is _Answer.QUESTION and not question.answered:
                asked.append(action)
        if not asked:
            return
        if not question.interactive:
            raise UsbipError(
                Code.INTERACTIVE_REQUIRED,
                f"You need to authenticate to {_WHAT[asked[0]]}, and the request does not allow "
                "that you are asked.",
            )
        every = more or len(asked) > 1
        action = Action.ANSWER_FOR_ALL if every else asked[0]
        if every:
            names = " ".join(a.removeprefix("org.usbipssh1.") for a in asked)
            details = {**details, "actions": names}
        with self._one_more_question(caller.uid):
            answer = await self._ask(caller, action, details, interactive=True)
        if answer is _Answer.QUESTION:
            raise _nobody_asks(asked[0])
        if answer is not _Answer.YES:
            raise _denied(asked[0])
        question.answered = every

    @contextmanager
    def _one_more_question(self, uid: int) -> Iterator[None]:
        if self._questions[uid] >= MAX_QUESTIONS_PER_UID:
            raise UsbipError(
                Code.LIMITS_EXCEEDED,
                f"You are being asked {MAX_QUESTIONS_PER_UID} questions already; answer one first.",
            )
        if self._questions.total() >= MAX_QUESTIONS:
            raise UsbipError(
                Code.LIMITS_EXCEEDED,
                "Too many people are being asked for passwords just now; try again later.",
            )
        self._questions[uid] += 1
        try:
            yield
        finally:
            self._questions[uid] -= 1
            if not self._questions[uid]:
                del self._questions[uid]

    async def _ask_patiently(
        self, caller: Caller, action: Action, details: Mapping[str, str]
    ) -> _Answer:
        """Polkit's answer, and its second one if the first was that its rules took too long.

        polkit 122 was seen to take those 15 seconds with rules that take none, once in some
        300,000 answers on a machine with little to do; that it had stopped them is inferred.
        """
        begun = self._clock()
        answer = await self._ask(caller, action, details)
        if answer is _Answer.NO and self._clock() - begun >= RULES_SECONDS:
            _LOG.warning("polkit stopped its rules for %s; it is asked again", action.value)
            return await self._ask(caller, action, details, seconds=_AGAIN_SECONDS)
        return answer

    async def _ask(
        self,
        caller: Caller,
        action: Action,
        details: Mapping[str, str],
        *,
        interactive: bool = False,
        seconds: float | None = None,
    ) -> _Answer:
        limit = self._question_seconds if interactive else seconds or self._answer_seconds
        subject = ("system-bus-name", {"name": Variant("s", caller.name)})
        cancellation = f"usbipsshd-{next(self._ids)}" if interactive else ""
        try:
            body = await self._call(
                _POLKIT,
                _PATH,
                _INTERFACE,
                "CheckAuthorization",
                _CHECK,
                [
                    subject,
                    action.value,
                    dict(details),
                    _ALLOW_USER_INTERACTION if interactive else 0,
                    cancellation,
                ],
                timeout=limit,
            )
        except (asyncio.CancelledError, TimeoutError) as error:
            if cancellation:
                await self._withdraw(cancellation)
            if isinstance(error, asyncio.CancelledError):
                raise
            if interactive:
                return _Answer.NO
            raise _no_polkit() from error
        except BusError as error:
            _LOG.warning("polkit on %s: %s", action.value, error)
            if interactive and error.name.startswith("org.freedesktop.PolicyKit1.Error."):
                # The question was dismissed or could not be put.
                return _Answer.NO
            raise _no_polkit() from error
        except Disconnected as error:
            raise _no_polkit() from error
        return _understand(body)

    async def _withdraw(self, cancellation: str) -> None:
        # Queued before anything is awaited, so it is sent even if we are cancelled again.
        with suppress(BusError, Disconnected, TimeoutError):
            await self._call(
                _POLKIT,
                _PATH,
                _INTERFACE,
                "CancelCheckAuthorization",
                "s",
                [cancellation],
                timeout=2.0,
            )


def _understand(body: Sequence[object]) -> _Answer:
    match body:
        case ([True, bool(), dict()],):
            return _Answer.YES
        case ([False, True, {"polkit.dismissed": _}],):
            return _Answer.NO
        case ([False, True, dict()],):
            # Also what comes of a question that could not be put: there is no agent.
            return _Answer.QUESTION
        case _:
            return _Answer.NO


def _denied(action: Action) -> UsbipError:
    return UsbipError(
        Code.ACCESS_DENIED,
        f"You may not {_WHAT[action]}; an administrator can allow it with a polkit rule for "
        f"{action.value}.",
    )


def _nobody_asks(action: Action) -> UsbipError:
    return UsbipError(
        Code.ACCESS_DENIED,
        f"You would have to give a password to {_WHAT[action]}, but {NO_AGENT} in your session; "
        "start one, such as lxpolkit or mate-polkit.",
    )


def _no_polkit() -> UsbipError:
    return UsbipError(
        Code.ACCESS_DENIED,
        "Only root may do this now, because polkit does not answer; see whether it is installed "
        "and runs.",
    )
