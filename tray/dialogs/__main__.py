# SPDX-License-Identifier: GPL-3.0-or-later
"""One dialog, as a program: see :mod:`usbipssh_tray.dialogs`."""

from __future__ import annotations

import json
import sys


def main() -> int:
    """Show the dialog that the first argument names; 0 answered, 1 cancelled, 2 not shown."""
    try:
        import tkinter  # noqa: PLC0415

        from usbipssh_tray.dialogs.add_remote import add_remote  # noqa: PLC0415
        from usbipssh_tray.dialogs.clipboard import copy  # noqa: PLC0415
        from usbipssh_tray.dialogs.trust import trust  # noqa: PLC0415
    except ImportError as error:
        print(f"usbipssh-tray: dialogs need Tk (Debian: python3-tk): {error}", file=sys.stderr)
        return 2
    dialogs = {"add-remote": add_remote, "trust": trust, "copy": copy}
    if len(sys.argv) != 2 or sys.argv[1] not in dialogs:
        print(f"usage: usbipssh_tray.dialogs {'|'.join(dialogs)}", file=sys.stderr)
        return 2
    show = json.load(sys.stdin)
    try:
        answer = dialogs[sys.argv[1]](show if isinstance(show, dict) else {})
    except tkinter.TclError as error:
        print(f"usbipssh-tray: no dialog: {error}", file=sys.stderr)
        return 2
    if answer is None:
        return 1
    json.dump(answer, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
