# SPDX-License-Identifier: GPL-3.0-or-later
"""The dialogs under real keys. Pictures of them are left in build/desktop."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from desktop.screen import CHECKOUT, SECONDS, SIZE, Desktop, desktop, until

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMadeUpKeyMadeUpKeyMadeUpKeyMadeUpKeyMade usbipsshd@desk"
SHOW = {"public_key": KEY, "names": ["pi"]}
FINGERPRINT = "SHA256:uNiVztksCsDhcc0u9e8BrMXhF+jeeJmQSF0EkEKbmUg"
ADD, TRUST = "Add a machine", "Is this The Pi?"
WRITTEN = 1000
"""Dark pixels of a dialog that has been drawn, at least."""
RED = (0xA4, 0x00, 0x00)


@pytest.fixture(scope="module")
def shared() -> Iterator[Desktop]:
    with desktop() as made:
        yield made


@pytest.fixture
def screen(shared: Desktop) -> Iterator[Desktop]:
    """The desktop, on which no dialog of a test that failed is left to the next one."""
    yield shared
    shared.end_guests()


class Dialog:
    """A dialog on the screen."""

    def __init__(
        self,
        screen: Desktop,
        name: str,
        title: str,
        show: dict[str, Any],
        environment: dict[str, str] | None = None,
    ) -> None:
        self.screen = screen
        self._child = subprocess.Popen(
            [sys.executable, "-m", "usbipssh_tray.dialogs", name],
            env={**screen.environment, **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
        )
        screen.guests.append(self._child)
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(show).encode())
        self._child.stdin.close()
        until(lambda: screen.has_keyboard(title) or self._child.poll() is not None, title)
        assert self._child.poll() is None
        until(lambda: screen.written() > WRITTEN, f"the text of {title}")

    def answer(self) -> Any:
        """What it answered when it closed; None if it was cancelled."""
        status = self._child.wait(SECONDS)
        assert self._child.stdout is not None
        with self._child.stdout as output:
            said = output.read()
        if status == 1:
            assert said == b""
            return None
        assert status == 0
        return json.loads(said)

    def warns(self) -> bool:
        """Whether something in red is to be read."""
        data = self.screen.picture().tobytes()
        return any(data[i : i + 3] == bytes(RED) for i in range(0, len(data), 3))


def add(screen: Desktop, **more: object) -> Dialog:
    return Dialog(screen, "add-remote", ADD, {**SHOW, **more})


def trust(screen: Desktop) -> Dialog:
    show = {"name": "pi", "label": "The Pi", "fingerprint": FINGERPRINT}
    return Dialog(screen, "trust", TRUST, show)


def holds(screen: Desktop, text: str) -> bool:
    """Whether this is on the clipboard."""
    paste = "import tkinter; r = tkinter.Tk(); r.withdraw(); print(r.clipboard_get())"
    done = subprocess.run(
        [sys.executable, "-c", paste],
        env=screen.environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    return done.stdout.strip() == text


def test_a_machine_is_added_with_the_keyboard_alone(screen: Desktop) -> None:
    dialog = add(screen)
    screen.keep("dialog-add")
    screen.type("lab@bench3.example.org:2222")
    screen.keys("Tab", "Tab", "space")
    screen.keep("dialog-add-filled")
    screen.keys("Return")
    assert dialog.answer() == {
        "name": "bench3",
        "address": "lab@bench3.example.org:2222",
        "sudo": True,
        "label": "",
    }


def test_letters_with_alt_lead_to_the_fields(screen: Desktop) -> None:
    dialog = add(screen, address="bench3", name="old", label="A bench")
    screen.keys("alt+n", "ctrl+a")
    screen.type("new")
    screen.keys("alt+a", "End")
    screen.type(":22")
    screen.keys("alt+s", "alt+d")
    expected = {"name": "new", "address": "bench3:22", "sudo": True, "label": "A bench"}
    assert dialog.answer() == expected


def test_a_mistake_is_told_in_the_dialog_and_can_be_mended(screen: Desktop) -> None:
    dialog = add(screen)
    assert not dialog.warns()
    screen.keys("Return")
    until(dialog.warns, "a message in the dialog")
    screen.keep("dialog-add-mistake")
    screen.type("bench3")
    screen.keys("Return")
    assert dialog.answer()["name"] == "bench3"


def test_what_the_daemon_said_is_shown_again(screen: Desktop) -> None:
    dialog = add(screen, error="A remote called b is listed already; remove it first.", name="b")
    until(dialog.warns, "the error")
    screen.keys("Escape")
    assert dialog.answer() is None


def test_what_was_copied_outlives_the_dialog(screen: Desktop) -> None:
    for letter, expected in (
        ("alt+l", f"mkdir -p ~/.ssh && echo '{KEY}' >> ~/.ssh/authorized_keys"),
        ("alt+k", KEY),
    ):
        dialog = add(screen)
        screen.keys(letter, "Escape")
        assert dialog.answer() is None
        until(partial(holds, screen, expected), "the clipboard")


@pytest.mark.parametrize("key", ["Return", "space", "Escape", "alt+n"])
def test_a_key_is_not_trusted_unless_one_says_so(screen: Desktop, key: str) -> None:
    dialog = trust(screen)
    screen.keys(key)
    assert dialog.answer() is None


@pytest.mark.parametrize("keys", [["alt+t"], ["Shift+Tab", "Return"]])
def test_a_key_is_trusted_when_one_does(screen: Desktop, keys: list[str]) -> None:
    dialog = trust(screen)
    screen.keep("dialog-trust")
    screen.keys(*keys)
    assert dialog.answer() == {"trust": True}


TITLES = {
    "de": ("Rechner hinzufügen", "Ist das The Pi?", "alt+v"),
    "fr": ("Ajouter une machine", "Est-ce The Pi\xa0?", "alt+f"),
}


@pytest.mark.parametrize("language", TITLES)
def test_the_dialogs_in_other_languages_fit_and_have_letters_of_their_own(
    screen: Desktop, tmp_path: Path, language: str
) -> None:
    add_title, trust_title, yes = TITLES[language]
    subprocess.run(["tools/translations", "compile", tmp_path], cwd=CHECKOUT, check=True)
    chosen = {"TEXTDOMAINDIR": str(tmp_path), "LANGUAGE": language}
    dialog = Dialog(screen, "add-remote", add_title, SHOW, chosen)
    screen.keys("Return")
    until(dialog.warns, "a message in the dialog")
    screen.keep(f"dialog-add-{language}")
    width, height = screen.size_of_window()
    assert width <= SIZE[0]
    assert height <= SIZE[1]
    screen.keys("Escape")
    assert dialog.answer() is None
    show = {"name": "pi", "label": "The Pi", "fingerprint": FINGERPRINT}
    dialog = Dialog(screen, "trust", trust_title, show, chosen)
    screen.keep(f"dialog-trust-{language}")
    screen.keys(yes)
    assert dialog.answer() == {"trust": True}
