"""The folder that a run leaves behind: append, cut back on resume, read.

    config.json     resolved configuration           manifest.json  status, versions, hardware, totals
    steps.jsonl     a line a step                    probes.jsonl   a line a probe step, every instrument
    timing.jsonl    whatever depends on the clock    checkpoints/, resume/   (zslx/runs/checkpoints.py)

Each line has a `step`, an integer that increases. The trainer makes the lines durable before each checkpoint, so that
every line up to a checkpoint's step is on disk when the checkpoint is. How files are written and what a killed writer
leaves: zslx/runs/json_files.py.

Torch-free: analysis reads runs through this file alone. Exactness (cut and resume equals never stopped, byte
for byte) is checked by tests/unit/test_records.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from zslx.runs.json_files import JsonLines, read_json, read_lines
from zslx.runs.shapes import CONFIG, MANIFEST, check

LINE_FILES = ("steps", "probes", "timing")
OVER = ("finished", "diverged")  # nothing is left to train
STATUSES = ("running", *OVER, "failed", "paused")  # paused: at run.until, before its last step


class RunRecords:
    """Appends to the records of one run. One writer a folder; readers may read at any time.

    Opening an existing folder does not change it; call `cut_to(step)` before appending to one.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._files = {name: JsonLines(self.folder / f"{name}.jsonl") for name in LINE_FILES}

    def append_step(self, line: Mapping[str, Any]) -> None:
        self._append("steps", line)

    def append_probe(self, line: Mapping[str, Any]) -> None:
        self._append("probes", line)

    def append_timing(self, line: Mapping[str, Any]) -> None:
        self._append("timing", line)

    def _append(self, name: str, line: Mapping[str, Any]) -> None:
        assert isinstance(line["step"], int), "a record without its step could not be cut on resume"
        self._files[name].append(line)

    def flush(self, sync: bool = True) -> None:
        """Hand every appended line to the system; with `sync` also to the disk."""
        for file in self._files.values():
            file.flush(sync)

    def cut_to(self, step: int) -> None:
        """Forget everything after `step`, torn lines included.

        Raises ValueError when steps.jsonl ends before `step`: its lines are written before the checkpoint.
        """
        for name, file in self._files.items():
            last = file.cut(lambda line: line["step"] <= step).get("step", 0)
            if name == "steps" and last != step:
                raise ValueError(f"{file.path} ends at step {last}, before the checkpoint at step {step}")

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def __enter__(self) -> RunRecords:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run folder, read. The lines are read on first use, so that a thousand runs cost what is looked at."""

    folder: Path
    config: dict[str, Any]
    manifest: dict[str, Any]

    @property
    def status(self) -> str:
        status: str = self.manifest["status"]
        return status

    @cached_property
    def steps(self) -> dict[str, np.ndarray]:
        """Columns of steps.jsonl, float64 (step, tokens, loss, ...): nan where a line has no such number."""
        return columns(self._lines("steps"))

    @cached_property
    def probes(self) -> list[dict[str, Any]]:
        return self._lines("probes")

    @cached_property
    def timing(self) -> list[dict[str, Any]]:
        return self._lines("timing")

    def _lines(self, name: str) -> list[dict[str, Any]]:
        """The lines of one file, whose steps increase; none when the file is not there yet."""
        path = self.folder / f"{name}.jsonl"
        lines = read_lines(path) if path.exists() else []
        last = -1
        for number, line in enumerate(lines, 1):
            if type(line.get("step")) is not int or line["step"] <= last:
                raise ValueError(f"{path}:{number}: step {line.get('step')!r} does not come after {last}")
            last = line["step"]
        return lines


def read_run(folder: str | Path) -> Run:
    """The run in `folder`. ValueError, naming the file, when it holds none or a file is damaged."""
    return Run(folder=Path(folder), config=read_config(folder), manifest=read_manifest(folder))


def read_config(folder: str | Path) -> dict[str, Any]:
    """The configuration of the run in `folder`. ValueError, naming file and key, when it is none."""
    path = Path(folder) / "config.json"
    config = read_json(path)
    check(path, config, CONFIG)
    return config


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of the run in `folder`: of one that is about to start, its status alone. ValueError as above."""
    path = Path(folder) / "manifest.json"
    if not path.exists():
        return {"status": "running"}
    manifest = read_json(path)
    check(path, manifest, MANIFEST)
    if (status := manifest["status"]) not in STATUSES:
        raise ValueError(f"{path}: status {status!r} is none of {', '.join(STATUSES)}")
    return manifest


def numbers(node: Mapping[str, Any], separator: str, prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every number in a line under the names that lead to it: `dt1_heldout.D`."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from numbers(value, separator, f"{prefix}{key}{separator}")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield prefix + key, value


def columns(lines: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Each key that has numbers (or booleans) as a float64 column, nan where a line lacks it or has null."""
    keys = dict.fromkeys(k for line in lines for k, value in line.items() if isinstance(value, (int, float)))
    return {key: np.array([_number(line.get(key)) for line in lines], dtype=np.float64) for key in keys}


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan
