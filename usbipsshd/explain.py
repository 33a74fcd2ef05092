# SPDX-License-Identifier: GPL-3.0-or-later
"""Sentences for what a session reports: which machine, what happened, what to do."""

from __future__ import annotations

import errno
import os
import re

from usbipsshd.errors import Code, UsbipError
from usbipsshd.remotes import is_fingerprint
from usbipsshd.text import clean

_SENTENCES = {
    Code.CONNECTION_FAILED: "{remote} cannot be reached{detail}; check that it is on and that its address is right.",
    Code.SSH_AUTH_FAILED: "{remote} does not accept this machine's key; add the line in PublicKey to its authorized_keys.",
    Code.HOST_KEY_UNKNOWN: "{remote} presented a host key that is not known here{detail}; compare it with the machine's own, then pin it with TrustHostKey.",
    Code.HOST_KEY_MISMATCH: "{remote} presented another host key than the known one{detail}; if the machine was set up anew, pin the new key with TrustHostKey, else somebody may be listening.",
    Code.REMOTE_UNSUPPORTED: "{remote} cannot do this{detail}; it needs sshd with forwarding, a POSIX shell, and perl, python3, socat, ncat, bash or busybox.",
    Code.NOT_PERMITTED_THERE: "The login on {remote} is not root there; log in as root, or list the remote with sudo and allow sudo without a password.",
    Code.MODULE_UNAVAILABLE: "{remote} has no kernel module {module} for its kernel; it comes with the kernel's modules package (Ubuntu: linux-modules-extra, Fedora: kernel-modules-extra).",
    Code.NO_FREE_PORT: "Every virtual USB port of {remote} that fits is taken{detail}; detach something there first.",
    Code.DEVICE_NOT_FOUND: "{remote} no longer has that device; it was unplugged.",
    Code.DEVICE_BUSY: "The device is in use on {remote}{detail}; stop using it there, then try again.",
    Code.NOT_ATTACHED: "{remote} has the device no longer.",
    Code.ALREADY_ATTACHED: "The device is still exported by {remote}; try again.",
    Code.DEVICE_CHANGED: "Another device sits on {remote} where the chosen one was; list again and choose.",
    Code.DEVICE_FAILED: "{remote} could not {doing} the device{detail}; unplug it, plug it in again, and try again.",
    Code.TIMED_OUT: "{remote} took too long to answer{detail}; try again.",
    Code.CANCELLED: "Cancelled.",
    Code.LIMITS_EXCEEDED: "{remote} has more than is allowed{detail}.",
}  # fmt: skip

SUDO_REFUSES = "sudo refuses"
"""The detail of a NotPermittedThere that is sudo's."""
_SUDO = "sudo on {remote} asks for a password, or refuses; allow this login there what it is to do without one (NOPASSWD in sudoers(5))."

IMPORTING_MODULE = "vhci-hcd"
"""The kernel module that attaches devices; usbip-host exports them."""

_HOST_KEY = frozenset({Code.HOST_KEY_UNKNOWN, Code.HOST_KEY_MISMATCH})
_NAME = r"[A-Za-z0-9_/][A-Za-z0-9_./:@+-]{0,63}"
_PHRASES = (
    "usbip-host", "vhci-hcd", "hs", "ss", "its port does not come free",
    "it went away while it was being started", "it did not answer there",
    "too many devices for one remote",
    "no such host", "its name cannot be looked up now", "no address", "no answer",
    "no answer from its ssh server", "the connection was closed", "the connection ended",
    "its session ended", "its ssh server closed the connection", "the agent there ended",
    "what answers there is no ssh server", "its ssh server does not make sense",
    "its ssh server has no algorithm in common with us", "its ssh server refuses to forward sockets",
    "its ssh server offers no host key we know", "its shell did not answer",
    "no shell that answers", "the agent there did not answer", "it made no folder for the socket",
    "nothing there connects a socket", "nothing that connects",
    "its jump host has a host key that is not known here",
    "its jump host has another host key than the known one", "its jump host does not accept the key",
    "its jump host cannot be reached", "its jump host does not reach it",
    "its ProxyCommand cannot be started",
    "a device has too much to tell", "too many requests to one remote",
    "too many devices from one remote", "the device was not ready in time",
    "the connection there was closed again", "no temporary folder",
    "the temporary folder is full or gone", "it is in use by another machine", "it is mounted",
    "it is a hub", "it is itself a remote device", "usbip-host does not let go of it",
    "its connection does not end", "no driver took it back", "it did not come back",
    "nothing there can reset it", "usbip-host does not take its name",
    "usbip-host takes no more than 16 devices", "usbip-host does not take it",
    "usbip-host takes nothing in that port before a restart there",
    r"usbip-host reports state (?:[0-9]|none)",
    r"(?:perl|python3|socat|ncat|bash|busybox) could not hand over a connection",
    rf"{_NAME} is (?:in use|swap space in use)", rf"{_NAME} does not let go of it",
    rf"{_NAME} \(process [0-9]{{1,10}}\) uses {_NAME}",
    rf"it is part of {_NAME}, and there is no {_NAME}",
)  # fmt: skip
"""What a session of ours says, and therefore all that is passed on of what one says."""
_REASONS = frozenset(os.strerror(number).lower() for number in errno.errorcode)
_KNOWN = re.compile("|".join(_PHRASES), re.ASCII)


def explain(remote: str, code: Code, detail: str = "", doing: str = "hand over") -> UsbipError:
    """The error a caller sees. ``detail`` comes from the session, so from a stranger.

    ``doing`` is what was to be done with the device.
    """
    sentence = _SENTENCES.get(code)
    if sentence is None:
        code, sentence = Code.FAILED, "Something went wrong with {remote}{detail}; see the log."
    detail = clean(detail, 120)
    if code is Code.NOT_PERMITTED_THERE and detail == SUDO_REFUSES:
        sentence = _SUDO
    if code in _HOST_KEY:
        known = is_fingerprint(detail)
    else:
        known = detail in _REASONS or _KNOWN.fullmatch(detail) is not None
    if not known:
        # Anything else is foreign text, which is no business of a caller's.
        detail = ""
    shown = f" ({detail})" if detail else ""
    module = detail if detail == IMPORTING_MODULE else "usbip-host"
    return UsbipError(
        code, sentence.format(remote=remote, detail=shown, doing=doing, module=module)
    )
