# SPDX-License-Identifier: GPL-3.0-or-later
"""Which command helps where one failed: the daemon's own sentences speak to every client."""

from __future__ import annotations

from usbipsshd.client.errors import ClientError
from usbipsshd.client.mounted import Use
from usbipsshd.client.snapshot import Snapshot


def advised(error: ClientError, remote: str, known: Snapshot) -> str:
    """What went wrong, and the command that helps if there is one.

    ``remote`` is the one that was asked for; empty if none was.
    """
    return f"{error.message} {_hint(error, remote, known)}".rstrip()


def _hint(error: ClientError, remote: str, known: Snapshot) -> str:
    match error.code:
        case "HostKeyUnknown" if any(one.name == remote for one in known.remotes):
            return f"On a terminal, usbipsshctl remote trust {remote} shows it and asks."
        case "HostKeyUnknown" if remote and known.manager.version:
            return f"That is for listed ones: usbipsshctl remote add NAME {remote} lists it."
        case "SshAuthFailed" if "PublicKey" in error.message:
            return "usbipsshctl key prints that line."
        case "UnknownRemote" if remote and "AddRemote" not in error.message:
            return f"usbipsshctl remote add {remote} [USER@]HOST lists one."
        case "InteractiveAuthorizationRequired":
            return "Run it on a terminal, without --no-ask, to be asked for a password."
        case _:
            return ""


def in_use(use: Use) -> ClientError:
    """Why something is not detached without --force."""
    name = use.attachment.name or use.attachment.remote_bus_id
    if use.mount_point:
        text = f"{name} is mounted here, on {use.mount_point}; unmount it first"
    else:
        text = f"{name} is swap space here; swapoff /dev/{use.device} first"
    return ClientError(
        "org.usbipssh1.Error.DeviceBusy", f"{text}, or lose what is not written yet with --force."
    )
