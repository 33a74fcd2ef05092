# SPDX-License-Identifier: GPL-3.0-or-later
"""What can be asked of a remote's USB, through its session."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from usbipsshd.control import Session, SessionFailure
from usbipsshd.device import Device, busid_key
from usbipsshd.errors import Code, UsbipError
from usbipsshd.explain import explain
from usbipsshd.messages import (
    BadPacket,
    device_from_json,
    get_busid,
    get_busids,
    get_int,
    get_object,
)
from usbipsshd.preflight import Facts, facts_from_json

LIST_SECONDS = 15.0
EXPORT_SECONDS = 25.0
RELEASE_SECONDS = 20.0
UNBIND_SECONDS = 25.0
RESET_SECONDS = 45.0
STATISTICS_SECONDS = 5.0
PORT_SECONDS = 40.0
LEND_SECONDS = 60.0


@contextmanager
def _explained(remote: str, doing: str = "hand over") -> Iterator[None]:
    try:
        yield
    except SessionFailure as failure:
        raise explain(remote, failure.code, failure.detail, doing) from None
    except BadPacket:
        raise explain(remote, Code.FAILED) from None


class RemoteUsb:
    """One remote's devices, over a connected session. Every method raises :exc:`UsbipError`."""

    def __init__(self, session: Session, remote: str) -> None:
        self._session = session
        self._remote = remote

    async def devices(self) -> list[Device]:
        """Every device but the root hubs, in tree order."""
        return await self._list("", descriptors=False)

    async def facts(self) -> Facts:
        """What there is on the remote to export with."""
        with _explained(self._remote):
            reply = await self._session.request("facts", seconds=LIST_SECONDS)
            with reply.descriptors:
                return facts_from_json(reply.ok)

    async def describe(self, busid: str) -> Device:
        """One device with its descriptors; DeviceNotFound if it is not there."""
        try:
            for device in await self._list(busid, descriptors=True):
                if device.busid == busid:
                    return device
        except UsbipError as error:
            if error.code is not Code.DEVICE_NOT_FOUND:
                raise
        raise UsbipError(
            Code.DEVICE_NOT_FOUND,
            f"{self._remote} has no device at {busid} now; list it to see what is there.",
        )

    async def _list(self, busid: str, *, descriptors: bool) -> list[Device]:
        with _explained(self._remote):
            reply = await self._session.request(
                "list", seconds=LIST_SECONDS, busid=busid, descriptors=descriptors
            )
            with reply.descriptors:
                devices = [device_from_json(get_object(row, "device")) for row in reply.rows]
        # One row a bus id: a second one could only mislead.
        unique = {d.busid: d for d in devices}
        return sorted(unique.values(), key=lambda d: busid_key(d.busid))

    async def export(self, device: Device, *, unmount: bool, rebind: bool) -> int:
        """Export a device; return a descriptor of the socket for vhci, the caller's to close."""
        with _explained(self._remote):
            reply = await self._session.request(
                "export",
                seconds=EXPORT_SECONDS,
                busid=device.busid,
                vendor_id=device.vendor_id,
                product_id=device.product_id,
                devid=device.devid,
                unmount=unmount,
                rebind=rebind,
            )
            with reply.descriptors:
                return reply.descriptors.take(0)

    async def release(self, busid: str, *, rebind: bool) -> None:
        """End an export and give the device back to its driver; nothing to do is no error."""
        with _explained(self._remote):
            try:
                reply = await self._session.request(
                    "release", seconds=RELEASE_SECONDS, busid=busid, rebind=rebind
                )
            except SessionFailure as failure:
                # It ended by itself and was given back then.
                if failure.code is not Code.NOT_ATTACHED:
                    raise
            else:
                reply.descriptors.close()

    async def unbind(self, busid: str) -> None:
        """Give back a device that usbip-host holds, whoever exported it."""
        with _explained(self._remote):
            reply = await self._session.request("unbind", seconds=UNBIND_SECONDS, busid=busid)
            reply.descriptors.close()

    async def reset(self, device: Device) -> None:
        """Reset the port of a device that is not exported through this session."""
        with _explained(self._remote, "reset"):
            reply = await self._session.request(
                "reset",
                seconds=RESET_SECONDS,
                busid=device.busid,
                vendor_id=device.vendor_id,
                product_id=device.product_id,
                devid=device.devid,
            )
            reply.descriptors.close()

    async def exports(self) -> list[str]:
        """Bus ids of what this session exports now."""
        with _explained(self._remote):
            reply = await self._session.request("exports", seconds=STATISTICS_SECONDS)
            with reply.descriptors:
                return get_busids(reply.ok)

    async def ready(self, busid: str, speed: int) -> None:
        """See that the remote could attach this machine's device; ``speed`` as vhci numbers it.

        ModuleUnavailable, NoFreePort and others, of the remote.
        """
        with _explained(self._remote):
            reply = await self._session.request(
                "port", seconds=PORT_SECONDS, busid=busid, speed=speed
            )
            reply.descriptors.close()

    async def lend(self, device: Device, speed: int, fd: int) -> tuple[str, int]:
        """Have the remote attach this machine's device, which is at the other end of ``fd``.

        Bus id and port there.
        """
        with _explained(self._remote):
            reply = await self._session.request(
                "lend",
                seconds=LEND_SECONDS,
                fds=[fd],
                busid=device.busid,
                devid=device.devid,
                speed=speed,
            )
            with reply.descriptors:
                return get_busid(reply.ok), get_int(reply.ok, "port", 0xFFFF)

    async def loan(self, busid: str) -> Device:
        """What this machine's device is there; NotAttached."""
        with _explained(self._remote):
            reply = await self._session.request("loan", seconds=LIST_SECONDS, busid=busid)
            with reply.descriptors:
                devices = [device_from_json(get_object(row, "device")) for row in reply.rows]
        if len(devices) != 1:
            raise explain(self._remote, Code.FAILED)
        return devices[0]

    async def loans(self) -> list[str]:
        """Bus ids here of what this session has lent now."""
        with _explained(self._remote):
            reply = await self._session.request("loans", seconds=STATISTICS_SECONDS)
            with reply.descriptors:
                return get_busids(reply.ok)

    async def take_back(self, busid: str) -> None:
        """Detach this machine's device there; nothing to do is no error."""
        with _explained(self._remote):
            try:
                reply = await self._session.request(
                    "take-back", seconds=RELEASE_SECONDS, busid=busid
                )
            except SessionFailure as failure:
                if failure.code is not Code.NOT_ATTACHED:
                    raise
            else:
                reply.descriptors.close()

    async def statistics(self, busid: str) -> tuple[int, int]:
        """Bytes received from and sent to the device since it was exported."""
        return await self._statistics("statistics", busid)

    async def loan_statistics(self, busid: str) -> tuple[int, int]:
        """Bytes received from and sent to the remote since this machine's device was lent."""
        return await self._statistics("loan-statistics", busid)

    async def _statistics(self, op: str, busid: str) -> tuple[int, int]:
        with _explained(self._remote):
            reply = await self._session.request(op, seconds=STATISTICS_SECONDS, busid=busid)
            with reply.descriptors:
                top = (1 << 63) - 1
                return get_int(reply.ok, "received", top), get_int(reply.ok, "sent", top)
