# SPDX-License-Identifier: GPL-3.0-or-later
"""A desktop nobody sees: X server, window manager, Xfce's panel, session bus.

Everything has folders of its own; nothing of the person's who runs the tests is read or written.
"""

from __future__ import annotations

import configparser
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from integration.sessionbus import session_bus
from Xlib import X
from Xlib import display as xlib
from Xlib.error import XError

if TYPE_CHECKING:
    from PIL.Image import Image

CHECKOUT = Path(__file__).resolve().parents[2]
ARTEFACTS = CHECKOUT / "build/desktop"
SECONDS = 60.0
"""How long anything may take on a busy machine."""
SIZE = (800, 600)
PANEL_HEIGHT = 30
BACKGROUND = 0x3B6EA5

_PANEL = f"""<?xml version="1.0" encoding="UTF-8"?>
<channel name="xfce4-panel" version="1.0">
  <property name="configver" type="int" value="2"/>
  <property name="panels" type="array">
    <value type="int" value="1"/>
    <property name="dark-mode" type="bool" value="false"/>
    <property name="panel-1" type="empty">
      <property name="position" type="string" value="p=6;x=0;y=0"/>
      <property name="length" type="uint" value="100"/>
      <property name="position-locked" type="bool" value="true"/>
      <property name="size" type="uint" value="{PANEL_HEIGHT}"/>
      <property name="icon-size" type="uint" value="22"/>
      <property name="plugin-ids" type="array">
        <value type="int" value="1"/>
        <value type="int" value="2"/>
      </property>
    </property>
  </property>
  <property name="plugins" type="empty">
    <property name="plugin-1" type="string" value="separator">
      <property name="expand" type="bool" value="true"/>
      <property name="style" type="uint" value="0"/>
    </property>
    <property name="plugin-2" type="string" value="systray"/>
  </property>
</channel>
"""

T = TypeVar("T")
Box = tuple[int, int, int, int]
"""Left, top, right, bottom."""


def until(condition: Callable[[], T | None], what: str, seconds: float = SECONDS) -> T:
    """The first true answer of ``condition``, which is asked again and again."""
    end = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds:.0f} s: {what}")
        # A screen and other people's programs tell nobody when they have changed.
        time.sleep(0.05)


