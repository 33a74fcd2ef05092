#!/usr/bin/python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""tools/interface_manual.py XML: the manual page org.usbipssh1(5), on stdout.

Everything in it is in the XML: the comment before the root element, and the one that each member
begins with.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from xml.dom import minidom

KINDS = (("method", "Methods"), ("signal", "Signals"), ("property", "Properties"))


def escaped(text: str) -> str:
    """Text that means itself (groff_char(7))."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace('"', "\\(dq").replace("'", "\\(aq")
    return "\\&" + text if text.startswith(".") else text


def paragraphs(comment: str) -> list[str]:
    """The comment's paragraphs, each a line for groff to fill."""
    blocks = textwrap.dedent(comment).strip().split("\n\n")
    return [escaped(" ".join(block.split())) for block in blocks]


def comment_of(element: minidom.Element) -> str:
    """The comment that an element begins with."""
    for child in element.childNodes:
        if isinstance(child, minidom.Comment):
            return child.data
    raise ValueError(f"{element.getAttribute('name')} has no comment")


def children(element: minidom.Element, tag: str) -> list[minidom.Element]:
    """Its own elements of that name."""
    found = (c for c in element.childNodes if isinstance(c, minidom.Element))
    return [child for child in found if child.tagName == tag]


def arguments(member: minidom.Element, direction: str) -> str:
    """Types and names."""
    return ", ".join(
        f"{one.getAttribute('type')} {one.getAttribute('name')}".strip()
        for one in children(member, "arg")
        if (one.getAttribute("direction") or "out") == direction
    )


def heading(member: minidom.Element) -> str:
    """A member's name, in bold, and what it takes and gives."""
    name = escaped(member.getAttribute("name"))
    if member.tagName == "property":
        return f'.BR {name} " {escaped(member.getAttribute("type"))}"'
    if member.tagName == "signal":
        return f'.BR {name} "({escaped(arguments(member, "out"))})"'
    gives = arguments(member, "out")
    after = f"({arguments(member, 'in')})" + (f" -> {gives}" if gives else "")
    return f'.BR {name} "{escaped(after)}"'


def page(document: minidom.Document) -> Iterator[str]:
    """The page's lines."""
    # The first comment is the licence's, the second the introduction.
    intro = [c.data for c in document.childNodes if isinstance(c, minidom.Comment)][1]
    yield '.\\" SPDX-License-Identifier: GPL-3.0-or-later'
    yield '.TH ORG.USBIPSSH1 5 "" usbipsshd "File formats and interfaces"'
    # Names are long; a hyphen in one would be wrong.
    yield ".nh\n.ad l"
    yield ".SH NAME"
    yield "org.usbipssh1 \\- the D\\-Bus interface of usbipsshd"
    yield ".SH DESCRIPTION"
    yield "\n.PP\n".join(paragraphs(intro))
    for interface in document.getElementsByTagName("interface"):
        yield f'.SH "INTERFACE {escaped(interface.getAttribute("name"))}"'
        yield "\n.PP\n".join(paragraphs(comment_of(interface)))
        for tag, title in KINDS:
            members = children(interface, tag)
            if members:
                yield f".SS {title}"
            for member in members:
                yield ".TP"
                yield heading(member)
                yield "\n.IP\n".join(paragraphs(comment_of(member)))
    yield ".SH FILES"
    yield ".TP"
    yield ".I /usr/share/dbus\\-1/interfaces/org.usbipssh1.xml"
    yield "The same for programs; this page is made from it."
    yield ".SH SEE ALSO"
    yield ".BR usbipsshd (8),\n.BR usbipsshctl (1),\n.BR usbipsshd.conf (5),\n.BR busctl (1)"


def main() -> None:
    """Write the page."""
    (path,) = sys.argv[1:]
    sys.stdout.write("\n".join(page(minidom.parse(path))) + "\n")


if __name__ == "__main__":
    main()
