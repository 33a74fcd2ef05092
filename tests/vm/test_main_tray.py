# SPDX-License-Identifier: GPL-3.0-or-later
"""The tray on two real kernels: a person's click brings the stick, another one gives it back."""

from __future__ import annotations

import io
import json
import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from vm.testbed.desk import BUS_NAME, Desk
from vm.testbed.host import CHECKOUT
from vm.testbed.pi import BUSIDS, Pi

pytestmark = pytest.mark.usefixtures("listed")

FOLDER = "/opt/testbed/tray"
# Without the toolkits that these packages bring, and the tray does without.
NEEDED = ("python3-pil", "python3-pystray", "python3-six")
_BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:tmpdir=/tmp</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/><allow own="*"/><allow send_destination="*"/><allow eavesdrop="false"/>
  </policy>
</busconfig>
"""


def needed_files() -> list[Path]:
    """This machine's own files of those packages, and the libraries of their modules."""
    listed = subprocess.check_output(["dpkg", "--listfiles", *NEEDED], text=True).splitlines()
    files = [Path(line) for line in listed if "/dist-packages/" in line]
    files = [file for file in files if file.is_file()]
    modules = [str(file) for file in files if file.suffix == ".so"]
    told = subprocess.check_output(["ldd", *modules], text=True)
    libraries = {Path(found) for found in re.findall(r"=> (/\S+)", told)}
    own = re.compile(r"(libc|libm|libpthread|libdl|librt)\.so")
    return files + sorted(file for file in libraries if not own.match(file.name))


def bundle() -> bytes:
    """A tar of all that is to be in FOLDER."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", dereference=True) as tar:
        for file in needed_files():
            place = "libraries" if ".so" in file.name and "python3" not in str(file) else "python"
            inside = str(file).partition("/dist-packages/")[2] or file.name
            tar.add(file, f"{place}/{inside}")
        for name in ("panel.py", "notifier.py"):
            tar.add(CHECKOUT / "tests/integration" / name, f"python/integration/{name}")
        tar.add(CHECKOUT / "tests/vm/traydriver.py", "traydriver.py")
        config = tarfile.TarInfo("bus.conf")
        config.size = len(_BUS)
        tar.addfile(config, io.BytesIO(_BUS.encode()))
    return made.getvalue()


@pytest.fixture(scope="module", autouse=True)
def installed(desk_of_module: Desk) -> Iterator[None]:
    """The tray's package is on desk."""
    desk = desk_of_module
    packages = sorted((CHECKOUT / "dist").glob("usbipssh-tray_*.deb"))
    assert packages, "there is no dist/usbipssh-tray_*.deb: run `make deb`"
    desk.run("mkdir", "-p", FOLDER)
    desk.run("tar", "-x", "--no-same-owner", "-C", FOLDER, data=bundle(), timeout=120)
    desk.run("sh", "-c", "cat > /tmp/tray.deb", data=packages[-1].read_bytes(), timeout=60)
    desk.run("dpkg", "--force-depends", "--install", "/tmp/tray.deb", timeout=120)
    yield
    desk.run("dpkg", "--purge", "usbipssh-tray", timeout=120)
    desk.run("rm", "-rf", FOLDER, "/tmp/tray.deb")


@pytest.fixture(scope="module")
def desk_of_module(machines: Any) -> Desk:
    desk: Desk = machines.desk
    return desk


def drive(desk: Desk, user: str, what: str) -> dict[str, Any]:
    """A session of ``user``'s with the tray in it; what the driver prints."""
    done = desk.ssh.attempt(
        "runuser", "-u", user, "--", "env", f"PYTHONPATH={FOLDER}/python",
        f"LD_LIBRARY_PATH={FOLDER}/libraries", "LC_ALL=C.UTF-8",
        "dbus-run-session", f"--config-file={FOLDER}/bus.conf", "--",
        "python3", f"{FOLDER}/traydriver.py", what,
        timeout=420,
    )  # fmt: skip
    assert done.code == 0, done.out + done.err
    found: dict[str, Any] = json.loads(done.out.splitlines()[-1])
    assert found["status"] == 0, done.err
    assert "Traceback" not in done.err
    return found


def test_a_click_brings_the_stick_and_another_one_gives_it_back(pi: Pi, desk: Desk) -> None:
    found = drive(desk, "alice", "attach")
    assert found["before"] == []
    (node,) = found["disks"]
    assert found["same"]
    assert "is attached" in found["title"]
    assert f"Copy {node}" in found["rows"]
    assert f"Bus id there: {BUSIDS['stick']}" in found["rows"]
    assert node in found["told"][1]
    # Neither a second word about it, nor one about what was clicked off.
    assert len(found["all"]) == 1
    assert found["after"] == []
    assert pi.driver(BUSIDS["stick"]) == "usb"


def test_who_may_not_is_told_so_once(pi: Pi, desk: Desk) -> None:
    found = drive(desk, "bob", "refused")
    assert "refused" in found["summary"]
    assert f"{BUS_NAME}." in found["body"]
    assert [summary for summary, _body in found["all"]] == [found["summary"]]
    assert pi.driver(BUSIDS["stick"]) == "usb"
