"""`make`: what a user types reaches `zslx` as it was typed, and nothing of it is run by make or the shell."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from zslx.places import ROOT

STUB = """#!{python}
import json, sys
print(json.dumps(sys.argv[1:]))
"""


@pytest.fixture
def make(tmp_path: Path):
    """Runs make in a folder whose `zslx` prints its arguments; returns them."""
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path / name)
    for path in (
        tmp_path / ".tools" / "bin" / "uv",
        tmp_path / ".venv" / "bin" / "zslx",
        tmp_path / ".venv" / ".ready",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(STUB.format(python=sys.executable))
        path.chmod(0o755)

    def run(*words: str, **environment: str) -> list[str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "WANDB"))}
        done = subprocess.run(
            ["make", "-s", *words], cwd=tmp_path, env=kept | environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    return run


def test_the_defaults(make):
    assert make("sweep") == ["sweep", "pcgrad", "--results", "results"]
    assert make("dashboard") == ["dashboard", "results"]
    assert make("sweep", "TENSORBOARD=1", "TUNE_RATE=1")[-2:] == ["--tune-rate", "--tensorboard"]
    assert make("sweep", "SEARCH=8", "HALVING=1")[-3:] == ["--search", "8", "--halving"]
    assert make("report") == ["report", "results"] and make("compare") == ["compare", "results"]


HOSTILE = ['x"; touch F; "', "3; touch F", "$(touch F)", "`touch F`", "$$(shell touch F)", "$(shell touch F)",
           'say "hi"', "cost$5", "a b", "it's", "$HOME", "%", "#no comment", "-x"]  # fmt: skip

NAMES = ["INTERVENTION", "PRESET", "RESULTS", "SIZES", "SEEDS", "STEPS", "SET", "WANDB", "SEARCH", "WRITE_STUDY"]


@pytest.mark.parametrize("value", HOSTILE)
@pytest.mark.parametrize("name", NAMES)
def test_a_setting_arrives_as_typed_and_runs_nothing(make, name: str, value: str, tmp_path: Path):
    given = make("sweep", f"{name}={value}")
    if name == "INTERVENTION":
        assert given[1] == value
    else:
        assert given[given.index(f"--{name.lower().replace('_', '-')}") + 1] == value
    if name == "RESULTS":
        assert make("report", f"RESULTS={value}") == ["report", value]
    assert not (tmp_path / "F").exists()


def test_a_study_file_stands_in_place_of_interventions(make):
    assert make("sweep", "STUDY=a b.toml") == ["sweep", "a b.toml", "--results", "results"]
    with pytest.raises(AssertionError, match="give INTERVENTION or STUDY"):
        make("sweep", "STUDY=a.toml", "INTERVENTION=pcgrad")


def test_a_setting_may_come_from_the_environment(make):
    assert make("sweep", RESULTS="cost$5 'a'", STEPS="20")[-4:] == ["--results", "cost$5 'a'", "--steps", "20"]


def test_a_printed_command_gives_the_same_settings_again(make):
    for value in HOSTILE:
        printed = f"sweep RESULTS={shlex.quote(value)}"
        assert make(*shlex.split(printed)) == make("sweep", f"RESULTS={value}")
