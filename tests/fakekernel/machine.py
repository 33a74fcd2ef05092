# SPDX-License-Identifier: GPL-3.0-or-later
"""One made-up machine: its buses, devices, drivers, and what is set to go wrong on it."""

from __future__ import annotations

import errno
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fakekernel.devices import FakeDevice
from fakekernel.nodes import NodeNumbers, build_nodes
from fakekernel.tree import File, Folder, relative, text

DRIVERS = ("usb", "hub", "usb-storage", "usbhid", "usbserial", "btusb", "r8152")

_MODPROBE = b"""#!/bin/sh
# The made-up kernel's own modprobe.
for module; do [ "$module" != -n ] || dry=1; done
[ -z "$dry" ] || exit 0
printf '%s' "$module" >"${0%/bin/modprobe}/fake/modprobe"
"""


def fault(code: int, what: str = "") -> OSError:
    """The error that a store function answers with."""
    return OSError(code, what or os.strerror(code))


@dataclass
class Bus:
    """A bus: its root hub's folder and whether it lets new devices in."""

    number: int
    path: str
    speed: str
    folder: Folder
    serial: str
    authorized_default: bool = True
    next_devnum: int = 2
    virtual: bool = False
    node: File = field(default_factory=File)
    """The root hub's node, as below /dev/bus/usb."""


@dataclass
class Plugged:
    """A device on a bus."""

    busid: str
    bus: Bus
    description: FakeDevice
    devnum: int
    path: str
    folder: Folder
    node: File = field(default_factory=File)
    parent_node: File | None = None
    """The node of the hub that it is plugged into, where that is no root hub."""
    driver: str = ""
    authorized: bool = True
    names: list[str] = field(default_factory=list)
    """Device nodes that it has now."""

    @property
    def configured(self) -> bool:
        """Whether its interfaces are there."""
        return f"{self.busid}:1.0" in self.folder.children


