"""The points of a search that failed: RESULTS/studies/<search>/failed.json.

What any other point came to follows from the ledger again. A failure does not: a worker that died three times may live
the next time, and a sampler that is told another value asks for other points from there on. So what has failed once is
not trained again, until somebody removes this file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zslx.runs.json_files import read_json, write_json
from zslx.runs.shapes import Shape, check

FILE = "failed.json"
SHAPE: Shape = {"points": {"*": {"step": int, "why": str}}}


class FailedPoints:
    """By the name of a point's arm: the step to which it was to be trained, and why it was not."""

    def __init__(self, folder: Path):
        self.path = folder / FILE
        self.points: dict[str, Any] = {}
        if self.path.exists():
            found = read_json(self.path)
            check(self.path, found, SHAPE)
            self.points = found["points"]

    def why(self, name: str, step: int) -> str | None:
        """Why a point failed on the way to this step; None where it did not."""
        found = self.points.get(name)
        return found["why"] if found and found["step"] == step else None

    def add(self, found: dict[str, str], step: int) -> None:
        """Keep the points that failed on the way to this step, and why."""
        new = {name: {"step": step, "why": why} for name, why in found.items() if self.why(name, step) is None}
        if new:
            self.points |= new
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, {"points": self.points})
