# SPDX-License-Identifier: GPL-3.0-or-later
"""What people read, in their language: gettext, with the English text as the message id.

Placeholders have names and are filled with ``str.format``: ``_("{name} is attached")``.
"""

from __future__ import annotations

import gettext
import os
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

DOMAIN = "usbipssh-tray"


def folder() -> Path:
    """Where the compiled translations are: ``$TEXTDOMAINDIR``, as for gettext(1), else
    ``share/locale`` next to the Python that runs this.
    """
    chosen = os.environ.get("TEXTDOMAINDIR", "")
    return Path(chosen) if chosen else Path(sys.prefix, "share/locale")


def translations(where: Path, languages: Sequence[str] | None = None) -> gettext.NullTranslations:
    """The translations below ``where`` into the first of ``languages`` that is there.

    Without ``languages`` the environment says which (LANGUAGE, LC_ALL, LC_MESSAGES, LANG).
    """
    return gettext.translation(DOMAIN, where, languages, fallback=True)


@cache
def _chosen() -> gettext.NullTranslations:
    return translations(folder())


def _(message: str) -> str:
    """``message`` in the language of the person."""
    return _chosen().gettext(message)


def ngettext(one: str, many: str, n: int) -> str:
    """The form for ``n``."""
    return _chosen().ngettext(one, many, n)
