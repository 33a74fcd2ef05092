# SPDX-License-Identifier: GPL-3.0-or-later
"""Sentences for what a session reports: which machine, what happened, what to do."""

from __future__ import annotations

import re

from usbipsshd.errors import Code, UsbipError
from usbipsshd.text import clean

_SENTENCES = {
    Code.CONNECTION_FAILED: "{remote} cannot be reached{detail}; check that it is on and that its address is right.",
    Code.SSH_AUTH_FAILED: "{remote} does not accept this machine's key; add the line in PublicKey to its authorized_keys.",
    Code.HOST_KEY_UNKNOWN: "{remote} presented a host key that is not known here{detail}; compare it with the machine's own, then pin it with TrustHostKey.",
    Code.HOST_KEY_MISMATCH: "{remote} presented another host key than the known one{detail}; if the machine was set up anew, pin the new key with TrustHostKey, else somebody may be listening.",
    Code.REMOTE_UNSUPPORTED: "{remote} cannot do this{detail}; it needs sshd with forwarding, a POSIX shell, and perl, python3 or bash.",
    Code.NOT_PERMITTED_THERE: "The login on {remote} is not root there; log in as root, or list the remote with sudo and allow sudo without a password.",
    Code.MODULE_UNAVAILABLE: "{remote} has no kernel module usbip-host{detail}; it comes with the kernel's modules package (Ubuntu: linux-modules-extra, Fedora: kernel-modules-extra).",
    Code.DEVICE_NOT_FOUND: "{remote} no longer has that device; it was unplugged.",
    Code.DEVICE_BUSY: "The device is in use on {remote}{detail}; stop using it there, then try again.",
    Code.DEVICE_CHANGED: "Another device sits on {remote} where the chosen one was; list again and choose.",
    Code.DEVICE_FAILED: "{remote} could not hand over the device{detail}; unplug it, plug it in again, and try again.",
    Code.TIMED_OUT: "{remote} took too long to answer{detail}; try again.",
    Code.CANCELLED: "Cancelled.",
    Code.LIMITS_EXCEEDED: "{remote} has more than is allowed{detail}.",
}  # fmt: skip

_HOST_KEY = frozenset({Code.HOST_KEY_UNKNOWN, Code.HOST_KEY_MISMATCH})
_PLAIN = re.compile(r"[\w .,:;()/+=@%'-]*")


def explain(remote: str, code: Code, detail: str = "") -> UsbipError:
    """The error a caller sees. ``detail`` comes from the session, so from a stranger."""
    sentence = _SENTENCES.get(code)
    if sentence is None:
        code, sentence = Code.FAILED, "Something went wrong with {remote}{detail}; see the log."
    detail = clean(detail, 120)
    if code in _HOST_KEY and not detail.startswith("SHA256:"):
        detail = ""
    if not _PLAIN.fullmatch(detail):
        detail = ""
    shown = f" ({detail})" if detail else ""
    return UsbipError(code, sentence.format(remote=remote, detail=shown))
