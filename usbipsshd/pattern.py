# SPDX-License-Identifier: GPL-3.0-or-later
"""Which devices a person means: a bus id, a vid:pid or a regular expression.

The rules are those of the usbip-ssh script. A regular expression is compiled
here, where its length bounds the work, and tried elsewhere (:mod:`usbipsshd.matcher`):
trying can take for ever.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from usbipsshd.device import Device, is_busid
from usbipsshd.errors import Code, UsbipError

MAX_PATTERN = 256

_LITERAL = re.compile(r"[A-Za-z0-9_:/,@#%=<>~'\" -]+", re.ASCII)
_VIDPID = re.compile(r"0*([0-9a-fA-F]{1,4}):0*([0-9a-fA-F]{1,4})", re.ASCII)
_VIDPID_WORD = re.compile(r"(?<![^ ])0*([0-9a-fA-F]{1,4}):0*([0-9a-fA-F]{1,4})(?![^ ])", re.ASCII)

_SPACES = re.compile(" +")
_CLASS_START = re.compile(r"\[\^?\]?")


def subject(device: Device) -> str:
    """The text that a regular expression is tried on."""
    ids = f"{device.vendor_id:04x}:{device.product_id:04x}"
    triples = ["%02x%02x%02x" % i.triple for i in device.interfaces]
    parts = [ids, device.serial, device.vendor, device.product, *triples]
    return " ".join(p for p in parts if p)


def _loosen(text: str) -> str:
    """Make every vid:pid indifferent to leading zeros and case, every run of spaces to length."""
    text = _VIDPID_WORD.sub(r"(?i:\\b0*\1:0*\2\\b)", text)
    out: list[str] = []
    in_class = False
    i = 0
    while i < len(text):
        char = text[i]
        if char == "\\":
            out.append(text[i : i + 2])
            i += 2
            continue
        if char == "[" and not in_class:
            in_class = True
            # A ] that comes first is one of the class.
            char = _CLASS_START.match(text, i)[0]  # type: ignore[index]
            i += len(char) - 1
        elif char == "]":
            in_class = False
        elif char == " " and not in_class:
            while text[i + 1 : i + 2] == " ":
                i += 1
            # What repeats the space repeats the run.
            char = "(?: +)" if text[i + 1 : i + 2] in ("*", "+", "?", "{") else " +"
        out.append(char)
        i += 1
    return "".join(out)


@dataclass(frozen=True, slots=True)
class Pattern:
    """A parsed pattern. Make it with :meth:`parse`."""

    negated: bool = False
    busid: str = ""
    ids: tuple[int, int] | None = None
    literal: str = ""
    expression: str = ""
    """A regular expression of Python's, to be searched for in :func:`subject`."""

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Parse; raise :exc:`UsbipError` (InvalidArgs) for what is too long or no pattern."""
        if len(text) > MAX_PATTERN or not text.isprintable():
            raise UsbipError(
                Code.INVALID_ARGS,
                f"A pattern has at most {MAX_PATTERN} characters and no control characters.",
            )
        negated = text[:1] in ("!", "-")
        rest = text[1:] if negated else text
        if not rest.strip():
            if negated:
                raise UsbipError(
                    Code.INVALID_ARGS, "Nothing follows the sign that negates the pattern."
                )
            return cls()
        if is_busid(rest):
            return cls(negated, busid=rest)
        if ids := _VIDPID.fullmatch(rest):
            return cls(negated, ids=(int(ids[1], 16), int(ids[2], 16)))
        words = _SPACES.sub(" ", rest)
        if _LITERAL.fullmatch(words) and not _VIDPID_WORD.search(words):
            return cls(negated, literal=words)
        expression = _loosen(rest)
        try:
            re.compile(expression)
        except (re.error, RecursionError, OverflowError, MemoryError):
            raise UsbipError(
                Code.INVALID_ARGS,
                "The pattern is neither a bus id, a vid:pid nor a regular expression.",
            ) from None
        return cls(negated, expression=expression)

    @property
    def any(self) -> bool:
        """Whether it matches every device."""
        return self == Pattern()

    def select(self, devices: Sequence[Device]) -> list[Device]:
        """The devices that match, in their order, for a pattern that is no expression."""
        assert not self.expression
        return [d for d in devices if self._matches(d) is not self.negated]

    def _matches(self, device: Device) -> bool:
        if self.busid:
            return device.busid == self.busid
        if self.ids is not None:
            return (device.vendor_id, device.product_id) == self.ids
        return self.literal in subject(device)
