# SPDX-License-Identifier: GPL-3.0-or-later
"""Does what a person clicked: one call of the daemon each, or a dialog first."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Protocol

from usbipssh_tray.actions import (
    Action,
    AddRemote,
    Attach,
    AttachAll,
    Copy,
    Detach,
    Refresh,
    Retry,
    SetOptions,
    StartDaemon,
    TrustKey,
)
from usbipssh_tray.text import _
from usbipsshd.client.daemon import Client
from usbipsshd.client.errors import ClientError
from usbipsshd.client.mounted import Mounted, Use
from usbipsshd.errors import NO_AGENT

log = logging.getLogger(__name__)

Ask = Callable[[str, Mapping[str, object]], Awaitable[dict[str, Any] | None]]
"""Shows a dialog; see :func:`usbipssh_tray.dialogs.ask`."""


class Tells(Protocol):
    """What is needed of :class:`usbipssh_tray.notices.Notices`."""

    def clicked_off(self, path: str) -> None: ...  # noqa: D102

    def failed(self, what: str, error: ClientError) -> None: ...  # noqa: D102


class Doing:
    """Runs actions, each in a task of its own, so that nothing waits for anything.

    ``look`` is called with the name of a remote that may have other devices now, ``changed`` when
    one of the attributes is another one.
    """

    def __init__(
        self,
        client: Client,
        tells: Tells,
        ask: Ask,
        *,
        look: Callable[[str, bool], None],
        changed: Callable[[], None],
        mounted: Mounted,
    ) -> None:
        self._client = client
        self._mounted = mounted
        self._tells = tells
        self._ask = ask
        self._look = look
        self._changed = changed
        self._tasks: dict[object, asyncio.Task[object]] = {}
        self.busy: frozenset[tuple[str, str]] = frozenset()
        self.started = ""
        self.no_agent = False

    def act(self, action: Action) -> None:
        """Begin; what is under way already is not begun again."""
        doing = self._doing(action)
        # A second text for the clipboard takes the place of the first; one of a dialog is enough.
        key: object = type(action) if isinstance(action, (AddRemote, Copy)) else action
        running = self._tasks.get(key)
        if running is not None and not isinstance(action, Copy):
            doing.close()
            return
        if running is not None:
            running.cancel()
        task = asyncio.get_running_loop().create_task(doing, name=str(action))
        self._tasks[key] = task
        task.add_done_callback(lambda done: self._done(key, done))

    async def stop(self) -> None:
        """Stop waiting; what has been asked of the daemon goes on."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _done(self, key: object, task: asyncio.Task[object]) -> None:
        if self._tasks.get(key) is task:
            del self._tasks[key]
        if not task.cancelled() and task.exception() is not None:
            log.error("%s failed", task.get_name(), exc_info=task.exception())

    def _doing(self, action: Action) -> Coroutine[Any, Any, object]:  # noqa: PLR0911
        match action:
            case Attach():
                return self._attach(action)
            case Detach():
                return self._detach(action)
            case AttachAll():
                what = _("Attaching everything of {name}").format(name=action.remote)
                return self._try(what, self._client.attach_all(action.remote, interactive=True))
            case SetOptions():
                given = {"keep": action.keep, "persist": action.persist}
                options = {k: v for k, v in given.items() if v is not None}
                what = _("Changing {name}").format(name=action.name)
                changing = self._client.set_options(action.path, options, interactive=True)
                return self._try(what, changing)
            case Refresh():
                return self._refresh(action.remote)
            case Retry():
                return self._retry(action.path)
            case AddRemote():
                return self._add_remote()
            case TrustKey():
                return self._trust(action)
            case Copy():
                return self._copy(action.text)
            case StartDaemon():
                return self._start()
            case _:
                raise TypeError(f"nothing is known of {action}")

    async def _try(self, what: str, call: Awaitable[object]) -> bool:
        """Wait for a call that may ask for a password; whether it worked. Tells if it did not."""
        try:
            await call
        except ClientError as error:
            self._set_no_agent(NO_AGENT in error.message)
            self._tells.failed(what, error)
            return False
        self._set_no_agent(False)
        return True

    def _set_no_agent(self, value: bool) -> None:
        if value != self.no_agent:
            self.no_agent = value
            self._changed()

    async def _attach(self, action: Attach) -> None:
        options: dict[str, bool | int] = {
            "expect-vendor-id": action.vendor_id,
            "expect-product-id": action.product_id,
        }
        if action.keep:
            options["keep"] = True
        if action.persist:
            options["persist"] = True
        this = (action.remote, action.busid)
        self.busy |= {this}
        self._changed()
        try:
            await self._try(
                _("Attaching {name}").format(name=action.name or action.busid),
                self._client.attach(action.remote, action.busid, options, interactive=True),
            )
        finally:
            self.busy -= {this}
            self._changed()
        self._look(action.remote, False)

    async def _detach(self, action: Detach) -> None:
        what = _("Detaching {name}").format(name=action.name or action.path)
        use = self._mounted.find(action.path, self._client.snapshot, os.getuid())
        if use is not None:
            self._tells.failed(what, _in_use(use))
            return
        self._tells.clicked_off(action.path)
        try:
            await self._client.detach(action.path, interactive=True)
        except ClientError as error:
            # Two clicks, or it went by itself in the meantime: it is gone, as was wanted.
            if error.code != "NotAttached":
                self._set_no_agent(NO_AGENT in error.message)
                self._tells.failed(what, error)

    async def _refresh(self, remote: str) -> None:
        names = [remote] if remote else [one.name for one in self._client.snapshot.remotes]
        for name in names:
            # A question for each of many remotes would be a nuisance.
            self._look(name, bool(remote))

    async def _retry(self, path: str) -> None:
        snapshot = self._client.snapshot
        remotes = {one.path: one.remote for one in snapshot.attachments}
        remotes |= {hub.path: hub.remote for hub in snapshot.hubs}
        if path in remotes:
            # What waits is tried as soon as its remote can be reached, or has something new.
            self._look(remotes[path], True)

    async def _start(self) -> None:
        try:
            await self._client.start()
        except ClientError as error:
            self.started = error.message
        except TimeoutError:
            self.started = _("It did not answer in time.")
        else:
            self.started = ""
        self._changed()

    async def _add_remote(self) -> None:
        snapshot = self._client.snapshot
        show: dict[str, object] = {
            "public_key": snapshot.manager.public_key,
            "names": [remote.name for remote in snapshot.remotes],
        }
        while True:
            answer = await self._ask("add-remote", show)
            if answer is None:
                return
            name = str(answer["name"])
            try:
                await self._client.add_remote(
                    name,
                    address=str(answer.get("address", "")),
                    sudo=answer.get("sudo") is True,
                    label=str(answer.get("label", "")),
                    interactive=True,
                )
            except ClientError as error:
                # Nothing that was typed is lost.
                show = {**show, **answer, "error": error.message}
                continue
            return

    async def _trust(self, action: TrustKey) -> None:
        labels = {remote.name: remote.label for remote in self._client.snapshot.remotes}
        show = {
            "name": action.remote,
            "label": labels.get(action.remote, ""),
            "fingerprint": action.fingerprint,
        }
        answer = await self._ask("trust", show)
        if answer is None or answer.get("trust") is not True:
            return
        trusting = self._client.trust_host_key(action.remote, action.fingerprint, interactive=True)
        what = _("Trusting the key of {name}").format(name=action.remote)
        if await self._try(what, trusting):
            self._look(action.remote, True)

    async def _copy(self, text: str) -> None:
        await self._ask("copy", {"text": text})


def _in_use(use: Use) -> ClientError:
    name = use.attachment.name or use.attachment.remote_bus_id
    if use.mount_point:
        text = _("{name} is mounted on {place}; unmount it first.")
    else:
        text = _("{name} is swap space of this machine; swapoff {place} comes first.")
    place = use.mount_point or f"/dev/{use.device}"
    return ClientError("org.usbipssh1.Error.DeviceBusy", text.format(name=name, place=place))
