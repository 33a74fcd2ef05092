# SPDX-License-Identifier: GPL-3.0-or-later
"""Root's ssh configuration: which way leads to a host, and with which identities.

``/etc/usbipsshd/ssh_config`` is in OpenSSH's own syntax (ssh_config(5)), so OpenSSH reads it:
``ssh -G`` prints what holds for one host and connects to nothing. Followed are HostName, Port,
User, HostKeyAlias, IdentityFile, CertificateFile, IdentitiesOnly, ProxyJump and ProxyCommand; and
Include, where what is included is root's alone, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from usbipsshd.address import Address, parse_address
from usbipsshd.errors import Code, UsbipError
from usbipsshd.rootsfiles import NotRoots, check_config

log = logging.getLogger(__name__)

MAX_HOPS = 6
"""Machines on the way, the remote included."""
MAX_OUTPUT = 256 << 10
"""Bytes that ``ssh -G`` may print."""
MAX_PROXY = 1024
MAX_FILES = 4
"""Identities, and certificates, of one hop; sshd allows six attempts (MaxAuthTries)."""
LIMIT = 5.0
END_LIMIT = 1.0
"""Seconds that ``ssh -G`` may take, and what it leaves once it was killed."""
SSH = Path("/usr/bin/ssh")

_JUMP = re.compile(
    r"(?:ssh://)?(?:(?P<user>[^@]+)@)?(?:\[(?P<inner>[^\]]+)\]|(?P<host>[^:\[\]]+))"
    r"(?::(?P<port>[0-9]{1,5}))?/?",
    re.ASCII,
)
_TOKEN = re.compile(r"%(.)", re.S)
_PLAIN = re.compile(r"[A-Za-z0-9_.:][A-Za-z0-9_.:%-]*", re.ASCII)
"""What needs no quotes in any shell."""


@dataclass(frozen=True, slots=True)
class Hop:
    """One ssh server on the way, and how to log in there."""

    host: str
    port: int
    user: str
    alias: str = ""
    """The name that its host key is known by, if that is not its address (HostKeyAlias)."""
    identities: tuple[Path, ...] = ()
    certificates: tuple[Path, ...] = ()
    own_key: bool = True
    """Whether the daemon's own key is offered, too."""

    @property
    def known_hosts_name(self) -> str:
        """The host as a known_hosts file has it."""
        return self.alias or Address(self.user, self.host, self.port).known_hosts_name


@dataclass(frozen=True, slots=True)
class Route:
    """The way to a remote: jump hosts in order, the remote last."""

    hops: tuple[Hop, ...]
    proxy: str = ""
    """The command that connects to the first hop, ready for a shell; empty for TCP."""

    @property
    def last(self) -> Hop:
        """The remote itself."""
        return self.hops[-1]


def direct(address: Address) -> Route:
    """The way where nothing is configured."""
    return Route((Hop(address.host, address.port, address.user),))