class Machine:
    """The state behind the tree. Every change is made under ``lock``."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._delayed = threading.Condition(self.lock)
        self.root = Folder()
        self.buses: dict[int, Bus] = {}
        self.devices: dict[str, Plugged] = {}
        self.crashes: list[str] = []
        self.log: list[str] = []
        self.modules: set[str] = set()
        self.missing_modules: set[str] = set()
        self.loaders: dict[str, Callable[[], None]] = {}
        self.probes: list[Callable[[Plugged], bool]] = []
        """Drivers that may be bound by hand, as usbip-host is; the ordinary one comes first."""
        self.on_unplug: list[Callable[[Plugged], None]] = []
        self.on_unbind: list[Callable[[Plugged], None]] = []
        self._faults: dict[str, list[Any]] = {}
        self._delays: dict[str, float] = {}
        self._numbers = NodeNumbers()
        self._subscribers: list[queue.SimpleQueue[dict[str, Any]]] = []
        self._build()

    # --- what goes wrong -----------------------------------------------------------------

    def set_fault(self, operation: str, code: str, times: int) -> None:
        """Let the next ``times`` uses of ``operation`` fail; -1 is for ever, 0 never."""
        with self.lock:
            self._faults[operation] = [getattr(errno, code), times]

    def set_delay(self, operation: str, seconds: float) -> None:
        """Let each use of ``operation`` take so long; 0 also ends what is under way."""
        with self.lock:
            self._delays[operation] = seconds
            self._delayed.notify_all()

    def passing(self, operation: str, busid: str = "") -> None:
        """Begin an operation: log it, wait and fail as told (``bind`` or ``bind 1-1``)."""
        names = (operation, f"{operation} {busid}") if busid else (operation,)
        begun = time.monotonic()
        with self.lock:
            self.log.append(names[-1])
            while (left := begun + self._delay(names) - time.monotonic()) > 0:
                self._delayed.wait(left)
            for name in names:
                entry = self._faults.get(name)
                if entry and entry[1]:
                    entry[1] -= 1
                    raise fault(entry[0])

    def _delay(self, names: Sequence[str]) -> float:
        return max(self._delays.get(name, 0.0) for name in names)

    def reset(self) -> None:
        """Pull everything out and forget faults, delays and what was logged."""
        with self.lock:
            self._faults.clear()
            self._delays.clear()
            self._delayed.notify_all()
            for busid in sorted(self.devices):
                if busid in self.devices and not self.devices[busid].bus.virtual:
                    self.unplug(busid)
            for bus in self.buses.values():
                bus.next_devnum = 2
                bus.authorized_default = True
            self.log.clear()
            self.crashes.clear()

    # --- events --------------------------------------------------------------------------

    def subscribe(self) -> queue.SimpleQueue[dict[str, Any]]:
        """A queue that gets every event from now on."""
        events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        with self.lock:
            self._subscribers.append(events)
        return events

    def unsubscribe(self, events: queue.SimpleQueue[dict[str, Any]]) -> None:
        """Stop feeding a queue."""
        with self.lock:
            self._subscribers.remove(events)

    def emit(self, action: str, devpath: str, subsystem: str, **more: Any) -> None:
        """Tell everybody of a change, in the words of a uevent."""
        event = {"action": action, "devpath": devpath, "subsystem": subsystem, **more}
        with self.lock:
            for events in self._subscribers:
                events.put(event)

    # --- the tree ------------------------------------------------------------------------

    def _build(self) -> None:
        usb = self.root.folder("/bus/usb")
        usb.folder("devices")
        usb.control("drivers_probe", self._drivers_probe)
        usb.attribute("drivers_autoprobe", "1")
        for name in DRIVERS:
            self.add_driver(name)
        fake = self.root.folder("/fake")
        fake.control("modprobe", self._modprobe)
        self.root.folder("/bin").attribute("modprobe", _MODPROBE, 0o555)
        self.root.folder("/module")
        self.add_bus(1, "/devices/pci0000:00/0000:00:14.0", "480", "0000:00:14.0")
        self.add_bus(2, "/devices/pci0000:00/0000:00:14.0", "5000", "0000:00:14.0")

    def add_driver(self, name: str) -> Folder:
        """A driver's folder with ``bind`` and ``unbind``."""
        folder = self.root.folder(f"/bus/usb/drivers/{name}")
        folder.control("bind", lambda data, _: self._bind(name, data))
        folder.control("unbind", lambda data, _: self._unbind(name, data))
        return folder

    def add_bus(
        self, number: int, controller: str, speed: str, serial: str, virtual: bool = False
    ) -> Bus:
        """A root hub."""
        name = f"usb{number}"
        path = f"{controller}/{name}"
        folder = self.root.folder(path)
        bus = Bus(number, path, speed, folder, serial, virtual=virtual)
        self.buses[number] = bus
        bus.node = self._add_node(number, 1)
        for attribute, value in (
            ("idVendor", "1d6b"),
            ("idProduct", "0003" if speed == "5000" else "0002"),
            ("bcdDevice", "0601"),
            ("bDeviceClass", "09"),
            ("bDeviceSubClass", "00"),
            ("bDeviceProtocol", "03" if speed == "5000" else "01"),
            ("busnum", str(number)),
            ("devnum", "1"),
            ("devpath", "0"),
            ("speed", speed),
            ("manufacturer", "Linux 6.1.0-37-amd64 " + ("vhci_hcd" if virtual else "xhci-hcd")),
            ("product", "USB/IP Virtual Host Controller" if virtual else "xHCI Host Controller"),
            ("serial", serial),
            ("authorized", "1"),
            ("interface_authorized_default", "1"),
        ):
            folder.attribute(attribute, value)

        def store(data: bytes, _: int) -> None:
            with self.lock:
                bus.authorized_default = data.strip() not in (b"0",)

        folder.control("authorized_default", store, lambda: b"%d\n" % int(bus.authorized_default))
        folder.link("subsystem", relative("/bus/usb", path))
        folder.link("driver", relative("/bus/usb/drivers/usb", path))
        self.root.folder("/bus/usb/devices").link(name, relative(path, "/bus/usb/devices"))
        interface = folder.folder(f"{number}-0:1.0")
        for attribute, value in (
            ("bInterfaceNumber", "00"),
            ("bInterfaceClass", "09"),
            ("bInterfaceSubClass", "00"),
            ("bInterfaceProtocol", "00"),
        ):
            interface.attribute(attribute, value)
        interface_path = f"{path}/{number}-0:1.0"
        interface.link("subsystem", relative("/bus/usb", interface_path))
        interface.link("driver", relative("/bus/usb/drivers/hub", interface_path))
        self.root.folder("/bus/usb/devices").link(
            f"{number}-0:1.0", relative(interface_path, "/bus/usb/devices")
        )
        return bus

    # --- devices come and go -------------------------------------------------------------

    def plug(self, busid: str, description: FakeDevice) -> Plugged:
        """Put a device into a port; its driver binds if the bus lets it."""
        with self.lock:
            if busid in self.devices:
                raise fault(errno.EEXIST, f"{busid} is taken")
            number = int(busid.split("-", maxsplit=1)[0])
            bus = self.buses.get(number)
            parent = busid.rpartition(".")[0]
            if bus is None or (parent and parent not in self.devices):
                raise fault(errno.ENODEV, f"{busid} has nothing to be plugged into")
            above = self.devices[parent].path if parent else bus.path
            path = f"{above}/{busid}"
            device = Plugged(busid, bus, description, bus.next_devnum, path, self.root.folder(path))
            bus.next_devnum += 1
            device.authorized = bus.authorized_default
            if parent:
                device.parent_node = self.devices[parent].node
            device.node = self._add_node(number, device.devnum)
            self.devices[busid] = device
            self._show_device(device)
            self.emit("add", path, "usb", devtype="usb_device", busid=busid)
            self.probe(device)
            return device

    def _add_node(self, busnum: int, devnum: int) -> File:
        folder = self.root.folder(f"/fake/usb/{busnum:03d}")
        folder.attribute(f"{devnum:03d}", b"")
        node = folder.children[f"{devnum:03d}"]
        assert isinstance(node, File)
        return node

    def _remove_node(self, device: Plugged) -> None:
        self.root.folder(f"/fake/usb/{device.bus.number:03d}").remove(f"{device.devnum:03d}")

    def _show_device(self, device: Plugged) -> None:
        d = device.description
        folder = device.folder
        values = {
            "idVendor": f"{d.vendor_id:04x}",
            "idProduct": f"{d.product_id:04x}",
            "bcdDevice": f"{d.bcd_device:04x}",
            "bDeviceClass": f"{d.class_:02x}",
            "bDeviceSubClass": f"{d.subclass:02x}",
            "bDeviceProtocol": f"{d.protocol:02x}",
            "busnum": str(device.bus.number),
            "devnum": str(device.devnum),
            "devpath": device.busid.partition("-")[2],
            "speed": d.speed,
            "bConfigurationValue": "1",
            "bNumConfigurations": "1",
            "maxchild": "4" if d.class_ == 9 else "0",
            "dev": f"189:{(device.bus.number - 1) * 128 + device.devnum - 1}",
            "manufacturer": d.manufacturer,
            "product": d.product,
            "serial": d.serial,
        }
        for name, value in {**values, **d.attributes}.items():
            if value or name in d.attributes:
                folder.attribute(name, value)
        node = f"bus/usb/{device.bus.number:03d}/{device.devnum:03d}"
        folder.attribute(
            "uevent",
            f"MAJOR=189\nMINOR=1\nDEVNAME={node}\nDEVTYPE=usb_device\n"
            f"BUSNUM={device.bus.number:03d}\nDEVNUM={device.devnum:03d}",
        )
        folder.attribute("descriptors", d.descriptors)
        folder.attribute("bConfigurationValue", lambda: b"1\n" if device.configured else b"\n")
        folder.control(
            "authorized",
            lambda data, _: self._authorize(device, data),
            lambda: b"%d\n" % int(device.authorized),
        )
        folder.link("subsystem", relative("/bus/usb", device.path))
        devices = self.root.folder("/bus/usb/devices")
        devices.link(device.busid, relative(device.path, "/bus/usb/devices"))

    def unplug(self, busid: str) -> None:
        """Pull a device, and what hangs below it, out."""
        with self.lock:
            if busid not in self.devices:
                raise fault(errno.ENODEV, f"{busid} is not there")
            for below in [b for b in self.devices if b.startswith(busid + ".")]:
                if below in self.devices:
                    self.unplug(below)
            device = self.devices[busid]
            for hook in self.on_unplug:
                hook(device)
            self.drop_driver(device)
            del self.devices[busid]
            self.root.folder("/bus/usb/devices").remove(busid)
            self._remove_node(device)
            parent, _, name = device.path.rpartition("/")
            self.root.folder(parent).remove(name)
            self.emit("remove", device.path, "usb", devtype="usb_device", busid=busid)

    # --- drivers -------------------------------------------------------------------------

    def probe(self, device: Plugged) -> None:
        """Let the ordinary driver, which comes first, take a device that has none."""
        with self.lock:
            if device.driver:
                return
            self.set_driver(device, "usb")

    def set_driver(self, device: Plugged, name: str) -> None:
        """Bind a driver to the device as a whole."""
        with self.lock:
            device.driver = name
            device.folder.link("driver", relative(f"/bus/usb/drivers/{name}", device.path))
            self.root.folder(f"/bus/usb/drivers/{name}").link(
                device.busid, relative(device.path, f"/bus/usb/drivers/{name}")
            )
            self.emit("bind", device.path, "usb", devtype="usb_device", busid=device.busid)
            if name == "usb" and device.authorized:
                self._configure(device)

    def drop_driver(self, device: Plugged) -> None:
        """Unbind the device's driver, if any."""
        with self.lock:
            if not device.driver:
                return
            self._unconfigure(device)
            self.root.folder(f"/bus/usb/drivers/{device.driver}").remove(device.busid)
            device.folder.remove("driver")
            device.driver = ""
            self.emit("unbind", device.path, "usb", devtype="usb_device", busid=device.busid)

    def _configure(self, device: Plugged) -> None:
        devices = self.root.folder("/bus/usb/devices")
        for number, interface in enumerate(device.description.interfaces):
            name = f"{device.busid}:1.{number}"
            path = f"{device.path}/{name}"
            folder = device.folder.folder(name)
            for attribute, value in (
                ("bInterfaceNumber", f"{number:02x}"),
                ("bAlternateSetting", " 0"),
                ("bNumEndpoints", "01"),
                ("bInterfaceClass", f"{interface.class_:02x}"),
                ("bInterfaceSubClass", f"{interface.subclass:02x}"),
                ("bInterfaceProtocol", f"{interface.protocol:02x}"),
                ("uevent", f"DEVTYPE=usb_interface\nDRIVER={interface.driver}"),
            ):
                folder.attribute(attribute, value)
            if interface.label:
                folder.attribute("interface", text(interface.label) + b"\n")
            folder.link("subsystem", relative("/bus/usb", path))
            devices.link(name, relative(path, "/bus/usb/devices"))
            self.emit("add", path, "usb", devtype="usb_interface", busid=device.busid)
            if not interface.driver:
                continue
            driver = self.root.folder(f"/bus/usb/drivers/{interface.driver}")
            folder.link("driver", relative(f"/bus/usb/drivers/{interface.driver}", path))
            driver.link(name, relative(path, f"/bus/usb/drivers/{interface.driver}"))
            for node in build_nodes(folder, device.description, interface, self._numbers):
                device.names.append(node.name)
                self.emit(
                    "add",
                    f"{path}/{node.path}",
                    node.subsystem,
                    devname=node.name,
                    busid=device.busid,
                )

    def _unconfigure(self, device: Plugged) -> None:
        devices = self.root.folder("/bus/usb/devices")
        for name in device.names:
            self._numbers.release(name)
            self.emit("remove", device.path, "", devname=name, busid=device.busid)
        device.names.clear()
        for number, interface in enumerate(device.description.interfaces):
            name = f"{device.busid}:1.{number}"
            if name not in device.folder.children:
                continue
            device.folder.remove(name)
            devices.remove(name)
            if interface.driver:
                self.root.folder(f"/bus/usb/drivers/{interface.driver}").remove(name)
            path = f"{device.path}/{name}"
            self.emit("remove", path, "usb", devtype="usb_interface", busid=device.busid)

    def _authorize(self, device: Plugged, data: bytes) -> None:
        self.passing("authorize", device.busid)
        with self.lock:
            wanted = data.strip() != b"0"
            if wanted == device.authorized:
                return
            device.authorized = wanted
            self._unconfigure(device)
            if wanted and device.driver == "usb":
                self._configure(device)
            self.emit("change", device.path, "usb", devtype="usb_device", busid=device.busid)

    def named(self, data: bytes) -> Plugged:
        """The device whose bus id was written; ENODEV. As in the kernel one newline is ignored."""
        name = data.decode("utf-8", "replace").removesuffix("\n")
        with self.lock:
            if name not in self.devices:
                raise fault(errno.ENODEV)
            return self.devices[name]

    def _bind(self, driver: str, data: bytes) -> None:
        self.passing("bind", self.named(data).busid)
        device = self.named(data)
        with self.lock:
            if device.driver:
                raise fault(errno.EBUSY)
            if driver == "usb":
                self.set_driver(device, "usb")
            elif driver != "usbip-host" or not any(ask(device) for ask in self.probes):
                raise fault(errno.ENODEV)

    def _unbind(self, driver: str, data: bytes) -> None:
        self.passing("unbind", self.named(data).busid)
        device = self.named(data)
        with self.lock:
            if device.driver != driver:
                raise fault(errno.ENODEV)
            if driver == "usbip-host":
                for hook in (*self.on_unbind, *self.on_unplug):
                    hook(device)
            self.drop_driver(device)

    def _drivers_probe(self, data: bytes, _: int) -> None:
        self.passing("probe", self.named(data).busid)
        device = self.named(data)
        self.probe(device)

    # --- modules -------------------------------------------------------------------------

    def _modprobe(self, data: bytes, _: int) -> None:
        self.load_module(data.decode("ascii", "replace"))

    def load_module(self, name: str) -> None:
        """What modprobe does; ENOENT for a module that is not there."""
        name = name.replace("-", "_")
        self.passing("modprobe", name)
        with self.lock:
            if name in self.modules:
                return
            if name in self.missing_modules or name not in self.loaders:
                raise fault(errno.ENOENT)
            self.modules.add(name)
            self.root.folder(f"/module/{name}").attribute("initstate", "live")
            self.loaders[name]()
