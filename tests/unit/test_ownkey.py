# SPDX-License-Identifier: GPL-3.0-or-later
"""The daemon's own key: made once, root's alone, and never replaced by a new one unasked."""

from __future__ import annotations

import base64
import os
import stat
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from unit.test_signer import login, request

from usbipsshd.ownkey import Key, KeyTrouble, public_blob
from usbipsshd.signer import FAILURE, Signer


def made(folder: Path) -> Key:
    key = Key(folder)
    key.load()
    return key


def _rsa(_: bytes) -> bytes:
    return rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )


def _with_passphrase(text: bytes) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "key"
        path.touch(0o600)
        path.write_bytes(text)
        subprocess.run(["ssh-keygen", "-q", "-p", "-N", "secret", "-f", path], check=True)
        return path.read_bytes()


def test_it_is_made_once_and_only_root_reads_it(tmp_path: Path) -> None:
    first, again = made(tmp_path), made(tmp_path)
    assert first.line == again.line
    assert "\n" not in first.line
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()}
    assert modes == {"id_ed25519": 0o600, "id_ed25519.pub": 0o644}


def test_openssh_reads_it_and_we_read_openssh_s(tmp_path: Path) -> None:
    ours = made(tmp_path)
    out = subprocess.check_output(["ssh-keygen", "-y", "-f", tmp_path / "id_ed25519"], text=True)
    assert out.split()[:2] == ours.line.split(" ")[:2]
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "site key", "-f",
         theirs / "id_ed25519"], check=True,
    )  # fmt: skip
    assert made(theirs).line == (theirs / "id_ed25519.pub").read_text().rstrip("\n")


@pytest.mark.parametrize(
    "line", [None, "", "\n", "ssh-rsa AAAA x", "ssh-ed25519", "ssh-ed25519 AAAA", "ssh-ed25519 !",
             "ssh-ed25519 " + base64.b64encode(b"x" * 51).decode() + " x", "\xff\xfe"],
)  # fmt: skip
def test_the_file_for_people_is_made_anew_where_it_does_not_fit(
    tmp_path: Path, line: str | None
) -> None:
    key = made(tmp_path)
    public = tmp_path / "id_ed25519.pub"
    if line is None:
        public.unlink()
    else:
        public.write_text(line, encoding="latin-1")
    again = made(tmp_path)
    assert again.blob == key.blob
    assert again.line == key.line
    assert public.read_text() == key.line + "\n"


def _cut(text: bytes) -> bytes:
    return text[:-60]


def _changed(text: bytes) -> bytes:
    lines = text.splitlines()
    raw = bytearray(base64.b64decode(b"".join(lines[1:-1])))
    # The private key ends with a copy of the public one.
    raw[raw.rindex(bytes(raw[62:94])) + 5] ^= 1
    return b"\n".join([lines[0], base64.b64encode(raw), lines[-1]])


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "nonsense": lambda _: b"nonsense",
    "begin only": lambda text: text.splitlines()[0],
    "cut short": _cut,
    "a changed byte": _changed,
    "zeros": lambda text: b"\0" * len(text),
    "rsa": _rsa,
    "a passphrase": _with_passphrase,
    "nothing between": lambda text: text.splitlines()[0] + b"\n" + text.splitlines()[-1],
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_one_is_told_and_left_alone(tmp_path: Path, kind: str) -> None:
    key = made(tmp_path)
    path = tmp_path / "id_ed25519"
    damaged = DAMAGE[kind](path.read_bytes())
    path.write_bytes(damaged)
    with pytest.raises(KeyTrouble, match="is damaged; put it back"):
        made(tmp_path)
    assert path.read_bytes() == damaged
    # One that was loaded before has no signature to give then, and nothing worse happens.
    if kind != "a changed byte":
        answer = Signer([key], "pi").answer(request(key.blob, login(key.blob)))
        assert answer == bytes([FAILURE])


def test_every_cut_and_every_changed_byte_is_no_crash(tmp_path: Path) -> None:
    made(tmp_path)
    text = (tmp_path / "id_ed25519").read_bytes()
    whole = public_blob(text)
    for at in range(len(text)):
        assert public_blob(text[:at]) in (b"", whole)
        changed = bytearray(text)
        changed[at] ^= 0x41
        public_blob(bytes(changed))


def test_one_that_others_could_read_is_closed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = made(tmp_path)
    path = tmp_path / "id_ed25519"
    path.chmod(0o644)
    assert made(tmp_path).line == key.line
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "could be read by others (mode 644)" in caplog.text


def test_one_of_somebody_else_s_is_not_used(tmp_path: Path) -> None:
    made(tmp_path)
    os.chown(tmp_path / "id_ed25519", 61001, -1)
    with pytest.raises(KeyTrouble, match="belongs to somebody else"):
        made(tmp_path)


def test_what_is_no_file_is_not_followed(tmp_path: Path) -> None:
    key = made(tmp_path)
    path = tmp_path / "id_ed25519"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to("elsewhere")
    with pytest.raises(KeyTrouble, match="cannot be read"):
        made(tmp_path)
    path.unlink()
    # A link that leads nowhere is no reason to make one at its end.
    path.symlink_to(tmp_path / "planted")
    with pytest.raises(KeyTrouble):
        made(tmp_path)
    assert not (tmp_path / "planted").exists()
    path.unlink()
    path.mkdir()
    with pytest.raises(KeyTrouble, match="is no file"):
        made(tmp_path)
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(KeyTrouble, match="is no file"):
        made(tmp_path)
    path.unlink()
    (tmp_path / "elsewhere").rename(path)
    assert made(tmp_path).line == key.line


def test_a_full_disk_leaves_no_half_of_one(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", folder], check=True)
    try:
        filler = folder / "filler"
        with pytest.raises(OSError, match="No space"):
            filler.write_bytes(b"x" * (1 << 20))
        with pytest.raises(KeyTrouble, match="cannot be written: No space left on device"):
            made(folder)
        assert [p.name for p in folder.iterdir()] == ["filler"]
        filler.unlink()
        key = made(folder)
        # Full again, and the file for people is missing: it goes on without.
        (folder / "id_ed25519.pub").unlink()
        with pytest.raises(OSError, match="No space"):
            filler.write_bytes(b"x" * (1 << 20))
        assert made(folder).line == key.line
        assert sorted(p.name for p in folder.iterdir()) == ["filler", "id_ed25519"]
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    with pytest.raises(KeyTrouble, match="cannot be made"):
        (tmp_path / "file").touch()
        made(tmp_path / "file/below")
