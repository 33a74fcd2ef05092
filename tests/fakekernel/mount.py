# SPDX-License-Identifier: GPL-3.0-or-later
"""The tree as a file system, on FUSE."""

from __future__ import annotations

import errno
import itertools
import os
import stat
import threading
from typing import Any

try:
    import fusepy as fuse  # Debian's python3-fusepy
except ImportError:
    import fuse  # fusepy from elsewhere

from fakekernel.tree import File, Folder, Link


def thread_group(tid: int) -> int:
    """The process that a thread belongs to; FUSE names the thread."""
    try:
        with open(f"/proc/{tid}/status", encoding="ascii", errors="replace") as status:  # noqa: PTH123
            for line in status:
                if line.startswith("Tgid:"):
                    return int(line.split()[1])
    except OSError:
        pass
    return tid


class Mount(fuse.Operations):  # type: ignore[misc]
    """File system calls, answered from a tree."""

    use_ns = True

    def __init__(self, root: Folder, lock: threading.RLock) -> None:
        self._root = root
        self._lock = lock
        self._numbers = itertools.count(1)
        self._open: dict[int, tuple[File, bytes]] = {}

    def run(self, mountpoint: str) -> None:
        """Serve until unmounted or told to end by a signal."""
        fuse.FUSE(
            self,
            mountpoint,
            foreground=True,
            allow_other=True,
            direct_io=True,
            attr_timeout=0,
            entry_timeout=0,
            negative_timeout=0,
            fsname="fakesys",
        )

    def _node(self, path: str) -> Folder | File | Link:
        with self._lock:
            return self._root.find(path)

    def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
        """Answer stat(2)."""
        node = self._node(path)
        if isinstance(node, Folder):
            return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
        if isinstance(node, Link):
            size = len(node.target)
            return {"st_mode": stat.S_IFLNK | 0o777, "st_nlink": 1, "st_size": size}
        return {"st_mode": stat.S_IFREG | node.mode, "st_nlink": 1, "st_size": 4096}

    def readdir(self, path: str, fh: int) -> list[str]:
        """Answer readdir(3)."""
        node = self._node(path)
        if not isinstance(node, Folder):
            raise fuse.FuseOSError(errno.ENOTDIR)
        with self._lock:
            return [".", "..", *node.children]

    def readlink(self, path: str) -> str:
        """Answer readlink(2)."""
        node = self._node(path)
        if not isinstance(node, Link):
            raise fuse.FuseOSError(errno.EINVAL)
        return node.target

    def open(self, path: str, flags: int) -> int:
        """Answer open(2); what is read later is what the attribute holds now."""
        node = self._node(path)
        if not isinstance(node, File):
            raise fuse.FuseOSError(errno.EISDIR)
        access = flags & os.O_ACCMODE
        uid = fuse.fuse_get_context()[0]
        if access != os.O_RDONLY and (node.store is None or uid != 0):
            raise fuse.FuseOSError(errno.EACCES)
        shown = b""
        if access != os.O_WRONLY:
            if node.show is None:
                raise fuse.FuseOSError(errno.EACCES)
            with self._lock:
                shown = node.show()
        with self._lock:
            node.users += 1
        number = next(self._numbers)
        self._open[number] = (node, shown)
        return number

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        """Answer read(2)."""
        return self._open[fh][1][offset : offset + size]

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        """Answer write(2): the attribute's store function decides."""
        node = self._open[fh][0]
        if node.store is None:
            raise fuse.FuseOSError(errno.EACCES)
        node.store(data, thread_group(fuse.fuse_get_context()[2]))
        return len(data)

    def truncate(self, path: str, length: int, fh: int | None = None) -> None:
        """Accept a shell's ``>``."""

    def release(self, path: str, fh: int) -> None:
        """Forget an open file."""
        node, _ = self._open.pop(fh)
        with self._lock:
            node.users -= 1

    def access(self, path: str, amode: int) -> int:
        """Answer access(2): writable where the attribute is."""
        node = self._node(path)
        if isinstance(node, File) and amode & os.W_OK and node.store is None:
            raise fuse.FuseOSError(errno.EACCES)
        return 0

    def statfs(self, path: str) -> dict[str, Any]:
        """Answer statfs(2)."""
        return {"f_bsize": 4096, "f_namemax": 255}
