"""What `zslx interventions new NAME` writes: a plugin that runs at once, and its test."""

from __future__ import annotations

import importlib.util
import keyword
import re
import sys
from pathlib import Path

from zslx.intervention.discovery import discover
from zslx.intervention.registry import RESERVED
from zslx.places import plugin_folders

NAME = re.compile(r"[a-z][a-z0-9_]{0,59}")

TEMPLATES = Path(__file__).parent / "templates"
FAMILIES = tuple(sorted(p.stem for p in TEMPLATES.glob("*.py") if p.stem != "__init__"))

TEST = '''\
"""What zslx asks of every intervention, asked of my_idea: pytest TEST_FILE"""

import os
from pathlib import Path

import pytest

from zslx.testing import CHECKS, Subject

os.environ.setdefault("ZSLX_PLUGINS", str(Path(__file__).parent))


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    return Subject("my_idea", tmp_path_factory.mktemp("my_idea"))


@pytest.mark.parametrize("check", CHECKS)
def test_my_idea(check, subject):
    check(subject)


# Add what your method claims: weights worked out by hand on a small example, a limit, a symmetry.
'''


def write(name: str, folder: Path | None = None, family: str = "token_weighting") -> list[Path]:
    """Write the plugin NAME.py, the template of its family, and its test; the paths.

    ValueError for a bad or taken name, an unknown family or an existing file.
    """
    if family not in FAMILIES:
        raise ValueError(f"family {family!r}: allowed are {', '.join(FAMILIES)}")
    if why := unfit(name):
        raise ValueError(
            f"{name!r} is no name for an intervention: {why}; allowed are lower-case letters, digits and _, "
            "a letter first, such as my_idea"
        )
    if places := discover().get(name):
        raise ValueError(f"intervention {name!r} exists: {places[0].where}; choose another name")
    folder = plugin_folders()[0] if folder is None else folder.resolve()
    plugin = (TEMPLATES / f"{family}.py").read_text(encoding="utf-8")
    texts = {folder / f"{name}.py": plugin, folder / f"test_{name}.py": TEST}
    for path in texts:
        if path.exists():
            raise ValueError(f"{path} exists: choose another name, or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    words = {"my_idea": name, "MyIdea": class_name(name), "TEST_FILE": f"{folder.name}/test_{name}.py"}
    for path, template in texts.items():
        for word, value in words.items():
            template = template.replace(word, value)
        with path.open("x", encoding="utf-8") as file:
            file.write(template)
    return list(texts)


def unfit(name: str) -> str:
    """Why a plugin of this name could not work; empty if it could."""
    if not NAME.fullmatch(name):
        return "it has other characters, or more than 60"
    if keyword.iskeyword(name):
        return "it is a Python keyword"
    if name.startswith("test_"):
        return "files test_... are tests"
    if name in RESERVED:
        return f"it is {RESERVED[name]}"
    if importable(name):  # pytest puts the folder of a plugin's test first on the path
        return f"{name}.py would hide the Python module {name}"
    return ""


def importable(name: str) -> bool:
    if name in sys.stdlib_module_names or name in sys.modules:
        return True
    spec = importlib.util.find_spec(name)
    return bool(spec and spec.origin)  # any folder is a namespace package, and has none


def class_name(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_") if part)
