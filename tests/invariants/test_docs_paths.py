"""Files and modules that documents, docstrings and comments name are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = "zslx|interventions|sweeps|analysis|benchmarks"
FILE = re.compile(rf"(?<![\w/.<{{*-])((?:{PACKAGES}|tests|docs)/[\w/-]+\.(?:py|md))\b")
MODULE = re.compile(rf"^\s*(?:from|python -m) ((?:{PACKAGES})(?:\.[a-z_]+)+)\b", re.MULTILINE)
HISTORY = {"CHANGELOG.md"}  # names what was there at the time


def documents() -> list[str]:
    folders = [*PACKAGES.split("|"), "tests", "docs"]
    files = [*ROOT.glob("*.md"), *(f for folder in folders for f in (ROOT / folder).rglob("*.*"))]
    names = {file.relative_to(ROOT).as_posix() for file in files if file.suffix in (".py", ".md")}
    return sorted(names - HISTORY)


@pytest.mark.parametrize("name", documents())
def test_what_is_named_exists(name: str) -> None:
    text = (ROOT / name).read_text()
    missing = [file for file in FILE.findall(text) if not (ROOT / file).is_file()]
    for module in MODULE.findall(text):
        place = ROOT / module.replace(".", "/")
        if not (place.is_dir() or place.with_suffix(".py").is_file()):
            missing.append(module)
    assert not missing, f"{name} names what is not there: {', '.join(missing)}"
