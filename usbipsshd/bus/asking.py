# SPDX-License-Identifier: GPL-3.0-or-later
"""What one call asks polkit, and what the log is told of refusals."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence

from usbipsshd.authority import Action, Authority, Question
from usbipsshd.bus.values import Call, Caller
from usbipsshd.errors import Code, UsbipError
from usbipsshd.journal import Happening, tell

log = logging.getLogger(__name__)

MAX_REFUSALS = 20
"""Lines of one user's refusals in the log, in ``REFUSAL_SECONDS``; the rest is counted."""
REFUSAL_SECONDS = 60.0


class Seldom:
    """Lets a user have so many lines a minute: journald would drop others' for more."""

    def __init__(self, now: Callable[[], float]) -> None:
        """``now`` gives seconds of any clock that never goes back."""
        self._now = now
        self._since: dict[int, tuple[float, int]] = {}
        """When a uid's minute began, and how many it has had since."""

    def told(self, uid: int) -> int | None:
        """Whether one more line may be told: None if not, else how many were left out before."""
        now = self._now()
        began, count = self._since.get(uid, (now, 0))
        if now - began >= REFUSAL_SECONDS:
            left_out, began, count = max(0, count - MAX_REFUSALS), now, 0
        else:
            left_out = 0
        self._since[uid] = began, count + 1
        return left_out if count < MAX_REFUSALS else None


class CallerAsks:
    """One call's dealings with polkit; see :class:`usbipsshd.service.Asking`."""

    def __init__(
        self, authority: Authority, refusals: Seldom, caller: Caller, *, interactive: bool
    ) -> None:
        self._authority = authority
        self._refusals = refusals
        self._caller = caller
        self._question = Question(interactive)

    @property
    def uid(self) -> int:
        """The caller's uid."""
        return self._caller.uid

    async def require(
        self, actions: Sequence[Action], details: Mapping[str, str], *, more: bool = False
    ) -> None:
        """See :meth:`usbipsshd.service.Asking.require`."""
        try:
            await self._authority.check(self._caller, actions, details, self._question, more=more)
        except UsbipError as error:
            if error.code is Code.ACCESS_DENIED:
                self._tell(actions, details)
            raise

    async def may(self, action: Action, details: Mapping[str, str]) -> bool:
        """See :meth:`usbipsshd.service.Asking.may`."""
        try:
            await self._authority.check(self._caller, [action], details, Question(False))
        except UsbipError:
            return False
        return True

    def _tell(self, actions: Sequence[Action], details: Mapping[str, str]) -> None:
        left_out = self._refusals.told(self.uid)
        if left_out is None:
            return
        what = " ".join(a.value.removeprefix("org.usbipssh1.") for a in actions)
        remote, busid = details.get("remote", ""), details.get("busid", "")
        text = f"refused uid {self.uid}: {what} on {remote or 'this machine'} {busid}".strip()
        if left_out:
            text += f" (and {left_out} refusals before, which are not shown)"
        tell(log, Happening.REFUSED, text, remote=remote, busid=busid, uid=self.uid)


class Asks:
    """Makes each call's dealings with polkit."""

    def __init__(self, authority: Authority, now: Callable[[], float] = time.monotonic) -> None:
        self._authority = authority
        self._refusals = Seldom(now)

    def of(self, call: Call) -> CallerAsks:
        """Those of ``call``."""
        return CallerAsks(
            self._authority, self._refusals, call.caller, interactive=call.interactive
        )
