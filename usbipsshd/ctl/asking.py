# SPDX-License-Identifier: GPL-3.0-or-later
"""The questions that a call may bring: a password, and whether a host key is the right one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from typing import TypeVar

from usbipsshd.client.daemon import Client
from usbipsshd.client.errors import ClientError
from usbipsshd.client.snapshot import Snapshot
from usbipsshd.ctl.terminal import Terminal

KEY_SECONDS = 5.0

T = TypeVar("T")

Call = Callable[[bool], Awaitable[T]]
"""Calls the daemon; its argument says whether somebody may be asked for a password."""


class Asking:
    """Calls the daemon, and asks on the terminal what stands in the way."""

    def __init__(self, client: Client, terminal: Terminal) -> None:
        self._client = client
        self._terminal = terminal
        self._one_question = asyncio.Lock()

    async def granted(self, call: Call[T], what: str = "") -> T:
        """Call; where a password is needed, call again with somebody who asks for it.

        ``what`` is shown while it takes long, and not beside the question.
        """
        try:
            async with self._terminal.progress(what) if what else nullcontext():
                return await call(False)
        except ClientError as error:
            if error.code != "InteractiveAuthorizationRequired" or not self._terminal.asks:
                raise
        async with self._one_question, self._terminal.password_agent():
            return await call(True)

    async def trusted(self, remote: str, call: Call[T], what: str) -> T:
        """Call; where only a host key stands in the way, ask for it, and call again."""
        try:
            return await self.granted(call, what)
        except ClientError as error:
            if error.code != "HostKeyUnknown":
                raise
            fingerprint = await self.agreed(remote)
            if not fingerprint:
                raise
        await self.trust(remote, fingerprint)
        return await self.granted(call, what)

    async def trust(self, remote: str, fingerprint: str) -> None:
        """Pin a host key."""
        await self.granted(
            lambda asks: self._client.trust_host_key(remote, fingerprint, interactive=asks)
        )

    async def agreed(self, remote: str) -> str:
        """The fingerprint that a remote offers, if somebody says that it is the right one."""
        if not self._terminal.asks:
            return ""

        def offered(snapshot: Snapshot) -> str:
            return next((r.offered_host_key for r in snapshot.remotes if r.name == remote), "")

        try:
            snapshot = await self._client.wait_until(lambda s: bool(offered(s)), KEY_SECONDS)
        except TimeoutError:
            return ""
        fingerprint = offered(snapshot)
        question = (
            f"{remote} presents the host key {fingerprint}.\n"
            "Compare it at that machine: ssh-keygen -l -f /etc/ssh/ssh_host_ed25519_key.pub\n"
            "Trust it?"
        )
        return fingerprint if await self._terminal.confirm(question) else ""
