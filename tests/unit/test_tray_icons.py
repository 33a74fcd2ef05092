# SPDX-License-Identifier: GPL-3.0-or-later
"""The icons: told apart by shape, drawn as the files are, found where they are installed."""

from __future__ import annotations

import itertools
import re
import runpy
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from usbipssh_tray import icons, shapes
from usbipssh_tray.status import Status

CHECKOUT = Path(__file__).resolve().parents[2]
ICONS = CHECKOUT / "tray/icons"
SIZES = (16, 22, 24, 48)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("made", [shapes.colour, shapes.symbolic])
def test_the_states_differ_in_shape_and_not_only_in_colour(made: object, size: int) -> None:
    assert callable(made)
    # As one sees it without colours, on white.
    grey = {}
    for status in Status:
        drawn = icons.draw(made(status), size).convert("LA").tobytes()
        light, solid = drawn[0::2], drawn[1::2]
        grey[status] = [255 - (255 - v) * a // 255 for v, a in zip(light, solid, strict=True)]
    for one, other in itertools.combinations(Status, 2):
        first, second = grey[one], grey[other]
        different = sum(abs(a - b) > 64 for a, b in zip(first, second, strict=True))
        assert different >= size * size * 0.03, (one, other)


def test_the_files_are_the_geometry() -> None:
    drawn = runpy.run_path(str(CHECKOUT / "tools/draw-icons.py"))["files"]()
    assert {path.name: path.read_text() for path in ICONS.glob("*.svg")} == drawn
    for text in drawn.values():
        assert ET.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"


@pytest.mark.parametrize("status", Status)
def test_no_two_shapes_of_a_layer_overlap(status: Status) -> None:
    """Where they did, an SVG of theirs would have a hole that the drawn icon has not."""
    for layer in (*shapes.colour(status), *shapes.symbolic(status)):
        areas = []
        for shape in layer.filled:
            alone = icons.draw([shapes.Layer(layer.colour, (shape,))], 64)
            areas.append({i for i, alpha in enumerate(alone.tobytes()[3::4]) if alpha > 128})
        for one, other in itertools.combinations(areas, 2):
            assert not one & other


def test_pixmaps_are_argb_in_network_order() -> None:
    for width, height, data in icons.pixmaps(Status.TROUBLE):
        assert width == height
        assert len(data) == 4 * width * height
        middle = 4 * (width * (height * 7 // 16) + width * 4 // 16)
        assert data[middle : middle + 4] == bytes.fromhex("ff" + "d35400")
        assert data[:4] == bytes(4)


def test_a_symbolic_icon_is_of_one_colour() -> None:
    for path in ICONS.glob("*-symbolic.svg"):
        assert set(re.findall(r'fill="([^"]*)"', path.read_text())) == {shapes.SYMBOLIC}


def test_the_theme_or_our_own_folder_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_DIRS", str(tmp_path))
    assert Path(icons.theme_path(), icons.name(Status.IDLE) + ".svg").is_file()
    assert Path(icons.found(icons.name(Status.TROUBLE))).is_file()
    theme = tmp_path / "icons/hicolor/scalable/status"
    theme.mkdir(parents=True)
    (theme / f"{icons.name(Status.IDLE)}.svg").touch()
    assert icons.theme_path() == ""
    assert icons.found(icons.name(Status.TROUBLE)) == "usbipssh-tray-trouble"
