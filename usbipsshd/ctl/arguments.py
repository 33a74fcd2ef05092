# SPDX-License-Identifier: GPL-3.0-or-later
"""The words that the command line takes."""

from __future__ import annotations

import argparse
import re

from usbipsshd import __version__
from usbipsshd.client.sshagent import Use

_EPILOG = "usbipsshctl(1) says what REMOTE and PATTERN may be, and has the exit statuses."


class _Brief(argparse.HelpFormatter):
    """All commands on one screen of 24 lines: without a line for the list itself."""

    def _format_action(self, action: argparse.Action) -> str:
        text = super()._format_action(action)
        if isinstance(action, argparse._SubParsersAction):
            text = text.partition("\n")[2]
        return text


def _vid_pid(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9a-fA-F]{1,4}):([0-9a-fA-F]{1,4})", text, re.ASCII)
    if match is None:
        raise argparse.ArgumentTypeError("it is two numbers in hex, such as 046d:c31c")
    return int(match[1], 16), int(match[2], 16)


def _add_remote(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    one = verbs.add_parser("remote", help="the list of remotes")
    what = one.add_subparsers(dest="what", metavar="COMMAND", required=True)
    what.add_parser("list", help="show it")
    add = what.add_parser("add", help="add a remote")
    add.add_argument("name", metavar="NAME")
    add.add_argument("address", metavar="ADDRESS", nargs="?", default="", help="[user@]host[:port]")
    add.add_argument("--sudo", action="store_true", help="the user there becomes root with sudo -n")
    add.add_argument("--label", default="", help="a name for people")
    remove = what.add_parser("remove", help="remove one; what it holds is detached")
    remove.add_argument("name", metavar="NAME")
    trust = what.add_parser("trust", help="trust a host key")
    trust.add_argument("name", metavar="NAME")
    trust.add_argument("fingerprint", metavar="SHA256:…", nargs="?", default="")


def _connects(verb: argparse.ArgumentParser) -> None:
    """Options of what logs in to a remote."""
    either = verb.add_mutually_exclusive_group()
    either.add_argument(
        "--ssh-agent", dest="ssh_agent", action="store_const", const=Use.ALWAYS,
        default=Use.WHEN_REFUSED, help="log in with your own ssh-agent",
    )  # fmt: skip
    either.add_argument(
        "--no-ssh-agent", dest="ssh_agent", action="store_const", const=Use.NEVER,
        help="not even where the daemon's own key is refused",
    )  # fmt: skip


def _add_attach_options(one: argparse.ArgumentParser, *, keep: bool = False) -> None:
    one.add_argument("--keep", action="store_true", default=keep, help="attach it again")
    one.add_argument("--persist", action="store_true", help="also after a restart")
    one.add_argument("--no-unmount", action="store_true", help="not one that is mounted")
    one.add_argument("--no-rebind", action="store_true", help="leave it without a driver then")
    one.add_argument("--expect", type=_vid_pid, metavar="VID:PID", help="refuse any other")
    one.add_argument(
        "--wait", action="store_true", help="stay, and detach at the end (Ctrl-C, SIGTERM)"
    )
    _connects(one)


def parser() -> argparse.ArgumentParser:
    """The whole command line; ``verb`` (and ``what`` of ``remote``) say what is wanted."""
    whole = argparse.ArgumentParser(
        prog="usbipsshctl", epilog=_EPILOG, formatter_class=_Brief, add_help=False
    )
    whole.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)
    whole.add_argument("--version", action="version", version=f"usbipsshctl {__version__}")
    whole.add_argument(
        "--no-ask", action="store_true", help="never ask for a password or about a host key"
    )
    verbs = whole.add_subparsers(
        dest="verb", metavar="COMMAND", required=True, title="commands, each with --help"
    )

    one = verbs.add_parser("list", help="devices of a remote, or of all and of this machine")
    one.add_argument("remote", nargs="?", metavar="REMOTE", help="a remote; . is this machine")
    one.add_argument("pattern", nargs="?", default="", metavar="PATTERN")
    one.add_argument("--json", action="store_true", help="as JSON")
    _connects(one)

    one = verbs.add_parser("find", help="the bus id of the one device that matches")
    one.add_argument("remote", metavar="REMOTE", help="a remote; . is this machine")
    one.add_argument("pattern", metavar="PATTERN")
    _connects(one)

    for verb, text in (
        ("attach", "attach the one device that matches"),
        ("keep", "the same with --keep"),
    ):
        one = verbs.add_parser(verb, help=text)
        one.add_argument("remote", metavar="REMOTE")
        one.add_argument("pattern", metavar="PATTERN", nargs="?", default="")
        one.add_argument("--all", action="store_true", help="whatever matches, also later")
        _add_attach_options(one, keep=verb == "keep")

    one = verbs.add_parser("export", help="the reverse: a device of this machine on a remote")
    one.add_argument("remote", metavar="REMOTE")
    one.add_argument("local_pattern", metavar="PATTERN")
    _add_attach_options(one)

    one = verbs.add_parser("detach", help="give devices back")
    one.add_argument(
        "target", nargs="+", metavar="TARGET",
        help="REMOTE/BUSID, a bus id of this machine, an object path, or all",
    )  # fmt: skip
    one.add_argument("--force", action="store_true", help="also a disk that is mounted here")

    one = verbs.add_parser("unbind", help="give back what a remote exports, whoever asked for it")
    one.add_argument("remote", metavar="REMOTE", help="a remote; . is this machine")
    one.add_argument("pattern", metavar="PATTERN", nargs="?", default="")
    _connects(one)

    one = verbs.add_parser("reset", help="reset the USB port of devices, attached or not")
    one.add_argument("remote", metavar="REMOTE", help="a remote; . is this machine")
    one.add_argument("pattern", metavar="PATTERN")
    _connects(one)

    one = verbs.add_parser("status", help="what is attached, and what is waited for")
    one.add_argument("--json", action="store_true", help="as JSON")

    one = verbs.add_parser("monitor", help="what happens, a line each, until Ctrl-C")
    one.add_argument("--json", action="store_true", help="as JSON, an object a line")

    one = verbs.add_parser("doctor", help="what would stop it from working, and the remedy")
    one.add_argument("remote", nargs="?", default="", metavar="REMOTE", help="else this machine")
    one.add_argument("--json", action="store_true", help="as JSON")
    _connects(one)

    # What usbipssh@.service runs.
    one = verbs.add_parser("unit")
    one.add_argument("instance", metavar="INSTANCE")

    verbs.add_parser("key", help="the daemon's ssh key, for a remote's authorized_keys")

    _add_remote(verbs)
    return whole
