# SPDX-License-Identifier: GPL-3.0-or-later
"""Debian's kernel for the virtual machines, with the modules that they can have a use for.

Fewer modules make smaller images, and a faster boot: nothing is loaded that a test never needs.
"""

from __future__ import annotations

import hashlib
import inspect
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from . import initrd, packages
from .host import cache_folder, locked, run, step

FILES = Path(__file__).parent / "files"

# Folders (or files) below kernel/ of the modules' tree; what they depend on comes along.
KEPT = (
    "arch/x86/crypto",
    "crypto",
    "drivers/block/loop",
    "drivers/block/virtio_blk",
    "drivers/bluetooth/btusb",
    "drivers/char/hw_random/virtio",
    "drivers/hid/hid-generic",
    "drivers/hid/usbhid",
    "drivers/input/evdev",
    "drivers/md/dm-crypt",
    "drivers/md/dm-mod",
    "drivers/net/usb/cdc_e",
    "drivers/net/usb/rndis_host",
    "drivers/net/virtio_net",
    "drivers/scsi/sd_mod",
    "drivers/scsi/sg",
    "drivers/usb/class/cdc-acm",
    "drivers/usb/common",
    "drivers/usb/core",
    "drivers/usb/host/xhci",
    "drivers/usb/serial",
    "drivers/usb/storage",
    "drivers/usb/usbip",
    "drivers/virtio",
    "fs/autofs",
    "fs/ext4",
    "fs/fat",
    "fs/fuse",
    "fs/nls/nls_ascii",
    "fs/nls/nls_cp437",
    "fs/nls/nls_iso8859-1",
    "fs/overlayfs",
    "net/packet",
    "net/sched/sch_netem",
    "net/tls",
)


@dataclass(frozen=True)
class Kernel:
    """A kernel to boot: the image, its initrd, and the folder with its modules."""

    release: str
    image: Path
    initrd: Path
    modules: Path


def _copy_modules(source: Path, target: Path) -> None:
    table: set[str] = set()
    depends = initrd.dependencies(source)
    for path in depends:
        if path.removeprefix("kernel/").startswith(KEPT):
            table.update((path, *depends[path]))
    for path in table:
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / path, target / path)
    for file in source.glob("modules.*"):
        if file.name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
            shutil.copyfile(file, target / file.name)


def _build(package: str, target: Path) -> None:
    target.mkdir()
    with tempfile.TemporaryDirectory(dir=target.parent) as name:
        scratch = Path(name)
        packages.unpack(package, scratch / "kernel")
        packages.unpack("busybox-static", scratch / "busybox")
        unpacked = scratch / "kernel"
        (image,) = (unpacked / "boot").glob("vmlinuz-*")
        release = image.name.removeprefix("vmlinuz-")
        shutil.move(image, target / "vmlinuz")
        (target / "release").write_text(release)
        whole = unpacked / "lib/modules" / release
        run(["depmod", "-b", unpacked, release])
        modules = target / "lib/modules" / release
        modules.mkdir(parents=True)
        _copy_modules(whole, modules)
        run(["depmod", "-b", target, release])
        initrd.build(
            target / "initrd",
            init=FILES / "init",
            busybox=scratch / "busybox/bin/busybox",
            modules=modules,
        )


def kernel() -> Kernel:
    """The newest kernel of Debian 12, from the cache if it is there."""
    package = packages.kernel_package()
    recipe = repr(KEPT) + inspect.getsource(initrd) + (FILES / "init").read_text()
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:12]
    cache = cache_folder()
    folder = cache / f"{package}-{digest}"
    with locked(cache / "kernel.lock"):
        if not folder.exists():
            with step(f"unpacking {package}"):
                shutil.rmtree(cache / "kernel.new", ignore_errors=True)
                _build(package, cache / "kernel.new")
                (cache / "kernel.new").rename(folder)
    release = (folder / "release").read_text()
    return Kernel(release, folder / "vmlinuz", folder / "initrd", folder / "lib/modules" / release)
