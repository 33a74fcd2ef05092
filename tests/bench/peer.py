# SPDX-License-Identifier: GPL-3.0-or-later
"""``python3 peer.py KIND SOCKET``: listens there and serves as the stub remote's devices do."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from integration.peers import serve

with socket.socket(socket.AF_UNIX) as listener:
    listener.bind(sys.argv[2])
    listener.listen()
    print("ready", flush=True)
    while True:
        serve(sys.argv[1], listener.accept()[0])
