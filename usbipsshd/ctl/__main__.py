# SPDX-License-Identifier: GPL-3.0-or-later
"""``usbipsshctl``: see usbipsshctl(1)."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
from collections.abc import Sequence

from usbipsshd.client.daemon import Client, ClientError
from usbipsshd.client.sshagent import SshAgent, Use
from usbipsshd.ctl.arguments import parser
from usbipsshd.ctl.commands import Commands
from usbipsshd.ctl.completing import candidates
from usbipsshd.ctl.exitcodes import Exit, exit_code
from usbipsshd.ctl.terminal import Terminal


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:2] == ["complete", "--"]:
        return asyncio.run(_complete(given[2:]))
    words = parser().parse_args(given)
    terminal = Terminal(asks=not words.no_ask)
    try:
        return asyncio.run(_run(words, terminal))
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # Nobody reads any more, and nothing is left to be flushed at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FAILED
    except ClientError as error:
        terminal.complain(error.message)
        return exit_code(error)


async def _complete(words: Sequence[str]) -> int:
    client = Client(ssh_agent=SshAgent.of(os.environ, Use.WHEN_REFUSED))
    found = await candidates(client, words)
    Terminal(asks=False).say(*found)
    return Exit.OK


async def _run(words: argparse.Namespace, terminal: Terminal) -> int:
    use = getattr(words, "ssh_agent", Use.WHEN_REFUSED)
    client = Client(ssh_agent=SshAgent.of(os.environ, use))
    await client.connect()
    try:
        async with terminal.password_agent():
            return await Commands(client, terminal, words).run()
    finally:
        with contextlib.suppress(OSError):
            await client.close()


if __name__ == "__main__":
    sys.exit(main())
