# SPDX-License-Identifier: GPL-3.0-or-later
"""The translations: complete, with the same placeholders, and used."""

from __future__ import annotations

import gettext
import string
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from usbipssh_tray import text
from usbipssh_tray.dialogs.forms import mnemonic

CHECKOUT = Path(__file__).resolve().parents[2]
PO = CHECKOUT / "tray/po"
LANGUAGES = sorted(path.stem for path in PO.glob("*.po"))
# The letters of one dialog are one set.
LETTERS = [
    {"&Address", "&Name", "The user becomes root with &sudo, without a password", "&Cancel",
     "A&dd", "Copy &line", "Copy &key"},
    {"&No", "&Trust it"},
]  # fmt: skip


def tool(*arguments: str | Path) -> None:
    done = subprocess.run(
        arguments, cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("locale")
    tool("tools/translations", "compile", folder)
    return folder


def catalog(compiled: Path, language: str) -> Mapping[str, str]:
    """Original to translation; several for what has a plural."""
    found = text.translations(compiled, [language])
    assert isinstance(found, gettext.GNUTranslations)
    table: dict[str | tuple[str, int], str] = vars(found)["_catalog"]
    return {
        key if isinstance(key, str) else f"{key[0]}\0{key[1]}": value
        for key, value in table.items()
        if key
    }


def fields(words: str) -> list[str]:
    """The placeholders."""
    return sorted(name for _, name, _, _ in string.Formatter().parse(words) if name is not None)


def test_german_and_french_are_there() -> None:
    assert LANGUAGES == ["de", "fr"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_text_is_missing_or_unsure(tmp_path: Path, language: str) -> None:
    """To mend it: tools/translations update, then write what is empty in tray/po."""
    template = tmp_path / "tray.pot"
    tool("tools/translations", "extract", template)
    tool("msgcmp", PO / f"{language}.po", template)
    assert "#~" not in (PO / f"{language}.po").read_text()


@pytest.mark.parametrize("language", LANGUAGES)
def test_placeholders_agree(compiled: Path, language: str) -> None:
    texts = catalog(compiled, language)
    assert len(texts) > 100
    for original, translated in texts.items():
        assert fields(translated) == fields(original.partition("\0")[0]), original


@pytest.mark.parametrize("language", ["en", *LANGUAGES])
def test_the_letters_of_a_dialog_are_distinct(compiled: Path, language: str) -> None:
    chosen = text.translations(compiled, [language])
    for dialog in LETTERS:
        letters = []
        for original in dialog:
            words, place = mnemonic(chosen.gettext(original))
            assert place >= 0, original
            assert words[place].isascii(), original
            letters.append(words[place].lower())
        assert len(set(letters)) == len(letters), letters


def test_the_environment_chooses_the_language(compiled: Path) -> None:
    program = "from usbipssh_tray.text import _, ngettext\nprint(_('Quit'))\n"
    program += "print(ngettext('{n} attached', '{n} attached', 2).format(n=2))"
    said = subprocess.run(
        [sys.executable, "-c", program],
        env={
            "PYTHONPATH": str(CHECKOUT),
            "TEXTDOMAINDIR": str(compiled),
            "LC_ALL": "C.UTF-8",
            "LANGUAGE": "fr:de",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.split("\n")[:2] == ["Quitter", "2 connectés"]
