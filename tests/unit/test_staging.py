# SPDX-License-Identifier: GPL-3.0-or-later
"""What is put below another prefix leads to nothing below the usual ones."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
ELSEWHERE = re.compile(r"/usr/(local/)?(sbin|bin|lib|libexec)/usbipss\w+")


@pytest.mark.parametrize("prefix", ["/usr", "/opt/made-up"])
def test_every_path_of_ours_is_below_the_prefix(tmp_path: Path, prefix: str) -> None:
    printed = subprocess.check_output(
        ["tools/stage-system", tmp_path, prefix], cwd=CHECKOUT, text=True
    )
    files = {f"/{f.relative_to(tmp_path)}" for f in tmp_path.rglob("*") if f.is_file()}
    assert set(printed.split()) == files
    for name in files:
        text = (tmp_path / name.lstrip("/")).read_text()
        wrong = {m[0] for m in ELSEWHERE.finditer(text) if not m[0].startswith(f"{prefix}/")}
        assert not wrong, name
    profile = (tmp_path / "etc/apparmor.d/usbipsshd").read_text()
    assert profile.count(f"  {prefix}/lib/usbipsshd/** mr,") == 2
