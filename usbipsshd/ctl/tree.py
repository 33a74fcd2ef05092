# SPDX-License-Identifier: GPL-3.0-or-later
"""A listing as people read it: the tree that usbip-ssh prints, and the same as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from usbipsshd.client.snapshot import Attachment, Device, Interface
from usbipsshd.ctl.colour import PLAIN, Paint

Attachments = Mapping[str, Attachment]
"""By object path."""


def tree(devices: Sequence[Device], attachments: Attachments, paint: Paint = PLAIN) -> list[str]:
    """The lines for devices in tree order: each with its interfaces below it."""
    lines: list[str] = []
    shown: list[str] = []
    for device in devices:
        # What a pattern left out is no level of the tree.
        shown = [busid for busid in shown if _below(device.busid, busid)]
        indent = "  " * len(shown)
        shown.append(device.busid)
        lines.append(f"{indent}{_device(device, attachments, paint)}")
        names = max((len(i.name) for i in device.interfaces), default=0)
        if not device.hub:
            start = f"{indent}    :{device.configuration or 1}."
            lines += [(start + _interface(i, names)).rstrip() for i in device.interfaces]
    return lines


def _below(busid: str, hub: str) -> bool:
    separator = "." if "-" in hub else "-"
    return busid.startswith(hub + separator)


def _device(device: Device, attachments: Attachments, paint: Paint) -> str:
    names = "  ".join(name for name in (device.vendor, device.product) if name)
    ids = f"{device.vendor_id:04x}:{device.product_id:04x}"
    shade = paint.good if device.state == "attached" else paint.warning
    words = [paint.strong(device.busid), ids, names, shade(mark(device, attachments))]
    return "  ".join(word for word in words if word)


def mark(device: Device, attachments: Attachments) -> str:
    """What is particular about a device: attached here, exported to somebody, or ours there."""
    found = attachments.get(device.attachment)
    if device.state == "attached":
        where = f" as {found.local_bus_id}" if found is not None and found.local_bus_id else ""
        return f"(attached{where})"
    if device.state == "exported":
        to = f" to {found.remote}" if found is not None and found.exported else ""
        return f"(exported{to})"
    if found is not None and found.exported:
        return f"(this machine's {found.local_bus_id})"
    return ""


def _interface(interface: Interface, width: int) -> str:
    driver = f"[{interface.driver}]" if interface.driver else "[]"
    nodes = " ".join(node.rpartition("/")[2] for node in interface.nodes)
    name = interface.name.ljust(width)
    return f"{interface.number} {interface.triple}  {name}  {driver} {nodes}"


def as_json(devices: Sequence[Device]) -> list[dict[str, object]]:
    """The devices as JSON has them, by the contract's own names."""
    return [_renamed(asdict(device)) for device in devices]


def _renamed(values: Mapping[str, object]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in values.items():
        if name == "attachment" and not value:
            continue
        plain = value
        if isinstance(value, tuple):
            plain = [_renamed(v) if isinstance(v, dict) else v for v in value]
        found[name.rstrip("_").replace("_", "-")] = plain
    return found
