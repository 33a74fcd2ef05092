# SPDX-License-Identifier: GPL-3.0-or-later
"""The methods of the contract: arguments in, the service's work, results out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from usbipsshd.attachment import Attachment
from usbipsshd.bus.asking import Asks, CallerAsks
from usbipsshd.bus.bindings import Bindings
from usbipsshd.bus.encode import (
    ATTACHMENTS,
    HUBS,
    attachment_number,
    attachment_path,
    finding_entry,
    hub_number,
    hub_path,
    listed_device,
    remote_path,
)
from usbipsshd.bus.objects import Handler
from usbipsshd.bus.values import Call, Variant, options
from usbipsshd.callersagent import check_agent_socket
from usbipsshd.errors import Code, UsbipError
from usbipsshd.hub import Hub
from usbipsshd.lending import Lending
from usbipsshd.links import PassedAgent
from usbipsshd.remotelist import RemoteList
from usbipsshd.resets import Resets
from usbipsshd.service import AttachOptions, HubOptions, Service
from usbipsshd.unbinding import Unbinding

MANAGER = "org.usbipssh1.Manager"
ATTACHMENT = "org.usbipssh1.Attachment"
HUB = "org.usbipssh1.Hub"
REMOTE = "org.usbipssh1.Remote"

MAX_TEXT = 512
"""Characters of any string argument."""

_NOTHING: dict[str, str] = {}
_ATTACH = {
    "keep": "b",
    "persist": "b",
    "unmount": "b",
    "rebind": "b",
    "expect-vendor-id": "q",
    "expect-product-id": "q",
    "bind-to-caller": "b",
    "ssh-agent": "h",
}
"""Of Export, too."""
_ATTACH_ALL = {
    "persist": "b",
    "unmount": "b",
    "rebind": "b",
    "bind-to-caller": "b",
    "ssh-agent": "h",
}
_CONNECT = {"ssh-agent": "h"}
"""Options of what connects to a remote and has no others."""
_SET_OPTIONS = {"keep": "b", "persist": "b"}
_ADD_REMOTE = {"address": "s", "sudo": "b", "label": "s"}


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise UsbipError(Code.INVALID_ARGS, f"A text argument has at most {MAX_TEXT} characters.")
    return value


def _flag(values: Mapping[str, object], name: str) -> bool | None:
    value = values.get(name)
    return value if isinstance(value, bool) else None


def _agent(call: Call, values: Mapping[str, object]) -> PassedAgent | None:
    """The ssh-agent that came along; its descriptor is closed with the call's others."""
    index = _number(values, "ssh-agent")
    if index is None:
        return None
    if not 0 <= index < len(call.fds):
        raise UsbipError(Code.INVALID_ARGS, "A descriptor that the call names was not sent.")
    check_agent_socket(call.fds[index], call.caller.uid)
    return PassedAgent(call.fds[index], call.caller.uid)


def _number(values: Mapping[str, object], name: str) -> int | None:
    value = values.get(name)
    return value if isinstance(value, int) else None


def _attach_options(call: Call, given: Mapping[str, object]) -> AttachOptions:
    return AttachOptions(
        keep=bool(given.get("keep")),
        persist=bool(given.get("persist")),
        unmount=bool(given.get("unmount", True)),
        rebind=bool(given.get("rebind", True)),
        expect_vendor_id=_number(given, "expect-vendor-id"),
        expect_product_id=_number(given, "expect-product-id"),
        bound_to=call.caller.name if given.get("bind-to-caller") else "",
    )


