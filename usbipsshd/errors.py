# SPDX-License-Identifier: GPL-3.0-or-later
"""What can go wrong, by name.

The names are those of the D-Bus contract (``org.usbipssh1.Error.*`` and the
standard ones it uses). Both processes use them: the session reports a code and
a few bounded facts, the root process turns these into a sentence.
"""

from __future__ import annotations

from enum import StrEnum


class Code(StrEnum):
    """The last part of a D-Bus error name."""

    ACCESS_DENIED = "AccessDenied"
    INTERACTIVE_REQUIRED = "InteractiveAuthorizationRequired"
    INVALID_ARGS = "InvalidArgs"
    UNKNOWN_OBJECT = "UnknownObject"
    LIMITS_EXCEEDED = "LimitsExceeded"
    NOT_SUPPORTED = "NotSupported"

    UNKNOWN_REMOTE = "UnknownRemote"
    CONNECTION_FAILED = "ConnectionFailed"
    SSH_AUTH_FAILED = "SshAuthFailed"
    HOST_KEY_UNKNOWN = "HostKeyUnknown"
    HOST_KEY_MISMATCH = "HostKeyMismatch"
    REMOTE_UNSUPPORTED = "RemoteUnsupported"
    NOT_PERMITTED_THERE = "NotPermittedThere"
    MODULE_UNAVAILABLE = "ModuleUnavailable"
    DEVICE_NOT_FOUND = "DeviceNotFound"
    MULTIPLE_DEVICES = "MultipleDevices"
    DEVICE_BUSY = "DeviceBusy"
    DEVICE_CHANGED = "DeviceChanged"
    DEVICE_FAILED = "DeviceFailed"
    ALREADY_ATTACHED = "AlreadyAttached"
    NOT_ATTACHED = "NotAttached"
    NO_FREE_PORT = "NoFreePort"
    TIMED_OUT = "TimedOut"
    CANCELLED = "Cancelled"
    FAILED = "Failed"


NO_AGENT = "no polkit agent runs"
"""Words of the AccessDenied for somebody who would be asked and cannot be."""

STANDARD = frozenset(
    {
        Code.ACCESS_DENIED,
        Code.INTERACTIVE_REQUIRED,
        Code.INVALID_ARGS,
        Code.UNKNOWN_OBJECT,
        Code.LIMITS_EXCEEDED,
        Code.NOT_SUPPORTED,
    }
)


class UsbipError(Exception):
    """An error that a caller may see: a code of the contract and one sentence.

    ``message`` says what happened and what to do, and holds nothing from a
    remote that has not been through :func:`usbipsshd.text.clean`.
    """

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    @property
    def dbus_name(self) -> str:
        """The full D-Bus error name."""
        prefix = "org.freedesktop.DBus.Error." if self.code in STANDARD else "org.usbipssh1.Error."
        return prefix + self.code.value
