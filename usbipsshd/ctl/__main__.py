# SPDX-License-Identifier: GPL-3.0-or-later
"""``usbipsshctl``: see usbipsshctl(1)."""

from __future__ import annotations

import sys

INTERRUPTED = 130
"""The same as the one in exitcodes, which takes as long to load as the rest."""


def main() -> int:
    """Run one command; return its exit status."""
    try:
        # Here, for it takes a while on small machines, and Ctrl-C then is no error either.
        from usbipsshd.ctl import program  # noqa: PLC0415

        return program.main()
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