class Manager:
    """Handlers for every method of the contract."""

    def __init__(
        self,
        *,
        service: Service,
        lending: Lending,
        unbinding: Unbinding,
        resets: Resets,
        remotes: RemoteList,
        asks: Asks,
        bindings: Bindings,
    ) -> None:
        self._service = service
        self._lending = lending
        self._unbinding = unbinding
        self._resets = resets
        self._remotes = remotes
        self._bindings = bindings
        self._asking = asks

    def dispatch(self) -> dict[tuple[str, str], Handler]:
        """The handlers by interface and member."""
        return {
            (MANAGER, "ListRemote"): self._list_remote,
            (MANAGER, "ListLocal"): self._list_local,
            (MANAGER, "Attach"): self._attach,
            (MANAGER, "AttachAll"): self._attach_all,
            (MANAGER, "Export"): self._export,
            (MANAGER, "Detach"): self._detach,
            (MANAGER, "Unbind"): self._unbind,
            (MANAGER, "Reset"): self._reset,
            (MANAGER, "Preflight"): self._preflight,
            (MANAGER, "AddRemote"): self._add_remote,
            (MANAGER, "RemoveRemote"): self._remove_remote,
            (MANAGER, "TrustHostKey"): self._trust_host_key,
            (ATTACHMENT, "Detach"): self._detach_attachment,
            (ATTACHMENT, "SetOptions"): self._set_options,
            (ATTACHMENT, "GetStatistics"): self._get_statistics,
            (HUB, "Detach"): self._detach_hub,
        }

    def _asks(self, call: Call) -> CallerAsks:
        return self._asking.of(call)

    async def _list_remote(self, call: Call) -> Sequence[object]:
        remote, pattern = _text(call.args[0]), _text(call.args[1])
        agent = _agent(call, options(call.args[2], _CONNECT))
        found = await self._service.list_remote(self._asks(call), remote, pattern, agent)
        return ([listed_device(d) for d in found],)

    async def _list_local(self, call: Call) -> Sequence[object]:
        pattern = _text(call.args[0])
        options(call.args[1], _NOTHING)
        return ([listed_device(d) for d in await self._service.list_local(pattern)],)

    async def _attach(self, call: Call) -> Sequence[object]:
        remote, pattern = _text(call.args[0]), _text(call.args[1])
        given = options(call.args[2], _ATTACH)
        attachment = await self._service.attach(
            self._asks(call), remote, pattern, _attach_options(call, given), _agent(call, given)
        )
        return self._attached(call, attachment)

    async def _export(self, call: Call) -> Sequence[object]:
        remote, pattern = _text(call.args[0]), _text(call.args[1])
        given = options(call.args[2], _ATTACH)
        attachment = await self._lending.export(
            self._asks(call), remote, pattern, _attach_options(call, given), _agent(call, given)
        )
        return self._attached(call, attachment)

    def _attached(self, call: Call, attachment: Attachment) -> Sequence[object]:
        if attachment.bound_to:
            self._bindings.bind(call.caller, attachment)
        return (attachment_path(attachment.number),)

    async def _attach_all(self, call: Call) -> Sequence[object]:
        remote, pattern = _text(call.args[0]), _text(call.args[1])
        given = options(call.args[2], _ATTACH_ALL)
        hub = await self._service.attach_all(
            self._asks(call),
            remote,
            pattern,
            HubOptions(
                persist=bool(given.get("persist")),
                unmount=bool(given.get("unmount", True)),
                rebind=bool(given.get("rebind", True)),
                bound_to=call.caller.name if given.get("bind-to-caller") else "",
            ),
            _agent(call, given),
        )
        if given.get("bind-to-caller"):
            self._bindings.bind_hub(call.caller, hub)
        return (hub_path(hub.number),)

    async def _detach(self, call: Call) -> Sequence[object]:
        target = _text(call.args[0])
        options(call.args[1], _NOTHING)
        asks = self._asks(call)
        if target.startswith(ATTACHMENTS):
            await self._service.detach(asks, self._attachment(target))
            return (1,)
        if target.startswith(HUBS):
            hub = self._hub(target)
            count = len(hub.attachments)
            await self._service.detach_hub(asks, hub)
            return (count,)
        return (await self._service.detach_target(asks, target),)

    def _attachment(self, path: str) -> Attachment:
        attachment = self._service.attachments.get(attachment_number(path))
        if attachment is None:
            raise UsbipError(Code.NOT_ATTACHED, "There is no such attachment any more.")
        return attachment

    def _hub(self, path: str) -> Hub:
        hub = self._service.hubs.get(hub_number(path))
        if hub is None:
            raise UsbipError(Code.NOT_ATTACHED, "There is no such hub any more.")
        return hub

    async def _unbind(self, call: Call) -> Sequence[object]:
        remote, pattern = _text(call.args[0]), _text(call.args[1])
        agent = _agent(call, options(call.args[2], _CONNECT))
        return (await self._unbinding.unbind(self._asks(call), remote, pattern, agent),)

    async def _reset(self, call: Call) -> Sequence[object]:
        remote, pattern = _text(call.args[0]), _text(call.args[1])
        agent = _agent(call, options(call.args[2], _CONNECT))
        return (await self._resets.reset(self._asks(call), remote, pattern, agent),)

    async def _preflight(self, call: Call) -> Sequence[object]:
        remote = _text(call.args[0])
        agent = _agent(call, options(call.args[1], _CONNECT))
        found = await self._service.preflight(self._asks(call), remote, agent)
        return ([finding_entry(one) for one in found],)

    async def _add_remote(self, call: Call) -> Sequence[object]:
        name = _text(call.args[0])
        given = options(call.args[1], _ADD_REMOTE)
        for key in ("address", "label"):
            _text(given.get(key, ""))
        remote = await self._remotes.add_remote(self._asks(call), name, given)
        return (remote_path(remote.name),)

    async def _remove_remote(self, call: Call) -> Sequence[object]:
        name = _text(call.args[0])
        options(call.args[1], _NOTHING)
        await self._remotes.remove_remote(self._asks(call), name)
        return ()

    async def _trust_host_key(self, call: Call) -> Sequence[object]:
        name, wanted = _text(call.args[0]), _text(call.args[1])
        options(call.args[2], _NOTHING)
        await self._remotes.trust_host_key(self._asks(call), name, wanted)
        return ()

    async def _detach_attachment(self, call: Call) -> Sequence[object]:
        options(call.args[0], _NOTHING)
        await self._service.detach(self._asks(call), self._attachment(call.path))
        return ()

    async def _set_options(self, call: Call) -> Sequence[object]:
        given = options(call.args[0], _SET_OPTIONS)
        await self._service.set_options(
            self._asks(call),
            self._attachment(call.path),
            _flag(given, "keep"),
            _flag(given, "persist"),
        )
        return ()

    async def _get_statistics(self, call: Call) -> Sequence[object]:
        options(call.args[0], _NOTHING)
        attachments = self._service.attachments
        received, sent = await attachments.statistics(self._attachment(call.path))
        return ({"received": Variant("t", received), "sent": Variant("t", sent)},)

    async def _detach_hub(self, call: Call) -> Sequence[object]:
        options(call.args[0], _NOTHING)
        await self._service.detach_hub(self._asks(call), self._hub(call.path))
        return ()
