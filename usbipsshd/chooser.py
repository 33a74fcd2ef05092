# SPDX-License-Identifier: GPL-3.0-or-later
"""Which of a remote's devices is meant, and whether it still is the one that was approved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from usbipsshd.descriptors import BadDescriptors, Summary, summarize
from usbipsshd.device import Device
from usbipsshd.errors import Code, UsbipError
from usbipsshd.matcher import Matcher
from usbipsshd.pattern import Pattern
from usbipsshd.usbids import UsbIds


class Devices(Protocol):
    """A machine's devices to choose from."""

    async def devices(self) -> list[Device]:
        """Every device but the root hubs, in tree order."""

    async def describe(self, busid: str) -> Device:
        """One device with its descriptors; raise :exc:`UsbipError` (DeviceNotFound)."""


MAX_NAMED = 8
"""Bus ids named in one error message."""


class Chooser:
    """Selects devices by pattern."""

    def __init__(self, matcher: Matcher, ids: UsbIds) -> None:
        self._matcher = matcher
        self._ids = ids

    async def select(self, pattern: Pattern, devices: Sequence[Device]) -> list[Device]:
        """The devices that match, with the names that they don't tell themselves filled in."""
        return await self._matcher.select(pattern, [self._ids.named(d) for d in devices])

    async def one(
        self, usb: Devices, remote: str, pattern: Pattern, free: Callable[[Device], bool]
    ) -> Device:
        """The one device that is meant, with its descriptors.

        One that is not ``free`` is passed over where another one matches, too. Raises
        :exc:`UsbipError` (DeviceNotFound, MultipleDevices, DeviceChanged).
        """
        if pattern.busid and not pattern.negated:
            found = [await usb.describe(pattern.busid)]
        else:
            found = await self.select(pattern, await usb.devices())
        chosen = _only(remote, found, free)
        device = chosen if chosen.descriptors else await usb.describe(chosen.busid)
        if (device.vendor_id, device.product_id) != (chosen.vendor_id, chosen.product_id):
            raise changed(remote, device)
        return self._ids.named(device)


def attachable(device: Device) -> bool:
    """Whether it is ever attached: no hub, and not itself attached from elsewhere."""
    return not device.hub and not device.virtual


def _only(remote: str, matching: Sequence[Device], free: Callable[[Device], bool]) -> Device:
    found = [d for d in matching if attachable(d)]
    if len(found) > 1:
        found = [d for d in found if free(d)] or found
    if len(found) == 1:
        return found[0]
    if found:
        more = ", …" if len(found) > MAX_NAMED else ""
        names = ", ".join(d.busid for d in found[:MAX_NAMED]) + more
        raise UsbipError(
            Code.MULTIPLE_DEVICES,
            f"On {remote}, {len(found)} devices match: {names}; choose one by its bus id.",
        )
    why = "no device matches"
    if matching:
        why = "only what is never attached matches: hubs and devices attached from elsewhere"
    raise UsbipError(Code.DEVICE_NOT_FOUND, f"On {remote}, {why}; list it to see what is there.")


def changed(remote: str, device: Device) -> UsbipError:
    """The error for a device that is not the one expected."""
    return UsbipError(
        Code.DEVICE_CHANGED,
        f"{device.busid} of {remote} is a {device.vendor_id:04x}:{device.product_id:04x} now, "
        "not the device that was expected; list again and choose.",
    )


def summary_of(remote: str, device: Device) -> Summary:
    """What its descriptors say; raise :exc:`UsbipError` where they contradict the rest."""
    try:
        summary = summarize(device.descriptors)
    except BadDescriptors:
        raise UsbipError(
            Code.DEVICE_FAILED, f"{remote} tells nonsense about {device.busid}; it is refused."
        ) from None
    if (summary.vendor_id, summary.product_id) != (device.vendor_id, device.product_id):
        raise UsbipError(
            Code.DEVICE_CHANGED, f"{remote} contradicts itself about {device.busid}; it is refused."
        )
    if summary.hub:
        raise UsbipError(
            Code.DEVICE_FAILED,
            f"{device.busid} of {remote} is a hub in one of its interfaces; hubs are not attached.",
        )
    return summary


def same_device(one: Device, other: Device) -> bool:
    """Whether a device that is back is the one that was there, as far as it can be told."""
    return (one.descriptors, one.serial) == (other.descriptors, other.serial)


def no_more_than(approved: Device, device: Device, remote: str) -> bool:
    """Whether a device can do nothing that ``approved`` could not: its classes are among those."""
    before, now = summary_of(remote, approved), summary_of(remote, device)
    return set(now.classes) <= set(before.classes)
