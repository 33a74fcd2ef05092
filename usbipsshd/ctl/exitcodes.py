# SPDX-License-Identifier: GPL-3.0-or-later
"""What a script learns from the exit status; usbipsshctl(1) has the same table."""

from __future__ import annotations

from enum import IntEnum

from usbipsshd.client.errors import ClientError


class Exit(IntEnum):
    """Exit statuses."""

    OK = 0
    FAILED = 1
    USAGE = 2
    """Also argparse's own."""
    REFUSED = 3
    """polkit said no, or would have had to ask."""
    REMOTE = 4
    """The remote cannot be reached, logged in to, trusted or used."""
    DEVICE = 5
    """There is no such device, more than one, or it cannot be had."""
    MACHINE = 6
    """This machine lacks something: a kernel module, a free port, room."""
    DAEMON = 7
    """There is no daemon, or no bus."""
    INTERRUPTED = 130


_BY_CODE = {
    "InvalidArgs": Exit.USAGE,
    "AccessDenied": Exit.REFUSED,
    "InteractiveAuthorizationRequired": Exit.REFUSED,
    "UnknownRemote": Exit.REMOTE,
    "ConnectionFailed": Exit.REMOTE,
    "SshAuthFailed": Exit.REMOTE,
    "HostKeyUnknown": Exit.REMOTE,
    "HostKeyMismatch": Exit.REMOTE,
    "RemoteUnsupported": Exit.REMOTE,
    "NotPermittedThere": Exit.REMOTE,
    "TimedOut": Exit.REMOTE,
    "DeviceNotFound": Exit.DEVICE,
    "MultipleDevices": Exit.DEVICE,
    "DeviceBusy": Exit.DEVICE,
    "DeviceChanged": Exit.DEVICE,
    "DeviceFailed": Exit.DEVICE,
    "AlreadyAttached": Exit.DEVICE,
    "NotAttached": Exit.DEVICE,
    "ModuleUnavailable": Exit.MACHINE,
    "NoFreePort": Exit.MACHINE,
    "LimitsExceeded": Exit.MACHINE,
    "ServiceUnknown": Exit.DAEMON,
    "NameHasNoOwner": Exit.DAEMON,
    "NoReply": Exit.DAEMON,
    "Disconnected": Exit.DAEMON,
}


def exit_code(error: ClientError) -> Exit:
    """The exit status for what the daemon, or the bus, answered."""
    if error.name.startswith("org.freedesktop.DBus.Error.Spawn"):
        return Exit.DAEMON
    return _BY_CODE.get(error.code, Exit.FAILED)
