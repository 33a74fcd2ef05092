# SPDX-License-Identifier: GPL-3.0-or-later
"""What the dialogs have in common: a small window that can be used without a mouse."""

from __future__ import annotations

import subprocess
import sys
import tkinter
from collections.abc import Callable
from json import dumps
from tkinter import font, ttk

from usbipssh_tray import icons
from usbipssh_tray.dialogs.forms import mnemonic
from usbipssh_tray.status import Status
from usbipssh_tray.text import _

PAD = 12
TEXT_WIDTH = 64
"""Characters in a line of running text."""


class Window:
    """A dialog's window. What :meth:`run` returns is the answer, None for cancelled."""

    def __init__(self, title: str) -> None:
        self.root = tkinter.Tk(className="usbipssh-tray")
        self.root.withdraw()
        self.root.title(title)
        self.root.resizable(False, False)
        style = ttk.Style(self.root)
        style.theme_use("clam")
        self.root.configure(background=style.lookup("TFrame", "background"))
        self._icon = tkinter.PhotoImage(data=icons.png(Status.IDLE, 48), master=self.root)
        self.root.iconphoto(True, self._icon)
        self.frame = ttk.Frame(self.root, padding=PAD)
        self.frame.grid(sticky="nsew")
        self._answer: dict[str, object] | None = None
        self._copied = ""
        self.root.bind_class("TEntry", "<Control-a>", self._select_all)
        self.root.bind("<Escape>", lambda _event: self.close(None))
        self.root.protocol("WM_DELETE_WINDOW", lambda: self.close(None))

    def run(self, focus: tkinter.Misc) -> dict[str, object] | None:
        """Show it with the keyboard at ``focus`` and wait for :meth:`close`."""
        self.root.update_idletasks()
        width, height = self.root.winfo_reqwidth(), self.root.winfo_reqheight()
        left = max(0, (self.root.winfo_screenwidth() - width) // 2)
        top = max(0, (self.root.winfo_screenheight() - height) // 3)
        self.root.geometry(f"+{left}+{top}")
        self.root.deiconify()
        focus.focus_set()
        self.root.mainloop()
        return self._answer

    def close(self, answer: dict[str, object] | None) -> None:
        """End with this answer. What was copied outlives the window."""
        self._answer = answer
        if self._copied:
            keep_on_clipboard(self._copied)
        self.root.destroy()

    # What it is made of

    def text(self, parent: tkinter.Misc, words: str, *, bold: bool = False) -> ttk.Label:
        """Running text."""
        width = font.nametofont("TkDefaultFont").measure("n" * TEXT_WIDTH)
        label = ttk.Label(parent, text=words, wraplength=width, justify="left")
        if bold:
            label.configure(font=self._bold())
        return label

    def _bold(self) -> font.Font:
        bold = font.nametofont("TkDefaultFont").copy()
        bold.configure(weight="bold", size=bold.cget("size") + 1)
        self._kept_font = bold
        return bold

    def constant(self, parent: tkinter.Misc, value: str, width: int) -> ttk.Entry:
        """Text that can be selected but not changed, in letters of one width."""
        entry = ttk.Entry(parent, width=width, font="TkFixedFont")
        entry.insert(0, value)
        entry.configure(state="readonly")
        return entry

    def button(self, parent: tkinter.Misc, words: str, command: Callable[[], object]) -> ttk.Button:
        """A button; ``&`` stands before the letter that works with Alt. Enter presses it, too."""
        text, underline = mnemonic(words)
        button = ttk.Button(parent, text=text, underline=underline, command=command)
        button.bind("<Return>", lambda _event: self._press(button))
        button.bind("<KP_Enter>", lambda _event: self._press(button))
        self.letter(text, underline, button.invoke)
        return button

    @staticmethod
    def _select_all(event: tkinter.Event[tkinter.Misc]) -> str:
        if isinstance(event.widget, ttk.Entry):
            event.widget.selection_range(0, "end")
        return "break"

    @staticmethod
    def _press(button: ttk.Button) -> str:
        button.invoke()
        return "break"

    def letter(self, text: str, underline: int, command: Callable[[], object]) -> None:
        """Make Alt and the underlined letter do ``command``."""
        if underline >= 0:
            for letter in {text[underline].lower(), text[underline].upper()}:
                self.root.bind(f"<Alt-KeyPress-{letter}>", lambda _event: command())

    def label_for(self, parent: tkinter.Misc, words: str, widget: tkinter.Misc) -> ttk.Label:
        """A label whose letter leads to ``widget``."""
        text, underline = mnemonic(words)
        self.letter(text, underline, widget.focus_set)
        return ttk.Label(parent, text=text, underline=underline)

    def copy_button(self, parent: tkinter.Misc, words: str, value: str) -> ttk.Button:
        """A button that puts ``value`` on the clipboard, and says so."""
        done = mnemonic(_("Copied"))[0]

        def copy() -> None:
            self.root.clipboard_clear()
            self.root.clipboard_append(value)
            self._copied = value
            button.configure(text=done, underline=-1)

        button = self.button(parent, words, copy)
        return button


def keep_on_clipboard(text: str) -> None:
    """Leave a process behind that holds the clipboard: without a manager it goes with its owner."""
    child = subprocess.Popen(
        [sys.executable, "-m", "usbipssh_tray.dialogs", "copy"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert child.stdin is not None
    child.stdin.write(dumps({"text": text}).encode())
    child.stdin.close()
