# SPDX-License-Identifier: GPL-3.0-or-later
"""The daemon as its clients see it: what it publishes now, and what can be asked of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from usbipsshd.bus.values import BusError, Disconnected, Variant
from usbipsshd.client.errors import ClientError, explained
from usbipsshd.client.follower import ATTACHMENT, MANAGER, NAME, PROPERTIES, Follower
from usbipsshd.client.snapshot import ROOT, Device, from_properties
from usbipsshd.client.sshagent import SshAgent, Use

log = logging.getLogger(__name__)

START_SECONDS = 60.0
"""For a call that may have to start the daemon, or opens a connection to a remote."""
ATTACH_SECONDS = 120.0
QUESTION_SECONDS = 330.0
"""More, where a person may be asked for a password: polkit's question ends after 300 s."""


class Client(Follower):
    """Also asks the daemon for things, which starts it if it does not run."""

    def __init__(self, address: str = "", ssh_agent: SshAgent = SshAgent()) -> None:  # noqa: B008
        """``ssh_agent`` is passed along to remotes, as it says itself."""
        super().__init__(address)
        self._ssh_agent = ssh_agent

    async def _ask(
        self,
        member: str,
        signature: str,
        body: Sequence[object],
        *,
        path: str = ROOT,
        interface: str = MANAGER,
        interactive: bool = False,
        seconds: float = START_SECONDS,
        fds: Sequence[int] = (),
    ) -> tuple[object, ...]:
        if self._bus is None:
            raise ClientError("org.freedesktop.DBus.Error.Disconnected", "There is no bus.")
        try:
            return await self._bus.call(
                NAME,
                path,
                interface,
                member,
                signature,
                body,
                interactive=interactive,
                timeout=seconds + (QUESTION_SECONDS if interactive else 0.0),
                fds=fds,
            )
        except (BusError, Disconnected, TimeoutError) as error:
            raise explained(error) from error

    async def _ask_there(
        self,
        member: str,
        words: Sequence[str],
        options: Mapping[str, Variant] | None = None,
        *,
        interactive: bool,
        seconds: float = START_SECONDS,
    ) -> tuple[object, ...]:
        """Ask for something at the remote ``words[0]``, which may want the ssh-agent."""
        given = dict(options or {})
        signature = "s" * len(words) + "a{sv}"

        async def ask(more: Mapping[str, Variant], fds: Sequence[int] = ()) -> tuple[object, ...]:
            return await self._ask(
                member, signature, [*words, {**given, **more}],
                interactive=interactive, seconds=seconds, fds=fds,
            )  # fmt: skip

        agent = self._ssh_agent
        # This machine needs none, and what persists cannot have one.
        if not words[0] or ("persist" in given and agent.use is Use.WHEN_REFUSED):
            agent = SshAgent()
        # A listing finds out whether the daemon's key is accepted by now. For the rest it is known:
        # whoever is asked for a password before the connection is made is asked once, not twice.
        known = member != "ListRemote" and self._is_refused(words[0])
        refusals: list[ClientError] = []
        for passed in agent.tries(refused=known):
            try:
                if not passed:
                    return await ask({})
                with await agent.connect() as sock:
                    return await ask({"ssh-agent": Variant("h", 0)}, (sock.fileno(),))
            except ClientError as error:
                if error.code != "SshAuthFailed":
                    raise
                # The daemon's own key first: its line is what mends it for good.
                refusals.insert(len(refusals) if passed else 0, error)
            except OSError:
                log.debug("there is no ssh-agent at %s", agent.path)
        if not refusals:
            raise ClientError(
                "org.usbipssh1.Error.SshAuthFailed",
                "There is no ssh-agent to pass along; start one, so that SSH_AUTH_SOCK names it.",
            )
        raise ClientError(refusals[0].name, " ".join(error.message for error in refusals))

    def _is_refused(self, remote: str) -> bool:
        """Whether the daemon's own key was refused there when it was tried last."""
        found = next((one for one in self.snapshot.remotes if one.name == remote), None)
        return found is not None and found.refuses_key

    async def start(self) -> None:
        """Start the daemon if it does not run, and wait until it is known what there is."""
        await self._ask("Get", "ss", [MANAGER, "Version"], interface=PROPERTIES)
        await self.wait_until(lambda s: s.present and bool(s.manager.version), START_SECONDS)

    async def list_remote(
        self, remote: str, pattern: str = "", *, interactive: bool = False
    ) -> list[Device]:
        """ListRemote."""
        words = [remote, pattern]
        return _devices(await self._ask_there("ListRemote", words, interactive=interactive))

    async def list_local(self, pattern: str = "") -> list[Device]:
        """ListLocal."""
        return _devices(await self._ask("ListLocal", "sa{sv}", [pattern, {}]))

    async def attach(
        self,
        remote: str,
        pattern: str,
        options: Mapping[str, bool | int] | None = None,
        *,
        interactive: bool = False,
    ) -> str:
        """Attach; the attachment's path once it is usable. ``options`` by the contract's names."""
        return await self._begin("Attach", remote, pattern, options, interactive=interactive)

    async def export(
        self,
        remote: str,
        pattern: str,
        options: Mapping[str, bool | int] | None = None,
        *,
        interactive: bool = False,
    ) -> str:
        """Export; the attachment's path once the device of this machine is usable there."""
        return await self._begin("Export", remote, pattern, options, interactive=interactive)

    async def attach_all(
        self,
        remote: str,
        pattern: str = "",
        options: Mapping[str, bool | int] | None = None,
        *,
        interactive: bool = False,
    ) -> str:
        """AttachAll; the hub's path."""
        return await self._begin("AttachAll", remote, pattern, options, interactive=interactive)

    async def _begin(
        self,
        member: str,
        remote: str,
        pattern: str,
        options: Mapping[str, bool | int] | None,
        *,
        interactive: bool,
    ) -> str:
        answer = await self._ask_there(
            member,
            [remote, pattern],
            _variants(options or {}),
            interactive=interactive,
            seconds=ATTACH_SECONDS,
        )
        return str(answer[0])

    async def detach(self, target: str, *, interactive: bool = False) -> int:
        """Detach a path, ``remote/busid``, a local bus id or ``all``; how many there were."""
        answer = await self._ask(
            "Detach", "sa{sv}", [target, {}], interactive=interactive, seconds=ATTACH_SECONDS
        )
        return int(str(answer[0]))

    async def set_options(
        self, path: str, options: Mapping[str, bool | int], *, interactive: bool = False
    ) -> None:
        """SetOptions of an attachment: keep, persist."""
        await self._ask(
            "SetOptions",
            "a{sv}",
            [_variants(options)],
            path=path,
            interface=ATTACHMENT,
            interactive=interactive,
        )

    async def statistics(self, path: str) -> Mapping[str, int]:
        """GetStatistics of an attachment: bytes received and sent."""
        answer = await self._ask("GetStatistics", "a{sv}", [{}], path=path, interface=ATTACHMENT)
        table = answer[0] if isinstance(answer[0], dict) else {}
        return {
            name: each.value
            for name, each in table.items()
            if isinstance(each, Variant) and isinstance(each.value, int)
        }

    async def unbind(self, remote: str, pattern: str, *, interactive: bool = False) -> list[str]:
        """Unbind; the bus ids of what was given back."""
        return await self._busids("Unbind", remote, pattern, interactive=interactive)

    async def reset(self, remote: str, pattern: str, *, interactive: bool = False) -> list[str]:
        """Reset; the bus ids of what was reset."""
        return await self._busids("Reset", remote, pattern, interactive=interactive)

    async def _busids(
        self, member: str, remote: str, pattern: str, *, interactive: bool
    ) -> list[str]:
        answer = await self._ask_there(
            member, [remote, pattern], interactive=interactive, seconds=ATTACH_SECONDS
        )
        return [str(busid) for busid in answer[0]] if isinstance(answer[0], list) else []

    async def preflight(self, remote: str, *, interactive: bool = False) -> list[dict[str, str]]:
        """Preflight; the findings with the contract's keys. The remote "" is this machine alone."""
        answer = await self._ask_there("Preflight", [remote], interactive=interactive)
        found = answer[0] if isinstance(answer[0], list) else []
        return [
            {name: str(each.value) for name, each in one.items() if isinstance(each, Variant)}
            for one in found
            if isinstance(one, dict)
        ]

    async def add_remote(
        self,
        name: str,
        *,
        address: str = "",
        sudo: bool = False,
        label: str = "",
        interactive: bool = False,
    ) -> str:
        """AddRemote; the remote's path."""
        options: dict[str, Variant] = {"sudo": Variant("b", sudo)}
        for key, value in (("address", address), ("label", label)):
            if value:
                options[key] = Variant("s", value)
        answer = await self._ask("AddRemote", "sa{sv}", [name, options], interactive=interactive)
        return str(answer[0])

    async def remove_remote(self, name: str, *, interactive: bool = False) -> None:
        """RemoveRemote; what it holds is detached first."""
        await self._ask(
            "RemoveRemote", "sa{sv}", [name, {}], interactive=interactive, seconds=ATTACH_SECONDS
        )

    async def trust_host_key(
        self, name: str, fingerprint: str, *, interactive: bool = False
    ) -> None:
        """TrustHostKey."""
        await self._ask("TrustHostKey", "ssa{sv}", [name, fingerprint, {}], interactive=interactive)


def _devices(answer: Sequence[object]) -> list[Device]:
    found = answer[0] if isinstance(answer[0], list) else []
    return [from_properties(Device, each) for each in found if isinstance(each, dict)]


def _variants(options: Mapping[str, bool | int]) -> dict[str, Variant]:
    return {k: Variant("b" if isinstance(v, bool) else "q", v) for k, v in options.items()}
