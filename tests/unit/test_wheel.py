"""A wheel built from the clone: it has every file, and what it installs works in a folder of the user's own."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from email import message_from_bytes
from pathlib import Path
from zipfile import ZipFile

import pytest

import zslx
from zslx.places import ROOT

PACKAGES = ("analysis", "interventions", "sweeps", "zslx")
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
PLUGIN = """
from dataclasses import dataclass

from zslx import Intervention, setting


@dataclass(frozen=True)
class Steady(Intervention):
    \"\"\"The learning rate times a factor.\"\"\"

    name = "{name}"

    factor: float = setting(0.5, "on the learning rate", low=0.0, high=2.0)

    def lr_factor(self, run, state):
        return self.factor
"""
THEIRS = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "their-methods"
version = "1.0"

[project.entry-points."zslx.interventions"]
theirs = "their_methods:Steady"

[tool.setuptools]
packages = ["their_methods"]
"""


def build(project: Path, out: Path) -> Path:
    """The wheel of a project, by its build backend, without the network."""
    command = [sys.executable, "-W", "ignore", "-c", BUILD, str(out)]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return out / done.stdout.split()[-1]


def tracked(*folders: str) -> list[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *folders]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("no git clone: which files belong to it is not known")
    return [name for name in done.stdout.splitlines() if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that the clone stays clean."""
    clone, out = tmp_path_factory.mktemp("clone"), tmp_path_factory.mktemp("wheel")
    for name in tracked(*PACKAGES, "pyproject.toml", "README.md", "LICENSE"):
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, clone / name)
    return build(clone, out)


@pytest.mark.medium
def test_the_wheel_has_every_file_of_the_packages(wheel: Path):
    with ZipFile(wheel) as archive:
        there = set(archive.namelist())
        [metadata] = [name for name in there if name.endswith(".dist-info/METADATA")]
        found = message_from_bytes(archive.read(metadata))
    assert not set(tracked(*PACKAGES)) - there
    assert {name.partition("/")[0] for name in there} == {*PACKAGES, metadata.partition("/")[0]}
    assert found["Version"] == zslx.__version__ and found["Requires-Python"] == ">=3.11"


def test_the_version_stands_in_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "version" not in project and project["dynamic"] == ["version"]
    assert not re.search(r"^version:", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.slow
def test_an_installed_wheel_sweeps_plugins_in_the_working_directory(wheel: Path, tmp_path: Path):
    """In an environment that has the dependencies and no clone: a plugin file, a plugin package, a sweep, a report."""
    if importlib.util.find_spec("ensurepip") is None:
        pytest.skip("this Python has no ensurepip: no environment with pip can be made")
    theirs, home = tmp_path / "theirs", tmp_path / "bare"
    (theirs / "their_methods").mkdir(parents=True)
    (theirs / "pyproject.toml").write_text(THEIRS)
    (theirs / "their_methods" / "__init__.py").write_text(PLUGIN.format(name="theirs"))
    venv.create(home, with_pip=True)
    bare = {k: v for k, v in os.environ.items() if not k.startswith(("ZSLX_", "RAY_", "WANDB_", "PYTHON", "PYTEST_"))}
    bare |= {"ZSLX_CACHE": str(tmp_path / "cache"), "PATH": f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    folder = tmp_path / "work"
    folder.mkdir()

    def run(*command: str | Path) -> str:
        done = subprocess.run(command, cwd=folder, env=bare, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    python, command = home / "bin" / "python", home / "bin" / "zslx"
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel, build(theirs, tmp_path))
    # The dependencies are those of this environment. Its own .pth files, by which a clone is found, are not followed.
    [site] = (home / "lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (folder / "plugins").mkdir()
    (folder / "plugins" / "mine.py").write_text(PLUGIN.format(name="mine"))

    assert str(home) in run(python, "-c", "import zslx, sweeps; print(zslx.__file__)")
    assert run(command, "--version") == f"{zslx.__version__}\n"
    assert run(command, "interventions", "show", "mine").startswith("mine (plugin)")
    planned = run(command, "sweep", "pcgrad", "--preset", "smoke", "--dry-run")
    assert "pcgrad/0.1M/0" in planned and "missing" in planned and not (folder / "results").exists()
    options = ["--preset", "smoke", "--sizes", "0.1M", "--seeds", "1", "--steps", "30", "--wandb", "off"]
    run(command, "sweep", "pcgrad,mine,theirs", *options)
    compared = run(command, "compare", "results")
    assert all(name in compared for name in ("baseline", "pcgrad", "mine", "theirs"))
    assert len(list((folder / "results" / "trials").glob("[0-9a-f]*"))) == 4
    assert list((folder / "results").glob("*.html"))
    code = "import zslx; print(*zslx.load_study('results').trials['status'])"
    assert run(python, "-c", code).split() == ["finished"] * 4
