# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks whether a machine's host key is the right one. Unless a person says so, it is not."""

from __future__ import annotations

from collections.abc import Mapping
from tkinter import ttk

from usbipssh_tray.dialogs.window import PAD, Window
from usbipssh_tray.text import _

# sshd's ed25519 key is what a client asks for first (ssh_config(5), HostKeyAlgorithms).
LOOK = "for k in /etc/ssh/ssh_host_*_key.pub; do ssh-keygen -l -f $k; done"


def trust(show: Mapping[str, object]) -> dict[str, object] | None:
    """Show the fingerprint; ``{"trust": True}`` or None."""
    name = str(show.get("label") or show.get("name", ""))
    window = Window(_("Is this {name}?").format(name=name))
    frame = window.frame

    title = _("Is this really {name}?").format(name=name)
    window.text(frame, title, bold=True).grid(sticky="w")
    words = _("A machine that calls itself {name} presented a host key that is not known here:")
    window.text(frame, words.format(name=name)).grid(sticky="w", pady=(PAD // 2, 0))
    key = window.constant(frame, str(show.get("fingerprint", "")), 52)
    key.grid(sticky="ew", pady=PAD // 2)
    words = _("Trust it only if one of the lines that this prints on {name} itself is the same:")
    window.text(frame, words.format(name=name)).grid(sticky="w")
    window.constant(frame, LOOK, 52).grid(sticky="ew", pady=PAD // 2)

    row = ttk.Frame(frame)
    row.grid(sticky="e", pady=(PAD // 2, 0))
    yes = window.button(row, _("&Trust it"), lambda: window.close({"trust": True}))
    no = window.button(row, _("&No"), lambda: window.close(None))
    no.configure(default="active")
    yes.grid(row=0, column=0)
    no.grid(row=0, column=1, padx=(PAD // 2, 0))
    return window.run(no)
