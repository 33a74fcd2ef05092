# SPDX-License-Identifier: GPL-3.0-or-later
"""pystray, imported so that it needs neither a display nor a toolkit."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any


def pystray() -> Any:
    """The library, without a backend of its own; untyped, as it is."""
    before = os.environ.get("PYSTRAY_BACKEND")
    # Otherwise the import looks for a backend, and connects to a display.
    os.environ["PYSTRAY_BACKEND"] = "dummy"
    try:
        return importlib.import_module("pystray")
    finally:
        if before is None:
            del os.environ["PYSTRAY_BACKEND"]
        else:
            os.environ["PYSTRAY_BACKEND"] = before


def backend(name: str) -> Any:
    """A backend of the library's own; raise whatever keeps it from being imported."""
    pystray()
    modules: dict[str, object] = dict(sys.modules)
    if "gi" in modules and modules["gi"] is None:
        # usbipsshd.bus.wire keeps dbus-next from importing it.
        del sys.modules["gi"]
    return importlib.import_module(f"pystray._{name}")