class SshConfig:
    """Reads one file for one host at a time."""

    def __init__(self, path: Path, *, program: Path = SSH, home: Path = Path("/root")) -> None:
        self._path = path
        self._program = program
        self._home = home

    async def route(self, address: Address) -> Route:
        """The way to an address; raise :exc:`UsbipError` (Failed), the log says more."""
        if not self._followed():
            return direct(address)
        return await self._route(address, None, 1)

    def _followed(self) -> bool:
        """Whether there is a file; raise :exc:`UsbipError` where others than root could write."""
        try:
            check_config(self._path, self._home)
        except FileNotFoundError:
            return False
        except NotRoots as error:
            log.error("%s", error)  # noqa: TRY400
            raise _wrong() from None
        except OSError as error:
            log.error("%s cannot be read: %s", self._path, error.strerror)  # noqa: TRY400
            raise _wrong() from None
        return True

    async def _route(self, address: Address, before: str | None, depth: int) -> Route:
        """``before`` are the jump hosts that go before this one, whatever its own settings say."""
        if depth > MAX_HOPS:
            log.error("%s: more than %d hosts on one way", self._path, MAX_HOPS)
            raise _wrong()
        settings = _Settings(await self._ask(address))
        hop = self._hop(address, settings)
        jumps = before or settings.last("proxyjump")
        if jumps and jumps.lower() != "none":
            earlier, _, jump = jumps.rpartition(",")
            way = await self._route(self._jump(jump), earlier or None, depth + 1)
            if len(way.hops) >= MAX_HOPS:
                log.error("%s: more than %d hosts on one way", self._path, MAX_HOPS)
                raise _wrong()
            return Route((*way.hops, hop), way.proxy)
        command = settings.last("proxycommand")
        if not command or command.lower() == "none":
            return Route((hop,))
        tokens = {"h": hop.host, "p": str(hop.port), "r": hop.user, "n": address.host}
        tokens["k"] = hop.alias or address.host
        return Route((hop,), self._expand(command, tokens))

    def _hop(self, address: Address, settings: _Settings) -> Hop:
        host = settings.last("hostname") or address.host
        user = settings.last("user") or address.user
        port = settings.last("port") or str(address.port)
        alias = settings.last("hostkeyalias")
        try:
            found = parse_address(
                f"{user}@[{host}]:{port}" if ":" in host else f"{user}@{host}:{port}"
            )
            if alias:
                parse_address(alias)
        except UsbipError:
            where = self._path, address.host
            log.error("%s: HostName, User, Port or HostKeyAlias of %s is none", *where)  # noqa: TRY400
            raise _wrong() from None
        identities = self._files(settings.all("identityfile"), found)
        return Hop(
            found.host,
            found.port,
            found.user,
            alias,
            identities,
            self._files(settings.all("certificatefile"), found),
            own_key=not identities or settings.last("identitiesonly") != "yes",
        )

    def _files(self, names: Sequence[str], address: Address) -> tuple[Path, ...]:
        tokens = {"d": str(self._home), "h": address.host, "r": address.user, "u": "root", "%": "%"}
        found: list[Path] = []
        for name in names:
            text = _TOKEN.sub(lambda m: tokens.get(m[1], m[0]), name)
            path = self._home / text[2:] if text.startswith("~/") else Path(text)
            if name.lower() != "none" and path.is_absolute() and path not in found:
                found.append(path)
        if len(found) > MAX_FILES:
            log.warning("%s: of %d files for one host the first are used", self._path, len(found))
        return tuple(found[:MAX_FILES])

    def _jump(self, text: str) -> Address:
        match = _JUMP.fullmatch(text.strip())
        try:
            if match is None:
                raise _wrong()
            host = match["inner"] or match["host"]
            host = f"[{host}]" if ":" in host else host
            user = f"{match['user']}@" if match["user"] else ""
            port = f":{match['port']}" if match["port"] else ""
            return parse_address(f"{user}{host}{port}")
        except UsbipError:
            log.error("%s: ProxyJump names something that is no host", self._path)  # noqa: TRY400
            raise _wrong() from None

    def _expand(self, command: str, tokens: dict[str, str]) -> str:
        def value(match: re.Match[str]) -> str:
            if match[1] == "%":
                return "%"
            text = tokens.get(match[1])
            if text is None or not _PLAIN.fullmatch(text):
                log.error("%s: %%%s cannot stand in this ProxyCommand", self._path, match[1])
                raise _wrong()
            return text

        expanded = _TOKEN.sub(value, command)
        if len(expanded) > MAX_PROXY or not expanded.isprintable():
            log.error("%s: a ProxyCommand is longer than %d", self._path, MAX_PROXY)
            raise _wrong()
        return expanded

    async def _ask(self, address: Address) -> str:
        """What ``ssh -G`` says. Nothing but a checked host, user and port is handed to it."""
        line = [
            str(self._program), "-G", "-F", str(self._path),
            # So that it lists no identities but those of the file, and looks up no name.
            "-o", "IdentityFile=none", "-o", "CanonicalizeHostname=no",
        ]  # fmt: skip
        line += ["-l", address.user] if address.user_given else []
        line += ["-p", str(address.port)] if address.port_given else []
        try:
            child = await asyncio.create_subprocess_exec(
                *line, "--", address.host,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env={"PATH": "/usr/bin:/bin", "HOME": str(self._home), "LC_ALL": "C.UTF-8"},
                cwd="/",
            )  # fmt: skip
        except OSError as error:
            log.error("%s cannot be run: %s", self._program, error.strerror)  # noqa: TRY400
            raise UsbipError(
                Code.FAILED,
                "This machine's ssh configuration cannot be read: the ssh client is missing.",
            ) from None
        assert child.stdout is not None and child.stderr is not None
        try:
            async with asyncio.timeout(LIMIT):
                out, err = await asyncio.gather(
                    _read(child.stdout, child), _read(child.stderr, child)
                )
                status = await child.wait()
        except TimeoutError:
            log.error("%s: ssh -G did not come to an end", self._path)  # noqa: TRY400
            raise _wrong() from None
        finally:
            if child.returncode is None:
                child.kill()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(END_LIMIT):
                        # Only what was read to its end is closed.
                        await _read(child.stdout, child)
                        await _read(child.stderr, child)
                await child.wait()
        if status:
            log.error("ssh -G: %s", err.decode("utf-8", "replace")[:500].strip())
            raise _wrong()
        return out.decode("utf-8", "replace")


async def _read(stream: asyncio.StreamReader, child: asyncio.subprocess.Process) -> bytes:
    """What it writes until it ends; one that writes more than can be right is killed."""
    data = b""
    while part := await stream.read(65536):
        if len(data) <= MAX_OUTPUT:
            data += part
        elif child.returncode is None:
            child.kill()
    return data


class _Settings:
    """The lines that ``ssh -G`` prints: a keyword in lower case, a blank, its value."""

    def __init__(self, text: str) -> None:
        self._lines = [line.partition(" ")[::2] for line in text.splitlines()]

    def all(self, keyword: str) -> list[str]:
        return [value.strip() for name, value in self._lines if name == keyword]

    def last(self, keyword: str) -> str:
        return (self.all(keyword) or [""])[-1]


def _wrong() -> UsbipError:
    return UsbipError(
        Code.FAILED,
        "This machine's ssh configuration for usbipsshd has a mistake; its log says which.",
    )
