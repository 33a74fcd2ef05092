# SPDX-License-Identifier: GPL-3.0-or-later
"""What the daemon publishes, as plain values: the objects on the bus, and devices in listings.

Fields are named after the contract's members (dbus/org.usbipssh1.xml). Members and keys that are
not known here are left out: within version 1 they are only added.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypeVar

from usbipsshd.bus.values import Variant

ROOT = "/org/usbipssh1"
NOTHING = ("", "")
"""A ``LastError`` when there is none."""


@dataclass(frozen=True, slots=True)
class Remote:
    """``org.usbipssh1.Remote``: a listed remote."""

    path: str
    name: str = ""
    label: str = ""
    state: str = "idle"
    """idle, connecting, connected or unreachable."""
    offered_host_key: str = ""
    last_error: tuple[str, str] = NOTHING

    @property
    def refuses_key(self) -> bool:
        """Whether it did not accept the daemon's own key when that was tried last."""
        return self.last_error[0].endswith(".SshAuthFailed")


@dataclass(frozen=True, slots=True)
class Attachment:
    """``org.usbipssh1.Attachment``."""

    path: str
    remote: str = ""
    pattern: str = ""
    remote_bus_id: str = ""
    vendor_id: int = 0
    product_id: int = 0
    name: str = ""
    serial: str = ""
    speed: float = 0.0
    """Mbit/s."""
    state: str = "connecting"
    """connecting, attached, waiting or detaching."""
    local_bus_id: str = ""
    port: int = 0
    device_nodes: tuple[str, ...] = ()
    keep: bool = False
    persist: bool = False
    owner_uid: int = 0
    hub: str = "/"
    attached_at: int = 0
    """Microseconds since the epoch; 0 if it is not attached."""
    retry_at: int = 0
    """Microseconds since the epoch; 0 for no set time."""
    last_error: tuple[str, str] = NOTHING
    direction: str = "import"
    """import, or export: a device of this machine on the remote."""

    @property
    def exported(self) -> bool:
        """Whether it is a device of this machine on the remote."""
        return self.direction == "export"


@dataclass(frozen=True, slots=True)
class Hub:
    """``org.usbipssh1.Hub``."""

    path: str
    remote: str = ""
    pattern: str = ""
    state: str = "connecting"
    attachments: tuple[str, ...] = ()
    persist: bool = False
    owner_uid: int = 0
    retry_at: int = 0
    last_error: tuple[str, str] = NOTHING


@dataclass(frozen=True, slots=True)
class Manager:
    """``org.usbipssh1.Manager``'s properties."""

    path: str = ROOT
    version: str = ""
    public_key: str = ""
    vhci_available: bool = True
    free_ports: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that the daemon publishes, at one moment."""

    present: bool = False
    """Whether the daemon is there; it is started by the first call that asks for anything."""
    manager: Manager = field(default_factory=Manager)
    remotes: tuple[Remote, ...] = ()
    """By name."""
    attachments: tuple[Attachment, ...] = ()
    """In the order in which they were made."""
    hubs: tuple[Hub, ...] = ()


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface of a :class:`Device`."""

    number: int = 0
    class_: int = 0
    subclass: int = 0
    protocol: int = 0
    driver: str = ""
    name: str = ""
    nodes: tuple[str, ...] = ()

    @property
    def triple(self) -> str:
        """Class, subclass and protocol in hex, as in ``030101``."""
        return f"{self.class_:02x}{self.subclass:02x}{self.protocol:02x}"


@dataclass(frozen=True, slots=True)
class Device:
    """A device in a listing."""

    busid: str = ""
    vendor_id: int = 0
    product_id: int = 0
    vendor: str = ""
    product: str = ""
    serial: str = ""
    speed: float = 0.0
    class_: int = 0
    subclass: int = 0
    protocol: int = 0
    busnum: int = 0
    devnum: int = 0
    driver: str = ""
    configuration: int = 0
    hub: bool = False
    state: str = "available"
    """available, exported or attached (here)."""
    attachment: str = ""
    """The attachment's object path, if attached here or exported from here."""
    interfaces: tuple[Interface, ...] = ()

    @property
    def title(self) -> str:
        """Vendor and product in words, or their ids where there are none."""
        words = " ".join(word for word in (self.vendor, self.product) if word)
        return words or f"{self.vendor_id:04x}:{self.product_id:04x}"


T = TypeVar("T", Remote, Attachment, Hub, Manager, Interface, Device)


def _default(one: Any) -> object:
    return one.default if one.default is not MISSING else one.default_factory()


def _fitting(value: object, like: object) -> object | None:
    """The value as a field that is ``like`` this holds it; None if it is of another kind."""
    if isinstance(value, Variant):
        value = value.value
    if isinstance(like, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(like, tuple) and isinstance(value, (list, tuple)):
        return tuple(value)
    if type(value) is type(like):
        return value
    return None


def _plain_numbers(value: object) -> object:
    if isinstance(value, Variant):
        value = value.value
    if isinstance(value, dict):
        return {str(k): v for k, v in value.items() if isinstance(v, int)}
    return value


def from_properties(kind: type[T], values: Mapping[str, object], before: T | None = None) -> T:
    """An object from its properties or a dictionary's keys; what is not given is ``before``'s.

    What is of another type than the contract says is left out.
    """
    known: dict[str, Any] = {}
    if before is not None:
        known = {one.name: getattr(before, one.name) for one in fields(before)}
    for one in fields(kind):
        if one.default is MISSING and one.default_factory is MISSING:
            continue
        name = _dbus_name(kind, one.name)
        if name in values:
            value = _fitting(_plain_numbers(values[name]), _default(one))
            if value is not None:
                known[one.name] = value
    if kind is Device and isinstance(known.get("interfaces"), tuple):
        known["interfaces"] = tuple(
            from_properties(Interface, each)
            for each in known["interfaces"]
            if isinstance(each, dict)
        )
    return kind(**known)


def _dbus_name(kind: type[object], name: str) -> str:
    if kind in (Device, Interface):
        return name.rstrip("_").replace("_", "-")
    return "".join(word.capitalize() for word in name.split("_"))
