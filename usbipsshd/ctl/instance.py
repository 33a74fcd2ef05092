# SPDX-License-Identifier: GPL-3.0-or-later
"""The instance name of ``usbipssh@.service``."""

from __future__ import annotations


class BadInstance(ValueError):
    """It names no remote and pattern."""


def parse(instance: str) -> tuple[str, str]:
    """Remote and pattern in an instance name, after systemd has taken its escapes back (%I).

    The first slash separates them, else the first hyphen: systemd-escape(1) writes a slash as a
    hyphen. So both ``usbipssh@pi-Telink`` and ``usbipssh@pi\\x2dTelink`` name Telink of pi, and a
    remote with a hyphen in its name is ``usbipssh@lab\\x2dpi-Telink``. Raises :exc:`BadInstance`.
    """
    separator = "/" if "/" in instance else "-"
    remote, _, pattern = instance.partition(separator)
    if not remote or not pattern:
        raise BadInstance(
            f"{instance!r} is not REMOTE/PATTERN; "
            "systemd-escape --template=usbipssh@.service REMOTE/PATTERN makes the unit's name."
        )
    return remote, pattern
