# SPDX-License-Identifier: GPL-3.0-or-later
"""Holds the clipboard until somebody else takes it."""

from __future__ import annotations

import tkinter
from collections.abc import Mapping

HOUR = 60 * 60 * 1000
"""Milliseconds after which it is given up."""


def copy(show: Mapping[str, object]) -> dict[str, object] | None:
    """Offer ``text`` as the clipboard until another program does."""
    text = str(show.get("text", ""))
    root = tkinter.Tk(className="usbipssh-tray")
    root.withdraw()

    def part(offset: str, length: str) -> str:
        return text[int(offset) : int(offset) + int(length)]

    for kind in ("UTF8_STRING", "STRING"):
        root.selection_handle(part, selection="CLIPBOARD", type=kind)
    root.selection_own(selection="CLIPBOARD", command=root.destroy)
    root.after(HOUR, root.destroy)
    root.mainloop()
    return {}
