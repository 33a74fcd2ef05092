# SPDX-License-Identifier: GPL-3.0-or-later
"""The testbed by hand: `python3 -m testbed up`, then `ssh`, `plug`, `deploy`, … and `down`."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from . import images, pair, pi
from .host import TestbedError
from .machine import Machine


def _folder() -> Path:
    return Path(os.environ.get("USBIPSSHD_PAIR") or "/run/usbipsshd-testbed")


def _package(text: str | None) -> Path | None:
    if text == "none":
        return None
    return Path(text) if text else images.project_package()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="testbed", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    begin = verbs.add_parser("up", help="build what is missing, boot both machines")
    begin.add_argument("--deb", help="the package for desk; `none`: only what it depends on")
    build = verbs.add_parser("build", help="build the images, boot nothing")
    build.add_argument("--deb")
    verbs.add_parser("down", help="switch both off")
    verbs.add_parser("status", help="are they up, and is anything left over or broken?")
    ssh = verbs.add_parser("ssh", help="a command on a machine, or a shell")
    ssh.add_argument("machine", choices=("pi", "desk"))
    ssh.add_argument("command", nargs=argparse.REMAINDER)
    console = verbs.add_parser("console", help="what the kernel wrote")
    console.add_argument("machine", choices=("pi", "desk"))
    for verb, text in (("plug", "plug a device into pi"), ("unplug", "pull one out of pi")):
        command = verbs.add_parser(verb, help=text)
        command.add_argument("device", choices=tuple(pi.PLUGGABLE))
    press = verbs.add_parser("press", help="press keys on pi's keyboard")
    press.add_argument("keys", nargs="+")
    snapshot = verbs.add_parser("snapshot", help="the USB part of sysfs as text")
    snapshot.add_argument("machine", choices=("pi", "desk"))
    verbs.add_parser("deploy", help="put the checkout's files of the daemon on desk")
    return parser


def _down(folder: Path) -> None:
    both = pair.running(folder)
    both.stop()
    shutil.rmtree(folder)


def _status(both: pair.Pair) -> int:
    complaints = both.devices_left() + both.pi.agents_left() + both.trouble()
    print("\n".join(complaints) or "both are up, nothing is attached or left over")
    return 1 if complaints else 0


def _with_pair(options: argparse.Namespace) -> int:
    both = pair.running(_folder())
    chosen = getattr(options, "machine", "pi")
    machine: Machine = both.pi if chosen == "pi" else both.desk
    match options.verb:
        case "status":
            return _status(both)
        case "ssh":
            words = machine.ssh.words(" ".join(options.command), terminal=not options.command)
            os.execvp(words[0], words)
        case "console":
            print(machine.console_text())
        case "plug":
            both.pi.plug(options.device)
        case "unplug":
            both.pi.unplug(options.device)
        case "press":
            both.pi.press(*options.keys)
        case "snapshot":
            print(machine.snapshot(), end="")
        case "deploy":
            both.desk.deploy()
    return 0


def main() -> int:
    """Run one command of the command line; the exit status."""
    options = _parser().parse_args()
    folder = _folder()
    try:
        if options.verb == "up":
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if (folder / "images.json").exists():
                try:
                    pair.running(folder)
                except TestbedError:
                    shutil.rmtree(folder)
                    folder.mkdir(mode=0o700)
                else:
                    raise TestbedError("the pair is up already")
            pair.up(folder, tied=False, package=_package(options.deb))
        elif options.verb == "build":
            images.build(package=_package(options.deb))
        elif options.verb == "down":
            _down(folder)
        else:
            return _with_pair(options)
    except TestbedError as error:
        print(f"testbed: {error}", file=sys.stderr)
        return 1
    return 0
