#!/usr/bin/python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write the icons' SVG files from their geometry (tray/shapes.py).

PYTHONPATH=. tools/draw-icons.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from usbipssh_tray import icons, shapes
from usbipssh_tray.status import Status

TITLES = {
    Status.IDLE: "A USB plug",
    Status.ATTACHED: "A USB plug with a tick",
    Status.TROUBLE: "A USB plug with an exclamation mark",
}


def files() -> dict[str, str]:
    """The files by name."""
    made = {}
    for status, title in TITLES.items():
        made[f"{icons.name(status)}.svg"] = shapes.svg(shapes.colour(status), title)
        made[f"{icons.name(status)}-symbolic.svg"] = shapes.svg(shapes.symbolic(status), title)
    return made


if __name__ == "__main__":
    for name, text in files().items():
        Path(sys.argv[1], name).write_text(text)
