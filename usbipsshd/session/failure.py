# SPDX-License-Identifier: GPL-3.0-or-later
"""The one exception that the session's parts raise for what the root process should hear of."""

from __future__ import annotations

from usbipsshd.errors import Code
from usbipsshd.messages import MAX_DETAIL
from usbipsshd.text import clean


class Failure(Exception):
    """A code of the contract and a short, already cleaned detail."""

    def __init__(self, code: Code, detail: str = "") -> None:
        detail = clean(detail, MAX_DETAIL)
        super().__init__(f"{code.value}: {detail}" if detail else code.value)
        self.code = code
        self.detail = detail
