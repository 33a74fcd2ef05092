# SPDX-License-Identifier: GPL-3.0-or-later
"""What each command does: calls of the daemon, and lines for people or programs."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from dataclasses import asdict

from usbipsshd.client.daemon import Client
from usbipsshd.client.errors import ClientError
from usbipsshd.client.mounted import Mounted
from usbipsshd.client.snapshot import Attachment, Device, Snapshot
from usbipsshd.ctl import columns, events, instance
from usbipsshd.ctl.arguments import parser
from usbipsshd.ctl.asking import Asking, Call
from usbipsshd.ctl.exitcodes import Exit, exit_code
from usbipsshd.ctl.hints import advised, in_use
from usbipsshd.ctl.holding import hold
from usbipsshd.ctl.terminal import Terminal
from usbipsshd.ctl.tree import as_json, tree

HERE = "."
"""How this machine is written where a remote is expected."""
MAX_NAMED = 8
"""Bus ids named in one message."""


class Commands:
    """One command line's work."""

    def __init__(
        self, client: Client, terminal: Terminal, words: argparse.Namespace, mounted: Mounted
    ) -> None:
        self._client = client
        self._mounted = mounted
        self._terminal = terminal
        self._words = words
        self._asking = Asking(client, terminal)

    async def run(self) -> Exit:
        """Do what the words say; raise :exc:`ClientError`."""
        verb = self._words.verb
        if verb == "remote":
            verb = f"remote_{self._words.what}"
        if verb == "keep":
            verb = "attach"
        done: Exit = await getattr(self, f"_{verb}")()
        return done

    # Listing

    async def _list(self) -> Exit:
        words = self._words
        if words.remote is not None:
            devices = await self._devices(words.remote, words.pattern)
            self._show(devices, json_=words.json)
            if not devices:
                self._terminal.complain(_nothing(words.remote, words.pattern))
            return Exit.OK
        await self._client.start()
        names = [HERE, *(remote.name for remote in self._client.snapshot.remotes)]
        found: dict[str, object] = {}
        worst = Exit.OK
        tasks = [asyncio.create_task(self._answer(name)) for name in names]
        try:
            for done in asyncio.as_completed(tasks):
                name, answer = await done
                if isinstance(answer, ClientError):
                    text = advised(answer, name, self._client.snapshot)
                    named = text.startswith(f"{name} ")
                    self._terminal.complain(text if named else f"{name}: {text}")
                    worst = exit_code(answer)
                elif words.json:
                    found[name] = as_json(answer)
                else:
                    self._terminal.say("This machine:" if name == HERE else f"{name}:")
                    self._show(answer, json_=False, indent="  ")
                    if not answer:
                        self._terminal.say("  No USB devices.")
        finally:
            for task in tasks:
                task.cancel()
        if words.json:
            self._terminal.say(json.dumps(found, indent=2))
        return worst

    async def _answer(self, name: str) -> tuple[str, list[Device] | ClientError]:
        try:
            if name == HERE:
                return name, await self._client.list_local()
            return name, await self._asking.granted(self._listing(name))
        except ClientError as error:
            return name, error

    async def _find(self) -> Exit:
        words = self._words
        found = await self._devices(words.remote, words.pattern)
        if len(found) != 1:
            named = ", ".join(device.busid for device in found[:MAX_NAMED])
            raise ClientError(
                f"org.usbipssh1.Error.{'MultipleDevices' if found else 'DeviceNotFound'}",
                f"{len(found)} devices of {_called(words.remote)} match: {named}."
                if found
                else _nothing(words.remote, words.pattern),
            )
        self._terminal.say(found[0].busid)
        return Exit.OK

    async def _devices(self, remote: str, pattern: str) -> list[Device]:
        if remote == HERE:
            return await self._client.list_local(pattern)
        call = self._listing(remote, pattern)
        return await self._asking.trusted(remote, call, f"Asking {remote}")

    def _listing(self, remote: str, pattern: str = "") -> Call[list[Device]]:
        return lambda asks: self._client.list_remote(remote, pattern, interactive=asks)

    def _show(self, devices: list[Device], *, json_: bool, indent: str = "") -> None:
        if json_:
            self._terminal.say(json.dumps(as_json(devices), indent=2))
            return
        attachments = {a.path: a for a in self._client.snapshot.attachments}
        self._terminal.say(
            *(indent + line for line in tree(devices, attachments, self._terminal.paint))
        )

    # Attaching

    def _options(self) -> dict[str, bool | int]:
        """What attach and export say, by the contract's names."""
        words = self._words
        options: dict[str, bool | int] = {}
        if words.persist:
            options["persist"] = True
        if words.no_unmount:
            options["unmount"] = False
        if words.no_rebind:
            options["rebind"] = False
        if words.wait:
            options["bind-to-caller"] = True
        return options

    def _options_of_one(self) -> dict[str, bool | int]:
        words, options = self._words, self._options()
        if words.keep:
            options["keep"] = True
        if words.expect is not None:
            options["expect-vendor-id"], options["expect-product-id"] = words.expect
        return options

    def _attachment(self, path: str) -> list[Attachment]:
        return [one for one in self._client.snapshot.attachments if one.path == path]

    async def _attach(self) -> Exit:
        words = self._words
        if words.all:
            return await self._attach_all(self._options())
        options = self._options_of_one()
        path = await self._asking.trusted(
            words.remote,
            lambda asks: self._client.attach(
                words.remote, words.pattern, options, interactive=asks
            ),
            f"Attaching from {words.remote}",
        )
        lines = [
            f"{one.remote}/{one.remote_bus_id} is {one.local_bus_id} here  "
            f"{' '.join(one.device_nodes)}".rstrip()
            for one in self._attachment(path)
        ]
        return await self._finish(path, *lines)

    async def _export(self) -> Exit:
        words, options = self._words, self._options_of_one()
        path = await self._asking.trusted(
            words.remote,
            lambda asks: self._client.export(
                words.remote, words.local_pattern, options, interactive=asks
            ),
            f"Exporting to {words.remote}",
        )
        lines = [
            f"{one.local_bus_id} is {one.remote_bus_id} at {one.remote}  "
            f"{' '.join(one.device_nodes)}".rstrip()
            for one in self._attachment(path)
        ]
        return await self._finish(path, *lines)

    async def _attach_all(self, options: dict[str, bool | int]) -> Exit:
        words = self._words
        if words.expect is not None:
            raise ClientError(
                "org.freedesktop.DBus.Error.InvalidArgs", "--expect is about one device, not --all."
            )
        path = await self._asking.trusted(
            words.remote,
            lambda asks: self._client.attach_all(
                words.remote, words.pattern, options, interactive=asks
            ),
            f"Attaching from {words.remote}",
        )
        return await self._finish(
            path, f"Whatever matches at {words.remote} is attached from now on."
        )

    async def _finish(self, path: str, *lines: str) -> Exit:
        """Say so; with --wait stay until a signal, and detach then, or until it is gone."""
        if not self._words.wait:
            self._terminal.say(*lines)
            return Exit.OK

        ended = await hold(self._client, path, lambda: self._terminal.say(*lines))
        if ended is not None:
            return ended
        if self._words.keep or getattr(self._words, "all", False):
            # What is kept ends only when somebody wants it to.
            self._terminal.complain("It was detached.")
            return Exit.OK
        self._terminal.complain("The device is gone.")
        return Exit.DEVICE

    async def _unit(self) -> Exit:
        """What usbipssh@.service runs: keep --wait."""
        try:
            remote, pattern = instance.parse(self._words.instance)
        except instance.BadInstance as error:
            raise ClientError("org.freedesktop.DBus.Error.InvalidArgs", str(error)) from error
        self._words = parser().parse_args(["keep", "--wait", "--", remote, pattern])
        return await self._attach()

    async def _detach(self) -> Exit:
        worst = Exit.OK
        for target in self._words.target:
            try:
                count = await self._detached(target)
            except ClientError as error:
                if len(self._words.target) == 1:
                    raise
                self._terminal.complain(advised(error, "", self._client.snapshot))
                worst = exit_code(error)
            else:
                if target == "all":
                    self._terminal.say(f"{count} given back.")
        return worst

    async def _detached(self, target: str) -> int:
        use = self._mounted.find(target, self._client.snapshot, os.getuid())
        if use is not None and not self._words.force:
            raise in_use(use)
        return await self._asking.granted(
            lambda asks: self._client.detach(target, interactive=asks), f"Detaching {target}"
        )

    async def _unbind(self) -> Exit:
        remote = "" if self._words.remote == HERE else self._words.remote
        busids = await self._asking.granted(
            lambda asks: self._client.unbind(remote, self._words.pattern, interactive=asks),
            f"Asking {remote or 'this machine'}",
        )
        self._terminal.say(*busids)
        return Exit.OK

    async def _reset(self) -> Exit:
        remote = "" if self._words.remote == HERE else self._words.remote
        busids = await self._asking.trusted(
            remote,
            lambda asks: self._client.reset(remote, self._words.pattern, interactive=asks),
            f"Resetting at {remote or 'this machine'}",
        )
        self._terminal.say(*busids)
        return Exit.OK

    # Looking

    async def _status(self) -> Exit:
        snapshot = self._client.snapshot
        if self._words.json:
            self._terminal.say(json.dumps(_published(snapshot), indent=2))
        else:
            self._terminal.say(*columns.status(snapshot, _clock, self._terminal.paint))
        return Exit.OK

    async def _monitor(self) -> Exit:
        news: asyncio.Queue[events.Event] = asyncio.Queue()
        # What there is now comes first.
        before = Snapshot()

        def changed() -> None:
            nonlocal before
            for event in events.events(before, self._client.snapshot):
                news.put_nowait(event)
            before = self._client.snapshot

        changed()
        self._client.listen(changed)
        self._client.listen_to_plugs(lambda remote: news.put_nowait(events.plugged(remote)))
        with self._terminal.reader_gone() as gone:
            ends = [
                asyncio.create_task(self._client.disconnected()),
                asyncio.create_task(gone.wait()),
            ]
            try:
                while True:
                    event = asyncio.create_task(news.get())
                    await asyncio.wait([event, *ends], return_when=asyncio.FIRST_COMPLETED)
                    if gone.is_set():
                        event.cancel()
                        raise BrokenPipeError
                    if not event.done():
                        event.cancel()
                        self._terminal.complain("The system bus is gone.")
                        return Exit.DAEMON
                    self._terminal.say(self._line(event.result()))
            finally:
                for end in ends:
                    end.cancel()

    def _line(self, event: events.Event) -> str:
        if self._words.json:
            return json.dumps({name: value for name, value in asdict(event).items() if value})
        return f"{time.strftime('%H:%M:%S')} {event.text}"

    async def _doctor(self) -> Exit:
        remote = "" if self._words.remote == HERE else self._words.remote
        found = await self._asking.granted(
            lambda asks: self._client.preflight(remote, interactive=asks),
            f"Looking at {remote or 'this machine'}",
        )
        if self._words.json:
            self._terminal.say(json.dumps(found, indent=2))
        else:
            self._terminal.say(*columns.findings(found, self._terminal.paint))
        bad = any(one.get("ok") not in ("ok", "warning") for one in found)
        return Exit.FAILED if bad else Exit.OK

    async def _key(self) -> Exit:
        await self._client.start()
        self._terminal.say(self._client.snapshot.manager.public_key)
        return Exit.OK

    # Remotes

    async def _remote_list(self) -> Exit:
        await self._client.start()
        lines = columns.remotes(self._client.snapshot.remotes, self._terminal.paint)
        self._terminal.say(*(lines or ["No remote is listed; usbipsshctl remote add adds one."]))
        return Exit.OK

    async def _remote_add(self) -> Exit:
        words = self._words
        await self._asking.granted(
            lambda asks: self._client.add_remote(
                words.name,
                address=words.address,
                sudo=words.sudo,
                label=words.label,
                interactive=asks,
            )
        )
        await self._client.start()
        user = words.address.rpartition("@")[0] or "root"
        self._terminal.say(
            f"{words.name} is listed. To be let in there, this line has to be in the "
            f"authorized_keys of {user}:",
            self._client.snapshot.manager.public_key,
        )
        return Exit.OK

    async def _remote_remove(self) -> Exit:
        await self._asking.granted(
            lambda asks: self._client.remove_remote(self._words.name, interactive=asks)
        )
        return Exit.OK

    async def _remote_trust(self) -> Exit:
        words = self._words
        fingerprint = words.fingerprint
        if not fingerprint:
            try:
                await self._asking.granted(self._listing(words.name), f"Asking {words.name}")
            except ClientError as error:
                if error.code not in ("HostKeyUnknown", "HostKeyMismatch"):
                    raise
                fingerprint = await self._asking.agreed(words.name)
                if not fingerprint:
                    raise
            else:
                self._terminal.say(f"The host key of {words.name} is trusted already.")
                return Exit.OK
        await self._asking.trust(words.name, fingerprint)
        return Exit.OK


def _called(remote: str) -> str:
    return "this machine" if remote == HERE else remote


def _nothing(remote: str, pattern: str) -> str:
    more = " that matches" if pattern else ""
    return f"There is no USB device at {_called(remote)}{more}."


def _clock(microseconds: int) -> str:
    return time.strftime("%H:%M:%S", time.localtime(microseconds / 1e6))


def _published(snapshot: Snapshot) -> dict[str, object]:
    return {
        "present": snapshot.present,
        "hubs": [asdict(hub) for hub in snapshot.hubs],
        "attachments": [asdict(one) for one in snapshot.attachments],
    }
