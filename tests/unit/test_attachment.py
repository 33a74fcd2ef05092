# SPDX-License-Identifier: GPL-3.0-or-later
"""One attachment's life: whatever happens when, everything is given back, once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from unit.made import STICK, run, settle

from usbipsshd.attachment import (
    RECOVER_SECONDS,
    Attachment,
    Event,
    Life,
    State,
    Steps,
    next_state,
)
from usbipsshd.backoff import Backoff
from usbipsshd.errors import Code, UsbipError

NEXT = {
    (State.CONNECTING, Event.USABLE): State.ATTACHED,
    (State.CONNECTING, Event.ENDED): State.DETACHING,
    (State.CONNECTING, Event.PAUSED): State.WAITING,
    (State.CONNECTING, Event.DETACH): State.DETACHING,
    (State.ATTACHED, Event.ENDED): State.DETACHING,
    (State.ATTACHED, Event.PAUSED): State.WAITING,
    (State.ATTACHED, Event.DETACH): State.DETACHING,
    (State.WAITING, Event.RETRY): State.CONNECTING,
    (State.WAITING, Event.ENDED): State.DETACHING,
    (State.WAITING, Event.DETACH): State.DETACHING,
    (State.DETACHING, Event.RELEASED): State.GONE,
}


@pytest.mark.parametrize("event", Event)
@pytest.mark.parametrize("state", State)
def test_every_event_in_every_state(state: State, event: Event) -> None:
    assert next_state(state, event) is NEXT.get((state, event), state)


@pytest.mark.parametrize("event", Event)
def test_nothing_comes_back_from_the_dead(event: Event) -> None:
    assert next_state(State.GONE, event) is State.GONE


class Story:
    """A life with steps that can be held, let go and made to fail."""

    def __init__(self, state: State = State.CONNECTING, *, keep: bool = False) -> None:
        self.attachment = Attachment(1, "pi", "2-2", STICK, 1000, keep=keep, state=state)
        self.clock = 1000.0
        self.may = {name: asyncio.Event() for name in ("attach", "ended", "give_back")}
        self.began = {name: asyncio.Event() for name in self.may}
        self.fails: dict[str, BaseException] = {}
        self.log: list[str] = []
        self.states: list[State] = []
        self.lost = UsbipError(Code.DEVICE_FAILED, "It was unplugged.")
        steps = Steps(
            attach=lambda: self._step("attach"),
            ended=self._ended,
            give_back=lambda: self._step("give_back"),
            now=lambda: self.clock,
            changed=self._changed,
        )
        self.life = Life(self.attachment, steps, Backoff(random=lambda: 0.0))

    def _changed(self) -> None:
        if self.states[-1:] != [self.attachment.state]:
            self.states.append(self.attachment.state)

    async def _step(self, name: str) -> None:
        self.log.append(name)
        self.began[name].set()
        try:
            await self.may[name].wait()
        except asyncio.CancelledError:
            self.log.append(f"{name} cancelled")
            raise
        if name in self.fails:
            raise self.fails[name]

    async def _ended(self) -> UsbipError:
        await self._step("ended")
        return self.lost

    def let(self, *names: str) -> None:
        for name in names:
            self.may[name].set()

    async def until(self, state: State) -> asyncio.Task[None]:
        """Begin to live, and come to where ``state`` is."""
        living = asyncio.create_task(self.life.run())
        await self.began["attach"].wait()
        if state is State.ATTACHED:
            self.let("attach")
            await self.began["ended"].wait()
        assert self.attachment.state is state
        return living

    def over(self) -> None:
        """What must be true at the end of any life."""
        assert self.attachment.state is State.GONE
        assert self.log.count("give_back") == 1
        assert self.log[-1] in ("give_back", "give_back cancelled")
        assert self.states[-1:] == [State.DETACHING]


def test_a_whole_life() -> None:
    async def main() -> None:
        story = Story()
        living = await story.until(State.ATTACHED)
        await story.life.usable()
        story.life.detach()
        await story.began["give_back"].wait()
        assert story.attachment.state is State.DETACHING
        assert not story.life._gone.is_set()
        story.let("give_back")
        await story.life.gone()
        await living
        story.over()
        assert story.log == ["attach", "ended", "ended cancelled", "give_back"]
        assert story.states == [State.ATTACHED, State.DETACHING]
        assert story.attachment.last_error == ("", "")

    run(main())


@pytest.mark.parametrize("state", [State.CONNECTING, State.ATTACHED])
@pytest.mark.parametrize("how", ["detach", "detach twice", "cancel"])
def test_ended_from_outside_at_each_step(state: State, how: str) -> None:
    async def main() -> None:
        story = Story()
        living = await story.until(state)
        story.let("give_back")
        if how == "cancel":
            living.cancel()
            with pytest.raises(asyncio.CancelledError):
                await living
        else:
            for _ in how.split():
                story.life.detach()
            await living
        story.over()
        await story.life.gone()
        if state is State.CONNECTING:
            with pytest.raises(UsbipError) as caught:
                await story.life.usable()
            assert caught.value.code is Code.CANCELLED
        else:
            await story.life.usable()

    run(main())


def test_detached_before_it_began() -> None:
    async def main() -> None:
        story = Story()
        story.let("attach", "ended", "give_back")
        story.life.detach()
        await story.life.run()
        story.over()
        assert "attach" not in story.log
        with pytest.raises(UsbipError):
            await story.life.usable()

    run(main())


def test_detaching_what_is_being_given_back_changes_nothing() -> None:
    async def main() -> None:
        story = Story()
        living = await story.until(State.ATTACHED)
        story.let("ended")
        await story.began["give_back"].wait()
        story.life.detach()
        await settle()
        assert story.log == ["attach", "ended", "give_back"]
        story.let("give_back")
        await living
        story.over()
        story.life.detach()
        assert story.attachment.state is State.GONE

    run(main())


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsbipError(Code.DEVICE_BUSY, "In use."), Code.DEVICE_BUSY),
        (UsbipError(Code.TIMED_OUT, "Slow."), Code.TIMED_OUT),
        (OSError(5, "secret path"), Code.FAILED),
        (RuntimeError("secret"), Code.FAILED),
        (TimeoutError(), Code.FAILED),
    ],
    ids=repr,
)
@pytest.mark.parametrize("step", ["attach", "ended"])
def test_a_step_that_fails(step: str, error: Exception, code: Code) -> None:
    async def main() -> None:
        story = Story()
        story.fails[step] = error
        story.let("attach", "ended", "give_back")
        await story.life.run()
        story.over()
        name, message = story.attachment.last_error
        assert name.endswith(f".{code}")
        assert "secret" not in message
        if step == "attach":
            with pytest.raises(UsbipError) as caught:
                await story.life.usable()
            assert caught.value.code is code
            assert story.states == [State.DETACHING]
        else:
            await story.life.usable()
            assert story.states == [State.ATTACHED, State.DETACHING]

    run(main())


def test_why_it_was_lost_is_what_is_told() -> None:
    async def main() -> None:
        story = Story()
        story.let("attach", "ended", "give_back")
        await story.life.run()
        story.over()
        assert story.attachment.last_error == (
            "org.usbipssh1.Error.DeviceFailed", "It was unplugged.",
        )  # fmt: skip

    run(main())


@pytest.mark.parametrize(
    "error", [OSError("disk"), UsbipError(Code.FAILED, "No."), ValueError()], ids=repr
)
@pytest.mark.parametrize("state", [State.CONNECTING, State.ATTACHED])
def test_giving_back_that_fails_ends_the_life_all_the_same(state: State, error: Exception) -> None:
    async def main() -> None:
        story = Story()
        story.fails["give_back"] = error
        story.let("give_back")
        living = await story.until(state)
        story.life.detach()
        await living
        story.over()
        await story.life.gone()

    run(main())


def test_a_waiter_that_leaves_does_not_end_it_for_the_others() -> None:
    async def main() -> None:
        story = Story()
        living = await story.until(State.CONNECTING)
        first = asyncio.create_task(story.life.usable())
        second = asyncio.create_task(story.life.usable())
        await settle()
        first.cancel()
        story.let("attach", "give_back")
        await second
        assert first.cancelled()
        story.life.detach()
        await living
        story.over()

    run(main())


def test_an_attach_that_swallows_its_cancellation_is_still_given_back() -> None:
    async def main() -> None:
        story = Story()
        living = await story.until(State.CONNECTING)
        story.let("attach", "give_back")
        # It has become usable in the very moment in which it is detached.
        story.life.detach()
        await living
        story.over()
        assert State.ATTACHED not in story.states

    run(main())


# With keep, and asleep


class Kept(Story):
    """A life that is kept. Its steps need no permission but that of ``tries``, one for each try:
    None for one that goes well, or the error that it ends with."""

    def __init__(self, state: State = State.CONNECTING, *, keep: bool = True) -> None:
        super().__init__(state, keep=keep)
        self.tries: asyncio.Queue[UsbipError | None] = asyncio.Queue()
        self.ends: asyncio.Queue[UsbipError] = asyncio.Queue()
        self.attempts = 0
        self.given_back = 0
        steps = Steps(self._attach, self.ends.get, self._back, lambda: self.clock, self._changed)
        self.life = Life(self.attachment, steps, Backoff(random=lambda: 0.0))

    async def _attach(self) -> None:
        self.attempts += 1
        error = await self.tries.get()
        if error is not None:
            raise error

    async def _back(self) -> None:
        await asyncio.sleep(0)
        self.given_back += 1

    async def comes_to(self, state: State, attempts: int | None = None) -> None:
        async with asyncio.timeout(30):
            while self.attachment.state is not state or attempts not in (None, self.attempts):  # noqa: ASYNC110
                await asyncio.sleep(0)
        await settle()

    @property
    def delay(self) -> float:
        """How long it waits now."""
        assert self.attachment.state is State.WAITING
        return self.attachment.retry_at / 1_000_000 - self.clock


GONE = UsbipError(Code.DEVICE_FAILED, "It was unplugged.")
MISSING = UsbipError(Code.DEVICE_NOT_FOUND, "It is not there.")


def kept(test: Callable[[Kept], Awaitable[None]], **made: Any) -> None:
    """Run a test with a life that is detached in the end."""

    async def main() -> None:
        story = Kept(**made)
        living = asyncio.create_task(story.life.run())
        await test(story)
        story.life.detach()
        await living
        assert story.attachment.state is State.GONE
        assert story.attachment.retry_at == 0

    run(main())


async def lost_once(story: Kept) -> None:
    story.tries.put_nowait(None)
    await story.comes_to(State.ATTACHED)
    story.ends.put_nowait(GONE)
    await story.comes_to(State.WAITING)


def test_what_is_kept_waits_and_comes_back() -> None:
    async def test(story: Kept) -> None:
        await lost_once(story)
        assert story.given_back == 1
        assert story.attachment.last_error == (GONE.dbus_name, GONE.message)
        assert story.delay == 0.5
        story.life.poke()
        await story.comes_to(State.CONNECTING)
        assert story.attachment.retry_at == 0
        story.tries.put_nowait(None)
        await story.comes_to(State.ATTACHED)
        assert story.attachment.last_error == ("", "")

    kept(test)


def test_what_is_not_kept_ends() -> None:
    async def main() -> None:
        story = Kept(keep=False)
        living = asyncio.create_task(story.life.run())
        story.tries.put_nowait(None)
        await story.comes_to(State.ATTACHED)
        story.ends.put_nowait(GONE)
        await living
        assert story.given_back == 1
        assert story.states == [State.ATTACHED, State.DETACHING]

    run(main())


def test_a_first_try_that_fails_is_told_and_not_tried_again() -> None:
    async def main() -> None:
        story = Kept()
        living = asyncio.create_task(story.life.run())
        story.tries.put_nowait(MISSING)
        with pytest.raises(UsbipError) as caught:
            await story.life.usable()
        assert caught.value is MISSING
        await living
        assert story.attempts == 1

    run(main())


def test_failing_again_and_again_waits_for_longer_each_time() -> None:
    async def test(story: Kept) -> None:
        await lost_once(story)
        delays = [story.delay]
        for _ in range(4):
            story.life.nudge()
            await story.comes_to(State.CONNECTING)
            # A try that took long is no good run.
            story.clock += 100
            story.tries.put_nowait(MISSING)
            await story.comes_to(State.WAITING)
            delays.append(story.delay)
        assert delays == [0.5, 1, 2, 4, 8]
        story.life.poke()
        await story.comes_to(State.CONNECTING)
        story.tries.put_nowait(MISSING)
        await story.comes_to(State.WAITING)
        assert story.delay == 0.5

    kept(test)


@pytest.mark.parametrize(("seconds", "delay"), [(9.0, 2.0), (10.0, 0.5)])
def test_a_good_run_counts_and_a_short_one_does_not(seconds: float, delay: float) -> None:
    async def test(story: Kept) -> None:
        await lost_once(story)
        story.life.nudge()
        await story.comes_to(State.CONNECTING)
        story.tries.put_nowait(MISSING)
        await story.comes_to(State.WAITING)
        story.life.nudge()
        story.tries.put_nowait(None)
        await story.comes_to(State.ATTACHED)
        story.clock += seconds
        story.ends.put_nowait(GONE)
        await story.comes_to(State.WAITING)
        assert story.delay == delay

    kept(test)


def test_the_time_comes_by_itself() -> None:
    async def test(story: Kept) -> None:
        await lost_once(story)
        story.tries.put_nowait(None)
        await story.comes_to(State.ATTACHED, 2)

    kept(test)


@pytest.mark.parametrize("state", [State.CONNECTING, State.ATTACHED, State.WAITING])
def test_detached_in_each_state_of_a_kept_life(state: State) -> None:
    async def test(story: Kept) -> None:
        await lost_once(story)
        if state is not State.WAITING:
            story.life.poke()
            await story.comes_to(State.CONNECTING)
        if state is State.ATTACHED:
            story.tries.put_nowait(None)
        await story.comes_to(state)
        story.life.detach()
        assert story.attachment.state is State.DETACHING
        await story.life.gone()
        story.tries.put_nowait(None)
        await settle()
        assert story.attempts == (1 if state is State.WAITING else 2)
        assert story.given_back == 2

    kept(test)


def test_remembered_from_before_it_waits_first() -> None:
    async def test(story: Kept) -> None:
        await story.comes_to(State.WAITING)
        await story.life.usable()
        assert story.attempts == 0
        story.tries.put_nowait(None)
        story.life.poke()
        await story.comes_to(State.ATTACHED)

    kept(test, state=State.WAITING)


def test_taken_over_it_is_attached_from_the_start() -> None:
    async def test(story: Kept) -> None:
        await settle()
        assert (story.attempts, story.states) == (0, [])
        story.ends.put_nowait(GONE)
        await story.comes_to(State.WAITING)
        assert story.given_back == 1

    kept(test, state=State.ATTACHED)


def test_abandoned_nothing_is_given_back() -> None:
    async def main() -> None:
        for state in (State.ATTACHED, State.WAITING, State.CONNECTING):
            story = Kept(state)
            living = asyncio.create_task(story.life.run())
            await settle()
            story.life.abandon()
            await living
            assert story.given_back == 0

    run(main())


@pytest.mark.parametrize("keep", [True, False])
def test_sleep_gives_back_and_waking_brings_back(keep: bool) -> None:
    async def test(story: Kept) -> None:
        story.tries.put_nowait(None)
        await story.comes_to(State.ATTACHED)
        story.life.sleep()
        await story.life.idle()
        assert story.given_back == 1
        assert story.attachment.state is State.WAITING
        assert story.attachment.retry_at == 0
        # Neither news nor time wakes it.
        story.tries.put_nowait(None)
        story.life.poke()
        await settle()
        assert story.attempts == 1
        story.life.wake()
        await story.comes_to(State.ATTACHED, 2)

    kept(test, keep=keep)


def test_after_sleep_one_that_is_not_kept_is_tried_for_a_while() -> None:
    async def main() -> None:
        story = Kept(keep=False)
        living = asyncio.create_task(story.life.run())
        story.tries.put_nowait(None)
        await story.comes_to(State.ATTACHED)
        story.life.sleep()
        await story.life.idle()
        story.life.wake()
        story.tries.put_nowait(MISSING)
        await story.comes_to(State.WAITING, 2)
        story.clock += RECOVER_SECONDS
        story.life.poke()
        story.tries.put_nowait(MISSING)
        await living
        assert story.attempts == 3

    run(main())


@pytest.mark.parametrize("state", [State.CONNECTING, State.ATTACHED, State.WAITING])
def test_awake_again_before_it_was_asleep(state: State) -> None:
    async def test(story: Kept) -> None:
        if state is State.WAITING:
            await lost_once(story)
        elif state is State.ATTACHED:
            story.tries.put_nowait(None)
        await story.comes_to(state)
        before = story.attempts
        story.life.sleep()
        story.life.wake()
        story.tries.put_nowait(None)
        await story.comes_to(State.ATTACHED, before + 1)
        # Whoever waited for it to be usable never heard of this.
        await story.life.usable()

    kept(test)


@pytest.mark.parametrize("state", [State.CONNECTING, State.ATTACHED, State.WAITING])
def test_detached_while_asleep(state: State) -> None:
    async def test(story: Kept) -> None:
        if state is State.WAITING:
            await lost_once(story)
        elif state is State.ATTACHED:
            story.tries.put_nowait(None)
        await story.comes_to(state)
        story.life.sleep()
        story.life.detach()
        await story.life.idle()
        await story.life.gone()
        story.life.wake()

    kept(test)
