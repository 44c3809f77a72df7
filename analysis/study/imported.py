"""Loss curves of other people's runs that stand beside a study: read, kept in its folder, never paired.

    RESULTS/studies/<study>/imported/<name>.json    {name, source, steps, losses}

They have no seeds and no data in common with the study's trials, so that they are in no contrast and no verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zslx.deceleration.loss_curve import Curve, curve
from zslx.runs.digest import digest
from zslx.runs.json_files import read_json, write_json
from zslx.runs.shapes import NUMBER, Shape, check
from zslx.slug import slug

FOLDER = "imported"
SHAPE: Shape = {"name": str, "source": str, "steps": [NUMBER], "losses": [NUMBER]}


@dataclass(frozen=True, kw_only=True)
class Imported:
    """One curve under the name of its arm. `source` is the name of the file from which it was read."""

    name: str
    source: str
    curve: Curve

    def write(self, study: Path) -> Path:
        """Keep it in a study's folder, in place of one of this name."""
        path = study / FOLDER / f"{slug(self.name, 80)}-{digest(self.name)[:8]}.json"
        path.parent.mkdir(exist_ok=True)
        steps, losses = self.curve.steps.tolist(), self.curve.losses.tolist()
        write_json(path, {"name": self.name, "source": self.source, "steps": steps, "losses": losses})
        return path


def read_imported(study: Path) -> tuple[Imported, ...]:
    """The curves in a study's folder, by the names of their files. ValueError, naming the file, for a damaged one."""
    return tuple(_read(path) for path in sorted((study / FOLDER).glob("*.json")))


def _read(path: Path) -> Imported:
    found: Mapping[str, Any] = read_json(path)
    check(path, found, SHAPE)
    steps, losses = (np.array(found[key], dtype=np.float64) for key in ("steps", "losses"))
    if not (len(steps) == len(losses) and len(steps) and (np.diff(steps) > 0).all() and (losses > 0).all()):
        raise ValueError(f"{path}: steps must increase, with a loss above 0 for each")
    return Imported(name=found["name"], source=found["source"], curve=curve(steps, losses))


def checked_name(name: str, arms: Sequence[str]) -> str:
    """The name of an imported arm. ValueError where an arm of the study has it."""
    if not name.strip() or name in arms:
        raise ValueError(f"--name {name!r}: must not be empty, nor one of the study's arms: {', '.join(arms)}")
    return name
