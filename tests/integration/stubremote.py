# SPDX-License-Identifier: GPL-3.0-or-later
"""A forced command that stands in for the agent where no kernel, not even a made-up one, is wanted.

It speaks the agent's protocol; what it "exports" is one of: an echo, a sink that answers a
byte per MiB, a source of random bytes. The device's number chooses: see ``KINDS``.
``python3 stubremote.py LOGFILE`` notes in LOGFILE what it was asked.
"""

from __future__ import annotations

import os
import re
import socket
import sys
import tempfile
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from integration.peers import serve

KINDS = {"1-1": "echo", "1-2": "sink", "1-3": "source", "1-4": "stall", "1-5": "echo"}
STRANGERS: list[socket.socket] = []
PATIENT = "1-5"
"""Bound only once another device is connected."""


def say(text: str) -> None:
    os.write(1, (text + "\n").encode())


def reach(address: str) -> socket.socket:
    if "/" not in address:
        return socket.create_connection(("127.0.0.1", int(address)))
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(address)
    return sock


def intrude(address: str) -> None:
    """Be there first: silent, with the wrong token, and gone at once; more often than allowed."""
    for _ in range(70):
        STRANGERS.append(reach(address))
        wrong = reach(address)
        wrong.sendall(b"0" * 32 + b"\n")
        assert wrong.recv(1) == b""
        reach(address).close()


def device(tag: str, busid: str) -> None:
    lines = [f"d {busid}"]
    attributes = {
        "busnum": "1", "devnum": busid.split("-")[1], "idVendor": "1d6b", "idProduct": "0104",
        "bcdDevice": "0100", "bDeviceClass": "00", "bDeviceSubClass": "00",
        "bDeviceProtocol": "00", "speed": "480", "product": KINDS[busid], "driver": "usb",
    }  # fmt: skip
    lines += [f"a {name} {value}" for name, value in attributes.items()]
    say("\n".join(f"{tag} {line}" for line in lines))


def main(folder: str) -> None:  # noqa: PLR0912
    log = Path(sys.argv[1]).open("a", buffering=1)  # noqa: SIM115
    sizes = re.findall(r"head -c ([0-9]+)", os.environ.get("SSH_ORIGINAL_COMMAND", ""))
    rest = b""
    while len(rest) < int(sizes[0]):
        rest += os.read(0, 65536)
    buffer = rest[int(sizes[0]) :]
    say("hello 1 0 6.1.0 debian " + (sys.argv[2] if len(sys.argv) > 2 else "perl,bash"))
    held = ""
    while True:
        while b"\n" not in buffer:
            data = os.read(0, 65536)
            if not data:
                log.write("end\n")
                return
            buffer += data
        line, buffer = buffer.split(b"\n", 1)
        text = line.decode()
        if text == "ping":
            say("pong")
            continue
        log.write(text + "\n")
        tag, verb, *arguments = text.split(" ")
        if verb == "list":
            for busid in KINDS:
                device(tag, busid)
        elif verb == "bind":
            if arguments[0] not in KINDS:
                say(f"{tag} fail DeviceNotFound")
                continue
            if arguments[0] == PATIENT:
                held = f"{tag} dir {folder}\n{tag} ok"
                continue
            say(f"{tag} dir {folder}")
        elif verb == "connect":
            busid, _, address, token = arguments
            if "strangers" in sys.argv:
                intrude(address)
            sock = reach(address)
            sock.sendall(token.encode() + b"\n")
            threading.Thread(target=serve, args=(KINDS[busid], sock), daemon=True).start()
        say(f"{tag} ok")
        if verb == "connect" and held:
            say(held)
            held = ""


with tempfile.TemporaryDirectory(prefix="usbipsshd-test.") as made:
    main(made)
