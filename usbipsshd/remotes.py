# SPDX-License-Identifier: GPL-3.0-or-later
"""Who the remotes are: their names, their addresses, and the host keys pinned for them."""

from __future__ import annotations

import base64
import binascii
import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import tomli_w

from usbipsshd.address import Address, is_name, parse_address
from usbipsshd.errors import Code, UsbipError
from usbipsshd.remotefile import BadFile, read_remote_file
from usbipsshd.sshconfig import Route
from usbipsshd.text import clean

log = logging.getLogger(__name__)

MAX_REMOTES = 256
MAX_KNOWN_HOSTS = 4 << 20

_KEY_TYPE = re.compile(r"[a-z0-9@.-]{4,64}", re.ASCII)
_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Remote:
    """A remote as a caller means it: listed by name, or given as an address."""

    name: str
    """Its listed name; for one that is not listed, its address in full."""
    address: Address
    listed: bool = True
    sudo: bool = False
    label: str = ""
    bare: bool = False
    """Not listed, and given as one word that may have been meant as a name."""
    source: Path | None = None


def is_fingerprint(text: str) -> bool:
    """Whether it looks like a host key's SHA-256 fingerprint."""
    return _FINGERPRINT.fullmatch(text) is not None


def check_fingerprint(text: str) -> str:
    """Return a host key's fingerprint, or raise :exc:`UsbipError` (InvalidArgs)."""
    if not is_fingerprint(text):
        raise UsbipError(
            Code.INVALID_ARGS,
            "A fingerprint is SHA256: and 43 characters, as ssh-keygen -l prints it.",
        )
    return text


def fingerprint(key_line: str) -> str:
    """The SHA256 fingerprint of ``type base64``; raise ValueError if that is no public key.

    The type must be the one that the key itself names (RFC 4253, section 6.6).
    """
    words = key_line.split(" ")
    if len(words) != 2 or len(key_line) > 16384 or not _KEY_TYPE.fullmatch(words[0]):
        raise ValueError("not a public key")
    try:
        blob = base64.b64decode(words[1], validate=True)
    except binascii.Error:
        raise ValueError("not a public key") from None
    kind = words[0].encode()
    if blob[: 4 + len(kind)] != len(kind).to_bytes(4, "big") + kind:
        raise ValueError("not a public key of that type")
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


