# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is asked for a password, when, and what else is on the terminal meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest

from usbipsshd.client.daemon import Client
from usbipsshd.client.errors import ClientError
from usbipsshd.ctl.asking import Asking, Call
from usbipsshd.ctl.terminal import Terminal

NEEDS_A_PASSWORD = ClientError(
    "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired", "You need to authenticate."
)


class Scene:
    """A terminal and a daemon's method, which note what happens."""

    def __init__(self, *, asks: bool = True) -> None:
        self.asks = asks
        self.happened: list[str] = []
        self.asking = Asking(cast("Client", None), cast("Terminal", self))

    @asynccontextmanager
    async def progress(self, text: str) -> AsyncIterator[None]:
        self.happened.append(text)
        try:
            yield
        finally:
            self.happened.append(f"no more {text}")

    @asynccontextmanager
    async def password_agent(self) -> AsyncIterator[None]:
        self.happened.append("question")
        yield
        self.happened.append("no more question")

    async def needs_a_password(self, asks: bool) -> str:
        self.happened.append(f"call {asks}")
        await asyncio.sleep(0)
        if not asks:
            self.happened.append("refused")
            raise NEEDS_A_PASSWORD
        return "granted"


def happens(scene: Scene, call: Call[str]) -> str:
    return asyncio.run(scene.asking.granted(call, "Asking pi"))


def test_who_needs_no_password_meets_no_agent() -> None:
    scene = Scene()

    async def call(asks: bool) -> str:
        return f"{asks}"

    assert happens(scene, call) == "False"
    assert scene.happened == ["Asking pi", "no more Asking pi"]


def test_the_question_stands_alone() -> None:
    scene = Scene()
    assert happens(scene, scene.needs_a_password) == "granted"
    assert scene.happened[:4] == ["Asking pi", "call False", "refused", "no more Asking pi"]
    assert scene.happened[4:] == ["question", "call True", "no more question"]


def test_where_nobody_can_be_asked_the_refusal_stays() -> None:
    scene = Scene(asks=False)
    with pytest.raises(ClientError):
        happens(scene, scene.needs_a_password)
    assert "question" not in scene.happened


def test_one_question_at_a_time() -> None:
    scene = Scene()

    async def both() -> None:
        call = scene.needs_a_password
        await asyncio.gather(scene.asking.granted(call), scene.asking.granted(call))

    asyncio.run(both())
    asked = [what for what in scene.happened if what.endswith("question")]
    assert asked == ["question", "no more question"] * 2
