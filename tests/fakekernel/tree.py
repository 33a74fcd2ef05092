# SPDX-License-Identifier: GPL-3.0-or-later
"""A tree of folders, links and attribute files, as sysfs has them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

Show: TypeAlias = Callable[[], bytes]
Store: TypeAlias = "Callable[[bytes, int], None]"
"""Takes what was written and the process id of the writer; raises OSError."""


def text(value: str) -> bytes:
    """Bytes of an attribute; lone surrogates stand for bytes that are no UTF-8."""
    return value.encode("utf-8", "surrogateescape")


@dataclass
class File:
    """An attribute: what reading shows, and what writing does."""

    show: Show | None = None
    store: Store | None = None
    mode: int = 0o444
    users: int = 0
    """How many have it open."""


@dataclass
class Link:
    """A symbolic link."""

    target: str


@dataclass
class Folder:
    """A folder."""

    children: dict[str, Node] = field(default_factory=dict)

    def folder(self, path: str) -> Folder:
        """The folder at ``path`` below this one, made if need be."""
        here = self
        for name in path.strip("/").split("/"):
            child = here.children.setdefault(name, Folder())
            if not isinstance(child, Folder):
                raise NotADirectoryError(errno.ENOTDIR, path)
            here = child
        return here

    def attribute(self, name: str, value: str | bytes | Show, mode: int = 0o444) -> None:
        """Add a file that can be read; a text gets the newline that sysfs gives."""
        if isinstance(value, str):
            shown = text(value) + b"\n"
            self.children[name] = File(lambda: shown, mode=mode)
        elif isinstance(value, bytes):
            raw = value
            self.children[name] = File(lambda: raw, mode=mode)
        else:
            self.children[name] = File(value, mode=mode)

    def control(self, name: str, store: Store, show: Show | None = None) -> None:
        """Add a file that can be written."""
        self.children[name] = File(show, store, 0o644 if show else 0o200)

    def link(self, name: str, target: str) -> None:
        """Add a link."""
        self.children[name] = Link(target)

    def remove(self, name: str) -> None:
        """Remove a child that may be gone already."""
        self.children.pop(name, None)

    def find(self, path: str) -> Node:
        """The node at an absolute path without following links; FileNotFoundError."""
        here: Node = self
        for name in path.strip("/").split("/"):
            if not name:
                continue
            if not isinstance(here, Folder) or name not in here.children:
                raise FileNotFoundError(errno.ENOENT, path)
            here = here.children[name]
        return here


Node: TypeAlias = "Folder | File | Link"


def relative(target: str, folder: str) -> str:
    """A link's text: ``target`` as seen from ``folder``, both absolute."""
    return os.path.relpath(target, folder)
