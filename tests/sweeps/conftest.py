"""Sweeps of tiny trials on a little text, run as a user runs them: the command in a process of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TINY = (
    "data.vocab_size=400 data.batch_size=4 data.seq_len=16 data.heldout_sequences=4 model.d_model=16 "
    "model.n_layers=1 model.n_heads=2 optim.warmup=4 instruments.heldout_points=6 instruments.gradient_sequences=2"
)


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    """Two domains: a few modules of the standard library, and their files' longest lines as prose."""
    folder = tmp_path_factory.mktemp("text")
    library = Path(sysconfig.get_path("stdlib"))
    names = ["argparse", "ast", "calendar", "difflib", "doctest", "inspect", "pdb", "tarfile", "typing", "zipfile"]
    for domain, part in (("code", names[:5]), ("more", names[5:])):
        (folder / domain).mkdir()
        for name in part:
            source = library / f"{name}.py"
            source = source if source.exists() else library / name / "__init__.py"
            lines = source.read_text().splitlines(keepends=True)
            for i in range(4):  # several files a domain, so that the held-out split by file has some
                (folder / domain / f"{name}-{i}.txt").write_text(
                    "".join(lines[i * len(lines) // 4 :][: len(lines) // 4])
                )
    return folder


@pytest.fixture(scope="session")
def tiny(text: Path) -> str:
    """Settings of a trial that takes a second, for SET."""
    return f"data.path={text} {TINY}"


@pytest.fixture(scope="session")
def environment(tmp_path_factory) -> dict[str, str]:
    """A user's environment: no keys, no cluster, a text cache of the tests' own."""
    drop = ("RAY_", "WANDB_", "TUNE_", "ZSLX_")
    values = {key: value for key, value in os.environ.items() if not key.startswith(drop)}
    return values | {"ZSLX_CACHE": str(tmp_path_factory.mktemp("cache"))}


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    """A folder where interventions of the test's own are found: `plugins` in the working directory."""
    folder = tmp_path / "plugins"
    folder.mkdir()
    return folder


@pytest.fixture(autouse=True)
def in_process(environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same surroundings for code that a test calls directly."""
    for name in [*os.environ]:
        if name not in environment and name.startswith(("RAY_", "WANDB_", "TUNE_", "ZSLX_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("ZSLX_CACHE", environment["ZSLX_CACHE"])
    monkeypatch.chdir(tmp_path)


class Sweeps:
    """Runs `zslx sweep` on tiny trials in `folder`, and looks at its processes and results."""

    def __init__(self, tiny: str, environment: dict[str, str], folder: Path):
        self.tiny, self.environment, self.folder = tiny, environment, folder
        self.results = folder / "results"
        self.zslx = [sys.executable, "-m", "zslx"]

    def start(
        self, intervention: str = "none", *options: str, extra: str = "", stderr: int = subprocess.PIPE
    ) -> subprocess.Popen[str]:
        words = ["sweep", intervention, "--preset", "smoke", "--results", "results", "--set", f"{self.tiny} {extra}"]
        words += ["--sizes", "0.1M"] * ("--sizes" not in options)
        return subprocess.Popen(
            [*self.zslx, *words, *options],
            env=self.environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,  # a process group of its own, so that a test can signal it as a terminal does
        )

    def __call__(self, intervention: str = "none", *options: str, extra: str = "") -> subprocess.CompletedProcess[str]:
        process = self.start(intervention, *options, extra=extra)
        try:
            out, err = process.communicate(timeout=300)
        finally:
            process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def checkpoints(self) -> bool:
        """Whether each trial that began has a checkpoint past its first steps."""
        folders = list(self.results.glob("trials/*/checkpoints"))
        return bool(folders) and all(any(int(p.name) >= 32 for p in f.glob("[0-9]*")) for f in folders)

    def study(self) -> dict[str, Any]:
        """The one study.json there is."""
        [path] = self.results.glob("studies/*/study.json")
        return json.loads(path.read_text())

    def records(self) -> dict[str, bytes]:
        """What must not depend on faults: settings, steps and probes of every trial."""
        files = ("config.json", "steps.jsonl", "probes.jsonl")
        return {f"{p.parent.name}/{p.name}": p.read_bytes() for f in files for p in self.results.glob(f"trials/*/{f}")}

    def steps_done(self) -> int:
        """Lines of all steps.jsonl."""
        return sum(p.read_bytes().count(b"\n") for p in self.results.glob("trials/*/steps.jsonl"))


@pytest.fixture
def sweep(tiny: str, environment: dict[str, str], tmp_path: Path) -> Sweeps:
    return Sweeps(tiny, environment, tmp_path)


@pytest.fixture(scope="module")
def shared(tiny: str, environment: dict[str, str], tmp_path_factory) -> Sweeps:
    """One results folder for the tests of a module that build on each other's trials."""
    return Sweeps(tiny, environment, tmp_path_factory.mktemp("shared"))


class Processes:
    """What runs below a process, from /proc."""

    @staticmethod
    def below(pid: int) -> dict[int, str]:
        """Process ids and command lines."""
        parents, commands = {}, {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                commands[int(entry.name)] = (entry / "cmdline").read_text(errors="replace").replace("\0", " ")
            except (OSError, ValueError):
                continue
        found, added = {pid}, True
        while added:
            new = {child for child, parent in parents.items() if parent in found} - found
            found |= new
            added = bool(new)
        return {one: commands[one] for one in found - {pid} if one in commands}

    @classmethod
    def workers(cls, pid: int) -> list[int]:
        """Those that train."""
        return [one for one, command in cls.below(pid).items() if re.match(r"ray::\w*Train", command)]

    @staticmethod
    def alive(pid: int) -> bool:
        """Whether a process runs (a zombie does not)."""
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False

    @staticmethod
    def wait_for(
        condition: Callable[[], object], process: subprocess.Popen | None = None, seconds: float = 120
    ) -> None:
        """Wait until `condition()`; fail if the process ends or the time is over first."""
        end = time.monotonic() + seconds
        while not condition():
            if process is not None and process.poll() is not None:
                out, err = process.communicate()
                raise AssertionError(f"ended with {process.returncode} before it happened:\n{out}\n{err}")
            assert time.monotonic() < end, "it did not happen in time"
            time.sleep(0.05)


@pytest.fixture(scope="session")
def processes() -> Processes:
    if not Path("/proc/self/stat").exists():
        pytest.skip("looks at processes through /proc, which this system has not")
    return Processes()
