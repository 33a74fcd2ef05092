# SPDX-License-Identifier: GPL-3.0-or-later
"""The disks that the virtual machines boot from, built from Debian's packages and cached.

Two steps each: a tar of the bare system (rarely changes), and the image made from it (follows
the testbed's own settings and, for desk, the project's package). Names carry a hash of all that
went in, so a stale image is never used.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from . import packages, systems
from .host import CHECKOUT, cache_folder, locked, run, step
from .kernel import Kernel, kernel

IMAGE_SIZE = "1200M"
_MKE2FS = "mke2fs -q -F -t ext4 -m 0"


@dataclass(frozen=True)
class Images:
    """All that is needed to boot the pair. Every file is only read."""

    kernel: Kernel
    pi: Path
    desk: Path
    stick: Path
    key: Path


def _digest(*parts: bytes | str) -> str:
    whole = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        whole.update(b"%d:" % len(data) + data)
    return whole.hexdigest()[:16]


def _recipe() -> bytes:
    """The text of everything that decides what an image is made of."""
    here = Path(__file__).parent
    files = [here / "images.py", here / "systems.py", *sorted((here / "files").iterdir())]
    return b"\0".join(file.read_bytes() for file in files)


def login_key() -> Path:
    """The ssh key with which the tests' host logs in to both machines; made at the first use."""
    path = cache_folder() / "key"
    with locked(cache_folder() / "key.lock"):
        if not path.exists():
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "testbed", "-f", path])
    return path


def project_package() -> Path | None:
    """The newest usbipsshd package under dist/, if one was built."""
    found = sorted((CHECKOUT / "dist").glob("usbipsshd_*.deb"), key=lambda p: p.stat().st_mtime)
    return found[-1] if found else None


def _base(system: systems.System, sources: str) -> Path:
    """A tar of the bare system, nothing of the testbed in it."""
    options = systems.APT_OPTIONS + packages.proxy_options()
    names = ",".join(system.packages)
    cache = cache_folder()
    tar = cache / f"base-{system.name}-{_digest(sources, names, *options)}.tar"
    with locked(cache / f"base-{system.name}.lock"):
        if tar.exists():
            return tar
        with step(f"installing the bare system of {system.name}"):
            new = cache / f"base-{system.name}.new.tar"
            command: list[str | Path] = [
                *systems.AMONG_THEMSELVES,
                "--mount-proc",
                "mmdebstrap",
                "--mode=root",
                "--variant=minbase",
                "--format=tar",
                "--skip=cleanup/apt",
                f"--include={names}",
                *(f"--aptopt={line.rstrip(';')}" for line in options),
                *(f"--dpkgopt={line}" for line in systems.DPKG_OPTIONS),
                packages.SUITE,
                new,
                "-",
            ]
            run(command, data=sources.encode())
            new.rename(tar)
    return tar


def _image(name: str, key: str, base: Path, fill: Callable[[Path], None]) -> Path:
    """An ext4 image of the base after `fill` has worked on the unpacked tree."""
    cache = cache_folder()
    image = cache / f"{name}-{key}.img"
    with locked(cache / f"{name}.lock"):
        if image.exists():
            return image
        with step(f"making the image of {name}"), tempfile.TemporaryDirectory(dir=cache) as scratch:
            tree = Path(scratch) / "tree"
            tree.mkdir()
            run(["tar", "-x", "--numeric-owner", "-f", base, "-C", tree])
            fill(tree)
            new = cache / f"{name}.new.img"
            new.unlink(missing_ok=True)
            filesystem = f"{_MKE2FS} -O ^has_journal,^metadata_csum".split()
            run([*filesystem, "-d", tree, new, IMAGE_SIZE])
            for old in cache.glob(f"{name}-*.img"):
                _forget(old)
            new.rename(image)
    return image


def _forget(image: Path) -> None:
    """Remove an image that has been replaced; a running machine keeps the file it has open."""
    image.unlink(missing_ok=True)


def _stick() -> Path:
    """The raw disk of the USB stick: ext4, with files whose content is always the same."""
    cache = cache_folder()
    image = cache / f"stick-{_digest(repr(systems.stick_files().keys()), _recipe())}.raw"
    with locked(cache / "stick.lock"):
        if image.exists():
            return image
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            for name, data in systems.stick_files().items():
                (Path(scratch) / name).write_bytes(data)
            new = cache / "stick.new.raw"
            new.unlink(missing_ok=True)
            filesystem = f"{_MKE2FS} -L {systems.STICK_LABEL}".split()
            run([*filesystem, "-d", scratch, new, systems.STICK_SIZE])
            for old in cache.glob("stick-*.raw"):
                _forget(old)
            new.rename(image)
    return image


def build(*, package: Path | None = None) -> Images:
    """Everything that is needed to boot the pair, built as far as the cache lacks it.

    `package` is the project's .deb for desk; without it desk gets the package's dependencies
    only, so that the project's files can be copied in.
    """
    sources = packages.sources()
    key = login_key()
    public = key.with_suffix(".pub").read_text()
    common = (_recipe(), public, sources)

    with ThreadPoolExecutor() as pool:
        kernel_job = pool.submit(kernel)
        stick_job = pool.submit(_stick)

        def pi() -> Path:
            base = _base(systems.PI, sources)
            core = kernel_job.result()
            name = _digest(*common, base.name, core.image.parent.name)
            return _image(
                "pi", name, base, lambda tree: systems.fill_pi(tree, core.modules, public)
            )

        def desk() -> Path:
            base = _base(systems.DESK, sources)
            core = kernel_job.result()
            deb = package.read_bytes() if package else b"without"
            name = _digest(*common, base.name, core.image.parent.name, deb)
            return _image(
                "desk" if package else "bare-desk",
                name,
                base,
                lambda tree: systems.fill_desk(tree, core.modules, public, package),
            )

        pi_job = pool.submit(pi)
        desk_job = pool.submit(desk)
        return Images(
            kernel_job.result(), pi_job.result(), desk_job.result(), stick_job.result(), key
        )


def forget_everything() -> None:
    """Empty the cache (images, downloads, the key)."""
    shutil.rmtree(cache_folder())
