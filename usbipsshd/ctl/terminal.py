# SPDX-License-Identifier: GPL-3.0-or-later
"""The terminal: progress, questions, and somebody who asks for a password there."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import stat
import sys
import termios
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TextIO

from usbipsshd.ctl.colour import Paint
from usbipsshd.ctl.streams import forget

PROGRESS_SECONDS = 1.0
"""What takes longer says so."""
AGENT_SECONDS = 5.0
_CLEAR = "\r\x1b[K"


class Terminal:
    """Where the user is. ``asks`` is whether questions may be put."""

    def __init__(self, *, asks: bool, out: TextIO | None = None, err: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._err = err or sys.stderr
        self.paint = Paint.fitting(self._out, os.environ)
        self.asks = asks and sys.stdin.isatty() and self._err.isatty()

    def say(self, *lines: str) -> None:
        """Print lines; raises OSError (BrokenPipeError when nobody reads)."""
        for line in lines:
            self._out.write(line + "\n")
        self._out.flush()

    @contextmanager
    def reader_gone(self) -> Iterator[asyncio.Event]:
        """An event that is set when nobody reads what is printed any more, in a pipe."""
        gone = asyncio.Event()
        try:
            fd = self._out.fileno()
            watched = stat.S_ISFIFO(os.fstat(fd).st_mode)
        except OSError:
            watched = False
        if not watched:
            yield gone
            return
        loop = asyncio.get_running_loop()
        # A pipe without a reader is in error, which is told to whoever waits for it to be readable.
        loop.add_reader(fd, gone.set)
        try:
            yield gone
        finally:
            loop.remove_reader(fd)

    def complain(self, text: str) -> None:
        """Say what went wrong, if anybody can be told."""
        try:
            self._err.write(f"usbipsshctl: {text}\n")
            self._err.flush()
        except OSError:
            forget(self._err)

    @asynccontextmanager
    async def progress(self, text: str) -> AsyncIterator[None]:
        """Show what is going on after a second, on terminals only."""
        visible = self._err.isatty() and os.environ.get("TERM") != "dumb"
        showing = asyncio.create_task(self._show(text)) if visible else None
        try:
            yield
        finally:
            if showing is not None:
                showing.cancel()
                await asyncio.wait([showing])
                self._err.write(_CLEAR)
                self._err.flush()

    async def _show(self, text: str) -> None:
        seconds = 0
        while True:
            await asyncio.sleep(PROGRESS_SECONDS)
            seconds += 1
            passed = f" … {seconds} s"
            # A line that is wrapped could not be wiped away.
            room = max(0, shutil.get_terminal_size().columns - len(passed) - 1)
            self._err.write(f"{_CLEAR}{text[:room]}{passed}")
            self._err.flush()

    async def confirm(self, question: str) -> bool:
        """Ask on a terminal; anything but yes is no."""
        self._err.write(f"{question} [y/N] ")
        self._err.flush()
        # No thread waits for the line: it could not be interrupted.
        loop, typed = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(sys.stdin.fileno(), typed.set)
        try:
            await typed.wait()
        except asyncio.CancelledError:
            self._err.write("\n")
            raise
        finally:
            loop.remove_reader(sys.stdin.fileno())
        answer = sys.stdin.readline()
        return answer.strip().lower() in ("y", "yes")

    @asynccontextmanager
    async def password_agent(self) -> AsyncIterator[None]:
        """polkit's text agent on this terminal, unless there is one for the session already.

        pkttyagent(1), --fallback and --notify-fd.
        """
        program = shutil.which("pkttyagent")
        if not self.asks or os.geteuid() == 0 or program is None:
            yield
            return
        read, write = os.pipe()
        before = termios.tcgetattr(sys.stdin)
        # polkit 122 looks for a fallback only where there is a session, which may have an agent.
        fallback = ["--fallback"] if os.environ.get("XDG_SESSION_ID") else []
        try:
            agent = await asyncio.create_subprocess_exec(
                program, *fallback, "--notify-fd", str(write), pass_fds=(write,)
            )
        finally:
            os.close(write)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(AGENT_SECONDS):
                    # It closes its end when it is registered, or has failed.
                    await asyncio.to_thread(os.read, read, 1)
            yield
        finally:
            os.close(read)
            with contextlib.suppress(ProcessLookupError):
                agent.terminate()
            await agent.wait()
            # Ended while a password is typed, it may leave the terminal without an echo.
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
