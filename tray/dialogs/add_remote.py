# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks for a machine to add, and shows what lets the daemon log in there."""

from __future__ import annotations

import tkinter
from collections.abc import Mapping
from tkinter import ttk

from usbipssh_tray.dialogs.forms import (
    ADDRESS,
    NAME,
    AddRemote,
    mnemonic,
    paste_line,
    suggested_name,
)
from usbipssh_tray.dialogs.window import PAD, Window
from usbipssh_tray.text import _

_ERROR = "#a40000"
_KEY_WIDTH = 46


def add_remote(show: Mapping[str, object]) -> dict[str, object] | None:
    """Show the form; the answer is :meth:`AddRemote.answer` or None."""
    return _Dialog(show).run()


class _Dialog:
    def __init__(self, show: Mapping[str, object]) -> None:
        names = show.get("names")
        self._taken = frozenset(str(name) for name in names) if isinstance(names, list) else ()
        first = AddRemote.shown(show)
        self._label = first.label
        self._window = window = Window(_("Add a machine"))
        frame = window.frame
        frame.columnconfigure(1, weight=1)
        self._address = tkinter.StringVar(window.root, first.address)
        self._name = tkinter.StringVar(window.root, first.name)
        self._sudo = tkinter.BooleanVar(window.root, first.sudo)
        self._message = tkinter.StringVar(window.root, str(show.get("error", "")))
        self._suggested = first.name if first.name == self._suggest() else ""

        self._title(_("The machine that has the devices"))
        self._address_entry = self._field(_("&Address"), self._address)
        self._note(_("host, user@host or user@host:port; the user is root unless given"))
        self._name_entry = self._field(_("&Name"), self._name)
        text, underline = mnemonic(_("The user becomes root with &sudo, without a password"))
        sudo = ttk.Checkbutton(frame, text=text, underline=underline, variable=self._sudo)
        sudo.grid(column=1, sticky="w", pady=(PAD // 2, 0))
        window.letter(text, underline, sudo.invoke)
        self._key(str(show.get("public_key", "")))
        self._message_label = ttk.Label(
            frame, textvariable=self._message, foreground=_ERROR, wraplength=520, justify="left"
        )
        self._message_label.grid(columnspan=2, sticky="w", pady=(PAD, 0))
        row = ttk.Frame(frame)
        row.grid(columnspan=2, sticky="e", pady=(PAD // 2, 0))
        window.button(row, _("&Cancel"), lambda: window.close(None)).grid(row=0, column=0)
        add = window.button(row, _("A&dd"), self._add)
        add.configure(default="active")
        add.grid(row=0, column=1, padx=(PAD // 2, 0))
        for key in ("<Return>", "<KP_Enter>"):
            for entry in (self._address_entry, self._name_entry, sudo):
                entry.bind(key, lambda _event: self._add())
        self._address.trace_add("write", lambda *_args: self._suggest_name())
        for variable in (self._address, self._sudo, self._name):
            variable.trace_add("write", lambda *_args: self._message.set(self._form().hint()))

    def run(self) -> dict[str, object] | None:
        return self._window.run(self._address_entry)

    def _title(self, words: str) -> None:
        label = self._window.text(self._window.frame, words, bold=True)
        label.grid(columnspan=2, sticky="w", pady=(0, PAD // 2))

    def _note(self, words: str) -> None:
        label = ttk.Label(self._window.frame, text=words, foreground="#555753")
        label.grid(column=1, sticky="w", pady=(0, PAD // 2))

    def _field(self, words: str, variable: tkinter.StringVar) -> ttk.Entry:
        frame = self._window.frame
        entry = ttk.Entry(frame, textvariable=variable, width=40)
        row = frame.grid_size()[1]
        label = self._window.label_for(frame, words, entry)
        label.grid(row=row, column=0, sticky="w", padx=(0, PAD))
        entry.grid(row=row, column=1, sticky="ew")
        return entry

    def _key(self, public_key: str) -> None:
        """What lets the daemon log in, and how to get it there."""
        window, frame = self._window, self._window.frame
        ttk.Separator(frame).grid(columnspan=2, sticky="ew", pady=PAD)
        self._title(_("Let this computer in"))
        if not public_key:
            words = _("The daemon has no key yet; it makes one when it starts.")
            window.text(frame, words).grid(columnspan=2, sticky="w")
            return
        words = _("Paste this line into a terminal on that machine, as the user above:")
        window.text(frame, words).grid(columnspan=2, sticky="w")
        line = ttk.Frame(frame)
        line.grid(columnspan=2, sticky="ew", pady=(PAD // 2, 0))
        line.columnconfigure(0, weight=1)
        paste = paste_line(public_key)
        window.constant(line, paste, _KEY_WIDTH).grid(row=0, column=0, sticky="ew")
        copy = window.copy_button(line, _("Copy &line"), paste)
        copy.grid(row=0, column=1, sticky="ew", padx=(PAD // 2, 0))
        window.constant(line, public_key, _KEY_WIDTH).grid(
            row=1, column=0, sticky="ew", pady=(PAD // 2, 0)
        )
        copy = window.copy_button(line, _("Copy &key"), public_key)
        copy.grid(row=1, column=1, sticky="ew", padx=(PAD // 2, 0), pady=(PAD // 2, 0))

    def _form(self) -> AddRemote:
        return AddRemote(self._name.get(), self._address.get(), self._sudo.get(), self._label)

    def _suggest(self) -> str:
        return suggested_name(self._address.get(), self._taken)

    def _suggest_name(self) -> None:
        """Let the name follow the address until somebody has typed another one."""
        if self._name.get() == self._suggested:
            self._suggested = self._suggest()
            self._name.set(self._suggested)

    def _add(self) -> str:
        form = self._form()
        problem = form.problem(self._taken)
        if problem is None:
            self._window.close(form.answer())
            return "break"
        self._message.set(problem.sentence)
        entry = {NAME: self._name_entry, ADDRESS: self._address_entry}[problem.field]
        entry.focus_set()
        entry.selection_range(0, "end")
        return "break"
