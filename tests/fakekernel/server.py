# SPDX-License-Identifier: GPL-3.0-or-later
"""The control socket: JSON lines by which tests steer a made-up machine."""

from __future__ import annotations

import json
import queue
import socket
import socketserver
import threading
from pathlib import Path
from typing import Any

from fakekernel.devices import device_from_json
from fakekernel.machine import Machine
from fakekernel.usbip_host import UsbipHost
from fakekernel.vhci import Vhci


class Control:
    """Carries out requests."""

    def __init__(self, machine: Machine, host: UsbipHost, vhci: Vhci) -> None:
        self.machine = machine
        self._host = host
        self._vhci = vhci

    def carry_out(self, request: dict[str, Any]) -> Any:
        """Do what a request says; the errors are OSError, KeyError, ValueError."""
        operation = request.pop("op")
        method = getattr(self, f"_op_{operation}")
        return method(**request)

    def _op_plug(self, busid: str, device: dict[str, Any]) -> None:
        self.machine.plug(busid, device_from_json(device))

    def _op_unplug(self, busid: str) -> None:
        self.machine.unplug(busid)

    def _op_fail(self, operation: str, code: str, times: int) -> None:
        self.machine.set_fault(operation, code, times)

    def _op_delay(self, operation: str, seconds: float) -> None:
        self.machine.set_delay(operation, seconds)

    def _op_answer(self, busid: str, answer: str, told: dict[str, Any] | None) -> None:
        self._host.set_answer(busid, answer, told)

    def _op_status(self, busid: str, status: int) -> None:
        self._host.set_status(busid, status)

    def _op_reset(self) -> None:
        self._vhci.reset()
        self.machine.reset()
        self._host.reset()

    def _op_load(self, module: str) -> None:
        self.machine.load_module(module)

    def _op_missing(self, module: str, missing: bool) -> None:
        name = module.replace("-", "_")
        with self.machine.lock:
            (self.machine.missing_modules.add if missing else self.machine.missing_modules.discard)(
                name
            )

    def _op_transfer(self, port: int, size: int) -> int:
        return self._vhci.transfer(port, size)

    def _op_end(self, busid: str) -> None:
        """End an export's connection, as a device does that is reset too often."""
        with self.machine.lock:
            wire = self._host.wires[busid]
        wire.end()

    def _op_state(self) -> dict[str, Any]:
        machine = self.machine
        with machine.lock:
            return {
                "devices": {
                    busid: {
                        "driver": d.driver,
                        "authorized": d.authorized,
                        "configured": d.configured,
                        "virtual": d.bus.virtual,
                        "usbip_status": self._host.status.get(busid, 0),
                        "nodes": list(d.names),
                        "busnum": d.bus.number,
                        "devnum": d.devnum,
                        "path": d.path,
                    }
                    for busid, d in machine.devices.items()
                },
                "matched": self._host.matched,
                "parked": self._host.parked,
                "bound": sorted(self._host.status),
                "connected": sorted(self._host.wires),
                "received": {b: w.bytes_received for b, w in self._host.wires.items()},
                "ports": self._vhci.told(),
                "crashes": list(machine.crashes),
                "log": list(machine.log),
                "modules": sorted(machine.modules),
                "authorized_default": {
                    str(n): b.authorized_default for n, b in machine.buses.items()
                },
            }


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        control: Control = self.server.control  # type: ignore[attr-defined]
        for line in self.rfile:
            request = json.loads(line)
            if request.get("op") == "subscribe":
                self._stream(control.machine)
                return
            try:
                answer: dict[str, Any] = {"ok": control.carry_out(request)}
            except OSError as error:
                answer = {"error": error.strerror or str(error)}
            except Exception as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            self.wfile.write(json.dumps(answer).encode() + b"\n")

    def _stream(self, machine: Machine) -> None:
        events = machine.subscribe()
        gone = threading.Event()

        def watch() -> None:
            self.rfile.read()
            gone.set()

        threading.Thread(target=watch, daemon=True).start()
        try:
            self.wfile.write(b'{"ok": null}\n')
            while not gone.is_set():
                try:
                    event = events.get(timeout=0.2)
                except queue.Empty:
                    continue
                self.wfile.write(json.dumps(event).encode() + b"\n")
        except OSError:
            pass
        finally:
            machine.unsubscribe(events)


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A test that leaves is no error."""


def serve(path: Path, control: Control) -> None:
    """Listen at ``path`` in a thread."""
    server = _Server(str(path), _Handler)
    server.control = control  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()


def is_there(path: Path) -> bool:
    """Whether somebody listens at ``path``."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True
