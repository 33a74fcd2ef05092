# SPDX-License-Identifier: GPL-3.0-or-later
"""The icon by name, for panels that look it up, and drawn, for those that don't."""

from __future__ import annotations

import importlib.util
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

from usbipssh_tray.shapes import GRID, Layer, colour
from usbipssh_tray.status import Status

if TYPE_CHECKING:
    from PIL.Image import Image

SIZES = (22, 44)
"""Pixels, of what is handed to a panel that cannot find the icon by its name."""
_FINER = 8
_THEME = "icons/hicolor/scalable/status"


def name(status: Status) -> str:
    """The icon's name in the theme. A panel that wants symbolic icons adds ``-symbolic``."""
    return f"usbipssh-tray-{status}"


def theme_path() -> str:
    """A folder to look in besides the theme; empty where the icons are installed in it."""
    default = "/usr/local/share:/usr/share"
    for folder in (os.environ.get("XDG_DATA_DIRS") or default).split(":"):
        if Path(folder, _THEME, f"{name(Status.IDLE)}.svg").is_file():
            return ""
    return str(Path(__file__).with_name("icons"))


def found(icon: str) -> str:
    """The icon's name, or its file where the theme does not have it."""
    folder = theme_path()
    return f"{folder}/{icon}.svg" if folder else icon


def image(status: Status, size: int = 64) -> Image:
    """The coloured icon, drawn."""
    return draw(colour(status), size)


def png(status: Status, size: int) -> bytes:
    """The coloured icon as a PNG file."""
    file = io.BytesIO()
    image(status, size).save(file, "png")
    return file.getvalue()


def pixmaps(status: Status) -> list[tuple[int, int, bytes]]:
    """Width, height and ARGB32 in network byte order (StatusNotifierItem, IconPixmap).

    None where there is no PIL: a panel that finds the icon by its name needs none.
    """
    made: list[tuple[int, int, bytes]] = []
    if importlib.util.find_spec("PIL") is None:
        return made
    for size in SIZES:
        red, green, blue, alpha = image(status, size).split()
        bands = [band.tobytes() for band in (alpha, red, green, blue)]
        made.append((size, size, bytes(v for pixel in zip(*bands, strict=True) for v in pixel)))
    return made


def draw(layers: list[Layer], size: int) -> Image:
    """The layers, ``size`` pixels wide and high, on nothing."""
    # Only who draws needs it.
    from PIL import Image as images  # noqa: PLC0415
    from PIL import ImageDraw  # noqa: PLC0415

    scale = size * _FINER / GRID
    whole = images.new("RGBA", (size, size), (0, 0, 0, 0))
    for layer in layers:
        fine = images.new("L", (size * _FINER, size * _FINER), 0)
        pen = ImageDraw.Draw(fine)
        for shapes, value in ((layer.filled, 255), (layer.holes, 0)):
            for shape in shapes:
                # PIL's polygons include their last pixel.
                points = [(x * scale - 0.5, y * scale - 0.5) for x, y in shape.points()]
                pen.polygon(points, fill=value)
        solid = images.new("RGBA", (size, size), layer.colour)
        solid.putalpha(fine.reduce(_FINER))
        whole = images.alpha_composite(whole, solid)
    return whole