class Desktop:
    """A running desktop, without a panel at first."""

    def __init__(self, folder: Path, display: str, bus: str) -> None:
        self.folder = folder
        self.display = display
        self.bus = bus
        self.guests: list[subprocess.Popen[bytes]] = []
        """Programs that end with a test."""
        self._panel: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """What a program in this session sees."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "XDG_CONFIG_HOME": str(self.folder / "config"),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "XDG_DATA_HOME": str(self.folder / "data"),
            "XDG_RUNTIME_DIR": str(self.folder / "run"),
            "XDG_CURRENT_DESKTOP": "XFCE",
            "DISPLAY": self.display,
            "DBUS_SESSION_BUS_ADDRESS": self.bus,
            "LC_ALL": "C.UTF-8",
            "GSETTINGS_BACKEND": "memory",
            # Nothing that looks for a screen reader.
            "NO_AT_BRIDGE": "1",
            "PYTHONPATH": f"{CHECKOUT}:{CHECKOUT / 'tests'}",
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    def spawn(
        self, argv: list[str | Path], log: str, environment: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a program in this session; what it says goes to a file of the artefacts."""
        with (ARTEFACTS / f"{log}.log").open("ab") as file:
            return subprocess.Popen(
                argv,
                env={**self.environment, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                cwd="/",
                start_new_session=True,
            )

    def end_guests(self) -> None:
        """End those programs that have not ended by themselves."""
        while self.guests:
            guest = self.guests.pop()
            guest.kill()
            guest.wait(SECONDS)
            if guest.stdout is not None:
                guest.stdout.close()

    def start_panel(self) -> None:
        """Start Xfce's panel."""
        self._panel = self.spawn(["xfce4-panel", "--disable-wm-check"], "panel")

    def kill_panel(self) -> None:
        """End the panel as a crash does, its plugins' processes too."""
        if self._panel is not None:
            os.killpg(self._panel.pid, signal.SIGKILL)
            self._panel.wait(SECONDS)
            self._panel = None

    # What a person sees and does

    def picture(self) -> Image:
        """The screen as it is."""
        from PIL import ImageGrab

        return ImageGrab.grab(xdisplay=self.display).convert("RGB")

    def keep(self, name: str, box: Box | None = None) -> Path:
        """Keep a picture of the screen, or of a part, among the artefacts."""
        path = ARTEFACTS / f"{name}.png"
        picture = self.picture()
        (picture.crop(box) if box else picture).save(path)
        return path

    def written(self, box: Box | None = None) -> int:
        """How many pixels are as dark as letters are."""
        picture = self.picture().convert("L")
        return sum((picture.crop(box) if box else picture).histogram()[:60])

    def find(self, colour: str, at_least: int = 30) -> Box | None:
        """Where in the panel this colour is, if it is there: left, top, right, bottom."""
        wanted = tuple(bytes.fromhex(colour.lstrip("#")))
        strip = self.picture().crop((0, 0, SIZE[0], PANEL_HEIGHT))
        data = strip.tobytes()
        pixels = [
            divmod(i, SIZE[0])
            for i in range(SIZE[0] * PANEL_HEIGHT)
            if data[3 * i] == wanted[0] and tuple(data[3 * i : 3 * i + 3]) == wanted
        ]
        if len(pixels) < at_least:
            return None
        rows, columns = [y for y, _ in pixels], [x for _, x in pixels]
        return min(columns), min(rows), max(columns) + 1, max(rows) + 1

    def click(self, x: int, y: int, button: int = 1) -> None:
        """Click with the pointer."""
        self._xdotool("mousemove", str(x), str(y), "click", str(button))

    def keys(self, *keys: str) -> None:
        """Press and release keys, as xdotool names them."""
        self._xdotool("key", "--clearmodifiers", *keys)

    def type(self, text: str) -> None:
        """Type text."""
        self._xdotool("type", "--delay", "5", text)

    def has_keyboard(self, title: str) -> bool:
        """Whether keys go to the window of this title."""
        return self._xdotool("getwindowfocus", "getwindowname", check=False).strip() == title

    def size_of_window(self) -> tuple[int, int]:
        """Width and height of the window that has the keyboard."""
        told = self._xdotool("getwindowfocus", "getwindowgeometry", "--shell")
        known = dict(line.split("=", 1) for line in told.split())
        return int(known["WIDTH"]), int(known["HEIGHT"])

    def popups(self) -> list[Box]:
        """Where menus are open, the first one first."""
        display = xlib.Display(self.display)
        try:
            found = []
            for window in display.screen().root.query_tree().children:
                with suppress(XError):
                    how = window.get_attributes()
                    place = window.get_geometry()
                    if how.override_redirect and how.map_state == X.IsViewable and place.width > 20:
                        right, bottom = place.x + place.width, place.y + place.height
                        found.append((place.x, place.y, right, bottom))
            return found
        finally:
            display.close()

    def rows(self, box: Box) -> list[int]:
        """Where the rows of the menu in ``box`` are: the middle of each, from top to bottom.

        A row is a band with something in it, and nothing above and below; separators are thin.
        """
        left, top, right, bottom = box
        grey = self.picture().convert("L").crop((left + 4, top, right - 4, bottom))
        width, height = grey.size
        data = grey.tobytes()
        rows, begun = [], -1
        for y in range(height):
            line = data[y * width : (y + 1) * width]
            written = max(line) - min(line) > 40
            if written and begun < 0:
                begun = y
            elif not written and begun >= 0:
                if y - begun > 4:
                    rows.append(top + (begun + y) // 2)
                begun = -1
        return rows

    def _xdotool(self, *arguments: str, check: bool = True) -> str:
        return subprocess.run(
            ["xdotool", *arguments],
            env=self.environment,
            check=check,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        ).stdout


@contextmanager
def _running(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(SECONDS)


def _x_server(stack: ExitStack) -> str:
    """Start an X server on a display that is free; its name."""
    read, write = os.pipe()
    with (ARTEFACTS / "x.log").open("ab") as log:
        server = subprocess.Popen(
            ["Xvfb", "-displayfd", str(write), "-screen", "0", f"{SIZE[0]}x{SIZE[1]}x24",
             "-nolisten", "tcp", "-noreset"],
            pass_fds=[write], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    os.close(write)
    stack.enter_context(_running(server))
    with os.fdopen(read, "rb") as numbers:
        ready, _, _ = select.select([numbers], [], [], SECONDS)
        number = numbers.readline().decode().strip() if ready else ""
    if not number:
        raise RuntimeError("no X server")
    return f":{number}"


def _paint(name: str) -> None:
    """Give the screen a background that is neither light nor dark."""
    display = xlib.Display(name)
    root = display.screen().root
    root.change_attributes(background_pixel=BACKGROUND)
    root.clear_area()
    display.close()


def _is_managed(name: str) -> bool:
    """Whether there is a window manager (Extended Window Manager Hints)."""
    display = xlib.Display(name)
    try:
        atom = display.intern_atom("_NET_SUPPORTING_WM_CHECK")
        return display.screen().root.get_full_property(atom, X.AnyPropertyType) is not None
    finally:
        display.close()


def _service(name: str) -> list[str]:
    """What starts a D-Bus service that is installed on this machine."""
    file = configparser.ConfigParser(interpolation=None)
    file.read(f"/usr/share/dbus-1/services/{name}.service")
    return file["D-BUS Service"]["Exec"].split()


@contextmanager
def desktop() -> Iterator[Desktop]:
    """A desktop: X server, window manager, session bus, Xfce's settings."""
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="usbipssh-desk-")))
        channels = folder / "config/xfce4/xfconf/xfce-perchannel-xml"
        channels.mkdir(parents=True)
        (channels / "xfce4-panel.xml").write_text(_PANEL)
        (folder / "run").mkdir(mode=0o700)
        bus = stack.enter_context(session_bus())
        made = Desktop(folder, _x_server(stack), bus.address)
        _paint(made.display)
        stack.enter_context(_running(made.spawn(["openbox"], "openbox")))
        # A window that is there before its manager does not get the keyboard.
        until(lambda: _is_managed(made.display), "the window manager")
        stack.enter_context(_running(made.spawn([*_service("org.xfce.Xfconf")], "xfconf")))
        stack.callback(made.kill_panel)
        yield made
