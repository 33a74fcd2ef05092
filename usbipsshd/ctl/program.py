# SPDX-License-Identifier: GPL-3.0-or-later
"""``usbipsshctl``, from its words to its exit status: see usbipsshctl(1)."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
from collections.abc import Sequence

from usbipsshd.client.daemon import Client
from usbipsshd.client.errors import ClientError
from usbipsshd.client.mounted import Mounted
from usbipsshd.client.sshagent import SshAgent, Use
from usbipsshd.ctl import streams
from usbipsshd.ctl.arguments import parser
from usbipsshd.ctl.commands import Commands
from usbipsshd.ctl.completing import candidates
from usbipsshd.ctl.exitcodes import Exit, exit_code
from usbipsshd.ctl.hints import advised
from usbipsshd.ctl.terminal import Terminal


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    streams.prepare()
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        try:
            return _main(given)
        finally:
            # Also after --help, and before Python would complain at its own end.
            sys.stdout.flush()
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # Nobody reads any more.
        streams.forget(sys.stdout)
        return Exit.FAILED
    except OSError as error:
        streams.forget(sys.stdout)
        Terminal(asks=False).complain(f"This cannot be written or read: {error.strerror}.")
        return Exit.FAILED


def _main(given: Sequence[str]) -> int:
    if given[:2] == ["complete", "--"]:
        return asyncio.run(_complete(given[2:]))
    words = parser().parse_args(given)
    return asyncio.run(_run(words, Terminal(asks=not words.no_ask)))


async def _complete(words: Sequence[str]) -> int:
    client = Client(ssh_agent=SshAgent.of(os.environ, Use.WHEN_REFUSED))
    found = await candidates(client, words)
    Terminal(asks=False).say(*found)
    return Exit.OK


async def _run(words: argparse.Namespace, terminal: Terminal) -> int:
    use = getattr(words, "ssh_agent", Use.WHEN_REFUSED)
    client = Client(ssh_agent=SshAgent.of(os.environ, use))
    try:
        await client.connect()
        try:
            return await Commands(client, terminal, words, Mounted()).run()
        finally:
            with contextlib.suppress(OSError):
                await client.close()
    except ClientError as error:
        remote = str(getattr(words, "remote", "") or getattr(words, "name", ""))
        terminal.complain(advised(error, remote, client.snapshot))
        return exit_code(error)
