"""docs/write-an-intervention.md, executed as written: every block in order, in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from zslx.places import ROOT

GUIDE = ROOT / "docs" / "write-an-intervention.md"
BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


FAMILIES = "## 6. The other families"  # minutes: a worked example of each


def blocks(*, families: bool | None = None) -> list[tuple[str, str, str]]:
    """(language, file or nothing, text) of every code block; of the section on families only, or of all others."""
    sections = re.split(r"^(?=## )", GUIDE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sum(section.startswith(FAMILIES) for section in sections) == 1
    chosen = (s for s in sections if families is None or s.startswith(FAMILIES) == families)
    return [block for section in chosen for block in BLOCK.findall(section)]


def test_every_block_is_one_that_is_run():
    text = GUIDE.read_text(encoding="utf-8")
    assert text.count("```") == 2 * len(blocks()) > 10
    assert {language for language, _, _ in blocks()} == {"bash", "python"}
    assert all(path.startswith("plugins/") or not path for language, path, _ in blocks() if language == "python")


@pytest.mark.medium
def test_the_guide_runs_as_written(cache: Path, tmp_path: Path):
    printed = run(blocks(families=False), cache, tmp_path)
    assert "rarity: passes" in printed["interventions check rarity"]
    assert "times the plain step" in printed["interventions bench rarity"]
    assert "rarity" in printed["compare results"]
    assert list((tmp_path / "results" / "studies").glob("*/study.json"))


@pytest.mark.slow
def test_the_worked_examples_of_the_families_run_as_written(cache: Path, tmp_path: Path):
    (tmp_path / "plugins").mkdir()
    printed = run(blocks(families=True), cache, tmp_path)
    assert all("passes" in out for name, out in printed.items() if name.startswith("interventions check"))


def run(some: list[tuple[str, str, str]], cache: Path, folder: Path) -> dict[str, str]:
    """Run the blocks in order; what each command printed, by its first words."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("ZSLX_", "RAY_", "WANDB_", "PYTEST_"))}
    environment |= {"ZSLX_CACHE": str(cache), "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    printed, previous = {}, ""
    for language, path, code in some:
        if language == "python":
            if path:
                target = folder / path
                if "--family" in previous:  # what the command wrote is what the guide shows
                    assert target.read_text() == code
                target.write_text(code)
                continue
            command = [sys.executable, "-c", code]
        else:
            command = ["bash", "-euo", "pipefail", "-c", code]
        previous = code
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
        printed[" ".join(code.split()[1:4])] = done.stdout
    return printed
