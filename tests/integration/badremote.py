# SPDX-License-Identifier: GPL-3.0-or-later
"""A forced command: runs the real agent, and spoils what it says from some point on.

``badremote.py MODE POINT``. POINT is ``COUNT:REGEX``: the first line that matches after COUNT
requests were answered with ok. From that line on MODE is: ``cut`` (the connection ends),
``hang`` (nothing more is said), ``noise`` (other bytes), ``wrong`` (the line's tag is another
one), ``flood`` (a line without an end). ``instead`` says POINT in place of the agent.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable

NOISE = bytes(range(1, 256)) * 4 + b"\n"


def flood() -> None:
    while True:
        os.write(1, b"x" * 65536)


def main() -> int:
    mode, point = sys.argv[1:3]
    if mode == "instead":
        os.write(1, point.encode() + b"\n")
        return 1
    count, _, text = point.partition(":")
    wanted = re.compile(text.encode())
    left = int(count)
    agent = subprocess.Popen(
        ["/bin/sh", "-c", os.environ["SSH_ORIGINAL_COMMAND"]], stdout=subprocess.PIPE
    )
    assert agent.stdout is not None
    # The agent reads our standard input itself: what follows the point is still heard.
    actions: dict[str, Callable[[bytes], object]] = {
        "hang": lambda _: None,
        "noise": lambda _: os.write(1, NOISE),
        "wrong": lambda line: os.write(1, b"4711" + line),
        "flood": lambda _: flood(),
    }
    spoiled = False
    for line in agent.stdout:
        if not spoiled and left == 0 and wanted.search(line):
            spoiled = True
            if mode == "cut":
                return 0
            actions[mode](line)
        elif not spoiled:
            os.write(1, line)
            left -= bool(re.fullmatch(rb"[0-9]+ ok\n", line)) and left > 0
    return agent.wait()


if __name__ == "__main__":
    sys.exit(main())
