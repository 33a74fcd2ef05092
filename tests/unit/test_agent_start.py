# SPDX-License-Identifier: GPL-3.0-or-later
"""An agent that does not come up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import asyncssh
import pytest

from usbipsshd.errors import Code
from usbipsshd.session.agent import Agent
from usbipsshd.session.failure import Failure


class EndedChannel:
    """The channel of a command that has ended before its input was written."""

    def is_closing(self) -> bool:
        return True

    def write(self, data: bytes) -> None:
        raise BrokenPipeError("Channel not open for sending")

    def abort(self) -> None:
        pass


class QuickServer:
    """An ssh connection whose commands say something and end at once."""

    def __init__(self, said: bytes) -> None:
        self._said = said

    async def create_session(
        self, factory: Callable[[], asyncssh.SSHClientSession[bytes]], *_: object, **__: object
    ) -> tuple[EndedChannel, asyncssh.SSHClientSession[bytes]]:
        session = factory()
        session.data_received(self._said, asyncssh.EXTENDED_DATA_STDERR)
        session.eof_received()
        session.connection_lost(None)
        return EndedChannel(), session


def test_a_command_that_ends_before_the_script_is_sent_is_no_broken_connection() -> None:
    ssh: Any = QuickServer(b"This account is currently not available.\n")
    with pytest.raises(Failure) as caught:
        asyncio.run(Agent.start(cast("asyncssh.SSHClientConnection", ssh), sudo=False))
    assert caught.value.code is Code.REMOTE_UNSUPPORTED
    assert "not available" in caught.value.detail