class RemoteStore:
    """The listed remotes: ``config/remotes.d/*.toml`` by root's hand, and those in ``state``
    that AddRemote keeps.

    A remote's file is named after it and has the keys ``address`` (default: its
    name), ``sudo`` and ``label``. A damaged file costs that remote alone, and the log says which
    line of it is wrong.
    """

    def __init__(self, config: Path, state: Path, known_hosts: tuple[Path, ...]) -> None:
        self._config = config / "remotes.d"
        self._state = state / "remotes.d"
        self._pins = state / "host-keys"
        self._known_hosts = known_hosts
        self._remotes: dict[str, Remote] = {}
        self._listeners: list[Callable[[], None]] = []

    def listen(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` after each change of the list."""
        self._listeners.append(listener)

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()

    def load(self) -> None:
        """Read every file; root's files win over those of the same name that were added."""
        self._remotes = self._read_all()

    def reload(self) -> list[Remote]:
        """Read every file again, all at once; those that were listed before and are no more."""
        before, self._remotes = self._remotes, self._read_all()
        if before != self._remotes:
            self._tell()
        return [remote for name, remote in before.items() if name not in self._remotes]

    def _read_all(self) -> dict[str, Remote]:
        found: dict[str, Remote] = {}
        for folder in (self._config, self._state):
            for path in sorted(folder.glob("*.toml")) if folder.is_dir() else ():
                name = path.name.removesuffix(".toml")
                try:
                    if not is_name(name):
                        raise BadFile("Its name is no name for a remote.")
                    if name in found:
                        continue
                    if len(found) >= MAX_REMOTES:
                        raise BadFile(f"At most {MAX_REMOTES} remotes can be listed.")
                    listing = read_remote_file(path, name)
                except BadFile as error:
                    where = f"{path}:{error.line}" if error.line else str(path)
                    log.warning("%s: %s This remote is left out.", where, error.why)
                    continue
                found[name] = Remote(
                    name, listing.address, sudo=listing.sudo, label=listing.label, source=path
                )
        return found

    def __iter__(self) -> Iterator[Remote]:
        return iter(list(self._remotes.values()))

    def listed(self, name: str) -> Remote:
        """The listed remote of that name; raise :exc:`UsbipError` (InvalidArgs, UnknownRemote)."""
        if not is_name(name):
            raise UsbipError(
                Code.INVALID_ARGS,
                "A remote's name has letters, digits, '.', '_' and '-', at most 64 of them.",
            )
        try:
            return self._remotes[name]
        except KeyError:
            raise UsbipError(
                Code.UNKNOWN_REMOTE, f"No remote is called {name} here; AddRemote adds one."
            ) from None

    def find(self, text: str) -> Remote:
        """The remote a caller means; raise :exc:`UsbipError` (InvalidArgs)."""
        if text in self._remotes:
            return self._remotes[text]
        # For one that is not listed the contract names the user; a port may be configured.
        try:
            parsed = parse_address(text)
        except UsbipError:
            raise UsbipError(
                Code.INVALID_ARGS,
                "A remote is the name of a listed one, or [user@]host[:port], or "
                "[user@][v6addr]:port.",
            ) from None
        address = replace(parsed, user_given=True)
        bare = is_name(text) and "." not in text
        return Remote(str(address), address, listed=False, bare=bare)

    def check_still(self, remote: Remote) -> None:
        """Raise :exc:`UsbipError` (UnknownRemote) if a remote that was listed no longer is, or
        is another one."""
        if remote.listed and self._remotes.get(remote.name) != remote:
            raise UsbipError(
                Code.UNKNOWN_REMOTE,
                f"The remote {remote.name} was removed or changed meanwhile; try again.",
            )

    def new(self, name: str, options: Mapping[str, object]) -> Remote:
        """The remote that :meth:`add` would list; raise :exc:`UsbipError` where it would not."""
        try:
            self.listed(name)
        except UsbipError as error:
            if error.code is not Code.UNKNOWN_REMOTE:
                raise
        else:
            raise UsbipError(
                Code.INVALID_ARGS, f"A remote called {name} is listed already; remove it first."
            )
        if len(self._remotes) >= MAX_REMOTES:
            raise UsbipError(Code.LIMITS_EXCEEDED, f"At most {MAX_REMOTES} remotes can be listed.")
        label = str(options.get("label", ""))
        if len(label) > 128 or clean(label) != label:
            raise UsbipError(
                Code.INVALID_ARGS,
                "A label has at most 128 characters, no control characters, and no spaces but "
                "single ones between words.",
            )
        text = str(options.get("address", name))
        address = parse_address(text)
        path = self._state / f"{name}.toml"
        return Remote(name, address, sudo=bool(options.get("sudo")), label=label, source=path)

    def add(self, name: str, options: Mapping[str, object]) -> Remote:
        """List and keep a new remote; ``options`` may hold address, sudo and label.

        Raises :exc:`UsbipError` (InvalidArgs, LimitsExceeded, Failed).
        """
        remote = self.new(name, options)
        text = str(options.get("address", name))
        values = {"address": text, "sudo": remote.sudo, "label": remote.label}
        self._write(self._state / f"{name}.toml", tomli_w.dumps(values))
        # A key pinned for an earlier remote of this name says nothing about this one.
        (self._pins / name).unlink(missing_ok=True)
        self._remotes[name] = remote
        self._tell()
        return remote

    def check_removable(self, name: str) -> Remote:
        """The remote, if RemoveRemote may take it; raise :exc:`UsbipError`."""
        remote = self.listed(name)
        if remote.source is None or remote.source.parent != self._state:
            raise UsbipError(
                Code.ACCESS_DENIED,
                f"The remote {name} comes from this machine's configuration; "
                "root removes its file.",
            )
        return remote

    def remove(self, name: str) -> None:
        """Forget a remote that was added, and its host key; raise :exc:`UsbipError`."""
        remote = self.check_removable(name)
        if remote.source is not None:
            remote.source.unlink(missing_ok=True)
        (self._pins / name).unlink(missing_ok=True)
        del self._remotes[name]
        self._tell()

    def pin(self, name: str, key_line: str) -> None:
        """Trust exactly this host key (``type base64``) for a listed remote."""
        fingerprint(key_line)
        self._write(self._pins / name, key_line + "\n")

    def known_hosts(self, remote: Remote, route: Route) -> bytes:
        """What is known of host keys, in known_hosts format: pinned ones, then root's files.

        Keys that are pinned for a listed remote hold for it as a jump host, too. Lines of root's
        files that speak of other hosts are passed on: they may be hashed.
        """
        lines = [
            f"{hop.known_hosts_name} {key}\n"
            for hop in route.hops[:-1]
            for other in self._remotes.values()
            if (other.address.host, other.address.port) == (hop.host, hop.port)
            and (key := self._pinned(other.name))
        ]
        lines += [
            f"{route.last.known_hosts_name} {key}\n"
            for other in self._remotes.values()
            if (other.address.host, other.address.port)
            == (remote.address.host, remote.address.port)
            and (not remote.listed or other.name == remote.name)
            and (key := self._pinned(other.name))
        ]
        text = "".join(lines).encode()
        for path in self._known_hosts:
            try:
                if path.stat().st_size <= MAX_KNOWN_HOSTS:
                    text += path.read_bytes() + b"\n"
            except OSError:
                continue
        return text

    def _pinned(self, name: str) -> str:
        try:
            line = (self._pins / name).read_text().strip()
            fingerprint(line)
        except (OSError, ValueError):
            return ""
        return line

    @staticmethod
    def _write(path: Path, text: str) -> None:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # No remote's name begins with a dot, so none has this file.
            new = path.with_name(f".{path.name}.new")
            with new.open("w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
        except OSError as error:
            raise UsbipError(
                Code.FAILED, f"This machine cannot keep that: {error.strerror}."
            ) from None
