# SPDX-License-Identifier: GPL-3.0-or-later
"""One attachment's life: whatever happens when, everything is given back, once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from unit.made import STICK, run, settle

from usbipsshd.attachment import Attachment, Event, Life, State, Steps, next_state
from usbipsshd.errors import Code, UsbipError

NEXT = {
    (State.CONNECTING, Event.USABLE): State.ATTACHED,
    (State.CONNECTING, Event.FAILED): State.DETACHING,
    (State.CONNECTING, Event.LOST): State.DETACHING,
    (State.CONNECTING, Event.DETACH): State.DETACHING,
    (State.ATTACHED, Event.LOST): State.DETACHING,
    (State.ATTACHED, Event.DETACH): State.DETACHING,
    (State.DETACHING, Event.RELEASED): State.GONE,
}


@pytest.mark.parametrize("event", Event)
@pytest.mark.parametrize("state", State)
def test_every_event_in_every_state(state: State, event: Event) -> None:
    assert next_state(state, event) is NEXT.get((state, event), state)


@pytest.mark.parametrize("event", Event)
def test_nothing_comes_back_from_the_dead(event: Event) -> None:
    assert next_state(State.GONE, event) is State.GONE


Step = Callable[[], Awaitable[None]]


class Story:
    """A life with steps that can be held, let go and made to fail."""

    def __init__(self) -> None:
        self.attachment = Attachment(1, "pi", "2-2", STICK, 1000)
        self.may = {name: asyncio.Event() for name in ("attach", "ended", "give_back")}
        self.began = {name: asyncio.Event() for name in self.may}
        self.fails: dict[str, BaseException] = {}
        self.log: list[str] = []
        self.states: list[State] = []
        self.lost = UsbipError(Code.DEVICE_FAILED, "It was unplugged.")
        steps = Steps(lambda: self._step("attach"), self._ended, lambda: self._step("give_back"))
        self.life = Life(self.attachment, steps, lambda a: self.states.append(a.state))

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
