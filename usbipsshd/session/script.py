# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent as one text: agent.sh with its parts, which are kept in files of their own."""

from __future__ import annotations

import re
from importlib import resources

_PART = re.compile(r'^\. "\$\(dirname "\$0"\)/agent\.d/([a-z_]+\.sh)"\n', re.MULTILINE)


def joined() -> str:
    """Each line of agent.sh that names a part, replaced by that part: what is installed here."""
    folder = resources.files(__package__)
    parts = folder.joinpath("agent.d")
    return _PART.sub(
        lambda line: parts.joinpath(line[1]).read_text("utf-8"),
        folder.joinpath("agent.sh").read_text("utf-8"),
    )


def travelling() -> bytes:
    """The same without comments and indentation, which need not travel: what is sent."""
    lines = (line.lstrip(" \t") for line in joined().splitlines())
    return "".join(f"{line}\n" for line in lines if line and not line.startswith("#")).encode()


if __name__ == "__main__":
    print(joined(), end="")
