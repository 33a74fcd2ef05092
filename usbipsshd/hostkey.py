# SPDX-License-Identifier: GPL-3.0-or-later
"""Which host key a remote presents now."""

from __future__ import annotations

import asyncio

from usbipsshd.control import Session, SessionFailure
from usbipsshd.errors import Code, UsbipError
from usbipsshd.explain import explain
from usbipsshd.launcher import Launcher
from usbipsshd.remotes import Remote
from usbipsshd.way import Ways

HOST_KEY_SECONDS = 20.0


async def fetch_host_key(launcher: Launcher, ways: Ways, remote: Remote, wanted: str) -> str:
    """The host key that the remote presents now, as ``type base64``; one whose SHA256
    fingerprint is ``wanted`` if it has one. Raises :exc:`UsbipError`.
    """
    way = await ways.to(remote)
    async with launcher.session() as channel, asyncio.TaskGroup() as group:
        session = Session(channel, remote.name, lambda _: None)
        group.create_task(session.run())
        try:
            async with way.offered() as fds:
                reply = await session.request(
                    "host-key",
                    seconds=HOST_KEY_SECONDS,
                    fds=fds,
                    **way.fields,
                    fingerprint=wanted,
                )
            key = reply.ok.get("key")
        except SessionFailure as failure:
            raise_later: UsbipError | None = explain(remote.name, failure.code, failure.detail)
        else:
            raise_later = None
        finally:
            session.close()
    if raise_later is not None:
        raise raise_later
    if not isinstance(key, str):
        raise explain(remote.name, Code.FAILED)
    return key
