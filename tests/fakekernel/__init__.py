# SPDX-License-Identifier: GPL-3.0-or-later
"""A kernel's USB and USB/IP side made up for tests: a /sys on FUSE that acts like the real one.

:class:`FakeKernel` starts one machine, with ``usbip-host`` and ``vhci_hcd``; start two
for two machines. Sockets written to it are taken from the writer, and what appears on the
importing machine is what the exporting one says through that socket.
"""

from fakekernel.devices import (
    BLUETOOTH,
    HUB,
    KEYBOARD,
    NETWORK,
    SERIAL_ADAPTER,
    STICK,
    FakeDevice,
    FakeInterface,
)
from fakekernel.handle import EventStream, FakeKernel, FakeKernelError

__all__ = [
    "BLUETOOTH",
    "HUB",
    "KEYBOARD",
    "NETWORK",
    "SERIAL_ADAPTER",
    "STICK",
    "EventStream",
    "FakeDevice",
    "FakeInterface",
    "FakeKernel",
    "FakeKernelError",
]
