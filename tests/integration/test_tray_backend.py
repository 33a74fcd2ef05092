# SPDX-License-Identifier: GPL-3.0-or-later
"""The pystray backend and a panel: numbers that stay, news that are news, panels that go."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from integration.panel import ITEM, ITEM_PATH, MENU, PROPERTIES, Panel, panel, plain
from integration.sessionbus import SessionBus, session_bus

from usbipssh_tray.backend import library
from usbipssh_tray.backend._statusnotifier import Icon
from usbipssh_tray.render import KeyedItem
from usbipsshd.bus.values import BusError, Variant

Menu = library.pystray().Menu
Item = library.pystray().MenuItem


@pytest.fixture(scope="module")
def bus() -> Iterator[SessionBus]:
    with session_bus() as made:
        yield made


def image() -> Any:
    from PIL import Image

    return Image.new("RGBA", (2, 1), (1, 2, 3, 4))


class Showing:
    """An icon in a thread of its own, whose menu is what ``items`` holds."""

    def __init__(self, address: str, items: list[Any]) -> None:
        self.items = items
        self.opened: list[tuple[str, ...]] = []
        self.icon = Icon(
            "example",
            image(),
            "An example",
            Menu(lambda: tuple(self.items)),
            statusnotifier_address=address,
            statusnotifier_opening=self.opened.append,
        )

    def show(self, items: list[Any]) -> None:
        self.items = items
        self.icon.update_menu()


@contextmanager
def showing(bus: SessionBus, items: list[Any]) -> Iterator[Showing]:
    made = Showing(bus.address, items)
    thread = threading.Thread(target=made.icon.run)
    thread.start()
    try:
        yield made
    finally:
        made.icon.stop()
        thread.join(30)
        assert not thread.is_alive()


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


def rows(names: str, checked: str = "") -> list[Any]:
    return [
        KeyedItem(name, f"Row {name}", lambda: None, lambda item: item.key in checked)
        for name in names
    ]


def test_it_looks_as_the_specification_says(bus: SessionBus) -> None:
    async def main() -> None:
        async with panel(bus.address) as shown:
            with showing(bus, rows("a")) as ours:
                look = await shown.look()
                assert look["Id"] == "example"
                assert look["Title"] == "An example"
                assert look["Status"] == "Active"
                assert look["ItemIsMenu"] is True
                # ARGB, where PIL has RGBA.
                assert [(w, h, bytes(d)) for w, h, d in look["IconPixmap"]] == [
                    (2, 1, bytes([4, 1, 2, 3] * 2))
                ]
                assert look["ToolTip"][2] == "An example"
                ours.icon.title = "Another title"
                await shown.until(
                    lambda: {"NewTitle", "NewToolTip"} <= {s.member for s in shown.signals}
                )
                assert (await shown.look())["Title"] == "Another title"
                assert "NewIcon" not in {s.member for s in shown.signals}

    run(main())


def test_rows_checks_separators_and_menus(bus: SessionBus) -> None:
    clicked: list[str] = []
    done = threading.Event()

    def click(_icon: Any, item: Any) -> None:
        clicked.append(item.text)
        done.set()

    items = [
        Item("my_file", click),
        Menu.SEPARATOR,
        Item("On", click, lambda _: True),
        Item("Off", click, lambda _: False, enabled=False),
        Item("More", Menu(Item("Inside", click))),
    ]

    async def main() -> None:
        async with panel(bus.address) as shown:
            with showing(bus, items):
                menu = await shown.menu()
                first, line, on, off, more = menu.children
                assert first.properties["label"] == "my__file"
                assert line.properties == {"type": "separator"}
                assert on.properties["toggle-type"] == "checkmark"
                assert (on.checked, off.checked) == (True, False)
                assert (on.enabled, off.enabled) == (True, False)
                assert more.properties["children-display"] == "submenu"
                assert more.labels() == ["Inside"]
                for each in (off, line, more, first):
                    await shown.click(each)
                assert await asyncio.to_thread(done.wait, 30)
                await shown.click(more.children[0])
                while len(clicked) < 2:
                    await shown.call("AboutToShow", "i", 0)
                assert clicked == ["my_file", "Inside"]
                assert (await shown.menu(depth=0)).children == []
                assert (await shown.menu(depth=1)).children[4].children == []
                assert (await shown.menu(more.id)).labels() == ["Inside"]

    run(main())


def test_numbers_stay_and_only_what_changed_is_told(bus: SessionBus) -> None:
    async def main() -> None:
        async with panel(bus.address) as shown:
            with showing(bus, rows("abc")) as ours:
                before = {i.label: i.id for i in (await shown.menu()).children}
                shown.signals.clear()

                # The same again is no news; a check mark is news of one property of one item.
                ours.show(rows("abc"))
                ours.show(rows("abc", checked="b"))
                await shown.until(lambda: shown.signals)
                (told,) = shown.signals
                assert told.member == "ItemsPropertiesUpdated"
                assert plain(told.body) == [[[before["Row b"], {"toggle-state": 1}]], []]

                # One that comes changes the list and nobody's number; one that is back has its own.
                shown.signals.clear()
                ours.show(rows("axc", checked="b"))
                await shown.until(lambda: shown.signals)
                ours.show(rows("abxc", checked="b"))
                await shown.menu_with(lambda m: len(m.children) == 4)
                after = {i.label: i.id for i in (await shown.menu()).children}
                assert {k: v for k, v in after.items() if k in before} == before
                assert after["Row x"] not in before.values()
                assert {s.member for s in shown.signals} == {"LayoutUpdated"}

    run(main())


def test_a_change_in_a_submenu_concerns_that_menu_alone(bus: SessionBus) -> None:
    def items(inside: str) -> list[Any]:
        return [*rows("ab"), KeyedItem("more", "More", Menu(*rows(inside)))]

    async def main() -> None:
        async with panel(bus.address) as shown:
            with showing(bus, items("xy")) as ours:
                more = (await shown.menu()).find("More")
                shown.signals.clear()
                ours.show(items("xyz"))
                await shown.until(lambda: shown.signals)
                (told,) = shown.signals
                assert told.member == "LayoutUpdated"
                assert told.body[1] == more.id
                revision, _layout = await shown.call("GetLayout", "iias", 0, 0, [])
                assert told.body[0] == revision

    run(main())


def test_the_panel_is_restarted(bus: SessionBus) -> None:
    async def main() -> None:
        async with panel(bus.address, watch=False) as onlooker:
            with showing(bus, rows("a")):
                for _ in range(3):
                    async with panel(bus.address) as shown:
                        await shown.item()
                        assert (await shown.menu()).labels() == ["Row a"]
                assert onlooker.items == []

    run(main())


def test_it_says_when_a_menu_is_opened(bus: SessionBus) -> None:
    async def main() -> None:
        items = [KeyedItem("more", "More", Menu(*rows("xy")))]
        async with panel(bus.address) as shown:
            with showing(bus, items) as ours:
                more = (await shown.menu()).find("More")
                assert await shown.call("AboutToShow", "i", 0) == [False]
                assert await shown.call("AboutToShowGroup", "ai", [more.id, 9999]) == [[], [9999]]
                assert ours.opened == [(), ("more",)]

    run(main())


async def refused(shown: Panel, code: str, *call: Any, path: str = "", on: str = MENU) -> None:
    item = await shown.item()
    menu = (await shown.look())["Menu"]
    member, signature, *body = call
    with pytest.raises(BusError) as error:
        await shown.bus.call(item, path or menu, on, member, signature, body)
    assert error.value.name == "org.freedesktop.DBus.Error." + code
    assert "Traceback" not in error.value.message


def test_requests_that_make_no_sense(bus: SessionBus) -> None:
    async def main() -> None:
        async with panel(bus.address) as shown:
            with showing(bus, rows("ab")):
                nothing = Variant("s", "")
                senseless: tuple[tuple[Any, ...], ...] = (
                    ("GetLayout", "iias", 9999, -1, []),
                    ("GetLayout", "s", "0"),
                    ("GetLayout", ""),
                    ("GetProperty", "is", 9999, "label"),
                    ("GetProperty", "is", 1, "nonsense"),
                    ("Event", "isvu", 9999, "clicked", nothing, 0),
                    ("Event", "s", "clicked"),
                    ("EventGroup", "a(isvu)", [[9999, "clicked", nothing, 0]]),
                    ("EventGroup", "as", ["x"]),
                    ("AboutToShow", "i", 9999),
                    ("AboutToShowGroup", "aas", [["a"]]),
                    ("GetGroupProperties", "aasas", [["a"]], []),
                )
                for call in senseless:
                    await refused(shown, "InvalidArgs", *call)
                await refused(shown, "UnknownMethod", "Nonsense", "")
                await refused(shown, "UnknownMethod", "Nonsense", "", path=ITEM_PATH, on=ITEM)
                await refused(shown, "UnknownObject", "GetLayout", "", path="/elsewhere")
                await refused(shown, "UnknownInterface", "Event", "", on="org.example.Menu")
                await refused(
                    shown, "UnknownProperty", "Get", "ss", ITEM, "X", path=ITEM_PATH, on=PROPERTIES
                )
                await refused(
                    shown, "PropertyReadOnly", "Set", "ssv", ITEM, "Title", nothing,
                    path=ITEM_PATH, on=PROPERTIES,
                )  # fmt: skip
                assert await shown.call("GetGroupProperties", "aias", [9999], []) == [[]]
                assert (await shown.menu()).labels() == ["Row a", "Row b"]

    run(main())


def test_others_can_introspect_it(bus: SessionBus) -> None:
    async def main() -> None:
        async with panel(bus.address) as shown:
            with showing(bus, rows("ab")):
                item = await shown.item()
                out = await asyncio.to_thread(
                    subprocess.check_output,
                    ["busctl", f"--address={bus.address}", "introspect", item, ITEM_PATH],
                    text=True,
                )
                assert ".ItemIsMenu" in out
                menu = (await shown.look())["Menu"]
                out = await asyncio.to_thread(
                    subprocess.check_output,
                    ["busctl", f"--address={bus.address}", "introspect", item, menu],
                    text=True,
                )
                assert ".GetLayout" in out

    run(main())


def test_without_a_session_bus_it_ends() -> None:
    icon = Icon("example", image(), "x", Menu(*rows("a")), statusnotifier_address="unix:path=/none")
    with pytest.raises(Exception, match="bus"):
        icon.run()
    icon.visible = False


def test_importing_it_needs_no_display() -> None:
    program = """
import sys
import usbipssh_tray.backend._statusnotifier, usbipssh_tray.render
wrong = {"PIL", "Xlib", "tkinter"} & set(sys.modules) or sys.modules.get("gi")
print(wrong or "nothing")
"""
    environment = {k: v for k, v in os.environ.items() if not k.endswith("DISPLAY")}
    out = subprocess.check_output([sys.executable, "-c", program], env=environment, text=True)
    assert out == "nothing\n"
