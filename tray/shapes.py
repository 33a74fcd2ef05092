# SPDX-License-Identifier: GPL-3.0-or-later
"""The icon's geometry, on a grid of 16 by 16: a USB plug that says how things stand.

Idle is an empty plug, attached a filled one with a tick, trouble one with an exclamation mark and
its cable torn off: they differ in shape, and in colour only besides.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from xml.sax.saxutils import escape

from usbipssh_tray.status import Status

GRID = 16
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle with round corners."""

    x: float
    y: float
    width: float
    height: float
    radius: float = 0.0

    def outline(self) -> str:
        """As an SVG path."""
        r = self.radius
        if not r:
            return (
                f"M{_n(self.x)} {_n(self.y)}h{_n(self.width)}v{_n(self.height)}h{_n(-self.width)}z"
            )
        across, down = self.width - 2 * r, self.height - 2 * r
        turn = f"a{_n(r)} {_n(r)} 0 0 1"
        return (
            f"M{_n(self.x + r)} {_n(self.y)}h{_n(across)}{turn} {_n(r)} {_n(r)}"
            f"v{_n(down)}{turn} {_n(-r)} {_n(r)}h{_n(-across)}{turn} {_n(-r)} {_n(-r)}"
            f"v{_n(-down)}{turn} {_n(r)} {_n(-r)}z"
        )

    def points(self) -> list[Point]:
        """As a polygon."""
        r = self.radius
        right, bottom = self.x + self.width, self.y + self.height
        centres = [
            (right - r, self.y + r, -90), (right - r, bottom - r, 0),
            (self.x + r, bottom - r, 90), (self.x + r, self.y + r, 180),
        ]  # fmt: skip
        steps = 12 if r else 0
        return [
            (
                x + r * math.cos(math.radians(start + 90 * step / max(steps, 1))),
                y + r * math.sin(math.radians(start + 90 * step / max(steps, 1))),
            )
            for x, y, start in centres
            for step in range(steps + 1)
        ]


@dataclass(frozen=True, slots=True)
class Polygon:
    """Straight lines from point to point."""

    corners: tuple[Point, ...]

    def outline(self) -> str:
        """As an SVG path."""
        return "M" + "L".join(f"{_n(x)} {_n(y)}" for x, y in self.corners) + "z"

    def points(self) -> list[Point]:
        """As a polygon."""
        return list(self.corners)


@dataclass(frozen=True, slots=True)
class Layer:
    """Shapes of one colour (``#rrggbb``), with holes in them."""

    colour: str
    filled: tuple[Box | Polygon, ...]
    holes: tuple[Box | Polygon, ...] = ()


_SHELL = Box(4, 0, 8, 5, 0.5)
_IN_SHELL = Box(5, 1, 6, 4)
_CONTACTS = (Box(6, 2, 1.5, 2), Box(8.5, 2, 1.5, 2))
_BODY = Box(2, 5, 12, 9, 2)
_IN_BODY = Box(3, 6, 10, 7, 1)
_CABLE = Box(7, 14, 2, 2)
_TICK = Polygon(((4.4, 9.5), (5.6, 8.3), (7.2, 9.9), (10.4, 6.7), (11.6, 7.9), (7.2, 12.3)))
_MARK = (Box(7, 6.6, 2, 3.4), Box(7, 10.8, 2, 1.8))
_GLYPHS: dict[Status, tuple[Box | Polygon, ...]] = {
    Status.IDLE: (),
    Status.ATTACHED: (_TICK,),
    Status.TROUBLE: _MARK,
}

_EDGE, _METAL, _WHITE = "#4a4f51", "#eeeeec", "#ffffff"
STATUS_COLOURS = {
    Status.IDLE: "#babdb6",
    Status.ATTACHED: "#2f8f46",
    Status.TROUBLE: "#d35400",
}
"""What the plug of the coloured icon is filled with."""
SYMBOLIC = "#2e3436"
"""The one colour of a symbolic icon, which the desktop replaces (GNOME's icon guidelines)."""


def colour(status: Status) -> list[Layer]:
    """The layers of the coloured icon, lowest first."""
    cable = () if status is Status.TROUBLE else (_CABLE,)
    return [
        Layer(_EDGE, (*cable, _SHELL, _BODY)),
        Layer(_METAL, (_IN_SHELL,), _CONTACTS),
        Layer(STATUS_COLOURS[status], (_IN_BODY,)),
        Layer(_WHITE, _GLYPHS[status]),
    ]


def symbolic(status: Status) -> list[Layer]:
    """The layers of the icon in one colour."""
    cable = () if status is Status.TROUBLE else (_CABLE,)
    shell = Layer(SYMBOLIC, (_SHELL,), (_IN_SHELL,))
    contacts = Layer(SYMBOLIC, _CONTACTS)
    if status is Status.ATTACHED:
        return [shell, contacts, Layer(SYMBOLIC, (*cable, _BODY), (_TICK,))]
    body = Layer(SYMBOLIC, (*cable, _BODY), (_IN_BODY,))
    return [shell, contacts, body, Layer(SYMBOLIC, _GLYPHS[status])]


def svg(layers: list[Layer], title: str) -> str:
    """The layers as an SVG file."""
    paths = "".join(
        f'  <path fill="{layer.colour}" fill-rule="evenodd" d="'
        + "".join(shape.outline() for shape in (*layer.filled, *layer.holes))
        + '"/>\n'
        for layer in layers
        if layer.filled
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        "<!-- SPDX-License-Identifier: GPL-3.0-or-later -->\n"
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{GRID}" height="{GRID}" '
        f'viewBox="0 0 {GRID} {GRID}">\n'
        f"  <title>{escape(title)}</title>\n{paths}</svg>\n"
    )


def _n(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
