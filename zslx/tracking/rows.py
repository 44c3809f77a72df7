"""What is logged of a run: one row a step, joined from its records, each row once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zslx.runs.records import Run, numbers
from zslx.tracking.follow import Follower

Row = dict[str, float]
TIME = "_timestamp"  # seconds since 1970 of a row that is logged later; tools take the present where it is not given


class Rows:
    """The rows of the run in a folder, in the order of their steps: the step's numbers; those of its probe, under
    `probe/`; and with a probe `seconds`, of training and measuring so far.

    Reading while the run is written is safe: a row is given when a later step is there, since the trainer hands a
    step's probe to the system before it goes on.
    """

    def __init__(self, folder: Path):
        self._steps, self._probes, self._timing = (
            Follower(folder / f"{name}.jsonl") for name in ("steps", "probes", "timing")
        )
        self._waiting: dict[int, Row] = {}
        self._seconds = 0.0

    def new(self, *, whole: bool = False) -> list[Row]:
        """The rows since the last call; with `whole` all of them, of a run that is over."""
        for line in self._steps.new():  # before the probes: see above
            self._row(line).update(
                (key, float(value))
                for key, value in line.items()
                if key != "step" and isinstance(value, int | float) and math.isfinite(value)
            )
        for line in self._probes.new():
            self._row(line).update((f"probe/{key}", value) for key, value in leaves(line))
        for line in self._timing.new():
            self._seconds += float(line.get("seconds") or 0) + float(line.get("instrument_seconds") or 0)
            self._row(line)["seconds"] = self._seconds
        ready = sorted(step for step in self._waiting if whole or step < self._steps.last)
        return [self._waiting.pop(step) for step in ready]

    def _row(self, line: Mapping[str, Any]) -> Row:
        return self._waiting.setdefault(line["step"], {"step": line["step"]})


def dated(rows: Iterable[Row], run: Run) -> Iterator[Row]:
    """The rows of a run that is over, each with its time: seconds are counted back from when the manifest was written.

    Between two probes time runs evenly. Waits between the attempts of a run that was interrupted are left out.
    """
    steps, seconds = [0.0], [0.0]
    for line in run.timing:
        steps.append(line["step"])
        seconds.append(seconds[-1] + float(line["seconds"]) + float(line["instrument_seconds"]))
    began = (run.folder / "manifest.json").stat().st_mtime - seconds[-1]
    for row in rows:
        yield row | {TIME: began + float(np.interp(row["step"], steps, seconds))}


def leaves(line: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Every number of a probe line under the names that lead to it; of a matrix over named rows, those of its place."""
    return ((key, value) for key, value in numbers(_by_name(line), "/") if key not in ("step", "tokens"))


def _by_name(node: Mapping[str, Any]) -> dict[str, Any]:
    """A node in which lists over the `names` beside them are objects with these names as keys."""
    names = node.get("names")

    def named(value: Any) -> Any:
        if isinstance(value, Mapping):
            return _by_name(value)
        if isinstance(names, list) and isinstance(value, list) and len(value) == len(names):
            return {str(name): named(inner) for name, inner in zip(names, value, strict=True)}
        return value

    return {key: named(value) for key, value in node.items() if key != "names"}
