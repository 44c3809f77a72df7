"""study.json: what a study compares, and how each of its trials stands. A sweep writes it, a comparison reads it.

    RESULTS/studies/<name>/study.json

Torch-free. Files of earlier versions lack some keys; these have the defaults given here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from analysis.study.arm import Arm
from zslx.runs.json_files import read_json, write_json
from zslx.runs.shapes import NUMBER, Shape, check

FILE = "study.json"
TRIAL: Shape = {
    "arm": str,
    "size": str,
    "seed": int,
    "identity?": str | None,
    "status?": str | None,
    "error?": str | None,
    "reference?": str | None,
}
SHAPE: Shape = {
    "name": str,
    "preset?": str | None,
    "arms": [
        {
            "name": str,
            "intervention": str,
            "role": str,
            "of?": str | None,
            "settings?": dict | None,
            "has_placebo?": bool,
            "rates?": {"*": NUMBER},
        }
    ],
    "sizes": [str],
    "seeds": [int],
    "trials": [TRIAL],
    "references?": [TRIAL],
    "protocol?": dict | None,
    "tuning?": dict | None,
    "contrasts?": {"*": str},
    "looks?": [int],
    "futility?": bool,
    "earlier?": [{"name": str, "created?": str | None, "seeds": [int], "looks?": [int]}],
}


@dataclass(frozen=True, kw_only=True)
class Look:
    """An earlier study of the same arms, judged after other seeds or by another plan of looks (sweeps/earlier.py)."""

    name: str
    created: str | None
    seeds: tuple[int, ...]
    looks: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(found: Mapping[str, Any]) -> Look:
        return Look(
            name=found["name"],
            created=found.get("created"),
            seeds=tuple(found["seeds"]),
            looks=tuple(found.get("looks") or ()),
        )


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A trial, arm × size × seed. `identity` names its run folder; `error` says why it was given up.

    `reference` names the folder of the run that it needed, where the sweep trained this one itself.
    """

    arm: str
    size: str
    seed: int
    identity: str = ""
    status: str = "waiting"
    error: str = ""
    reference: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(Entry)}

    @staticmethod
    def from_dict(found: Mapping[str, Any]) -> Entry:
        names = {f.name for f in dataclasses.fields(Entry)}
        return Entry(**{key: value for key, value in found.items() if key in names and value is not None})

    @property
    def label(self) -> str:
        return f"{self.arm}/{self.size}/{self.seed}"

    @property
    def finished(self) -> bool:
        return self.status == "finished"


@dataclass(frozen=True, kw_only=True, eq=False)
class Declaration:
    """Arms × sizes × seeds, and the trials that were asked for.

    references        runs that trials needed and that are no trials of an arm; they are not compared
    curve             the loss curve on which L_d, t_d and r_d are compared: "training" or "heldout"
    exploratory       too few seeds were planned for a verdict
    tuning            how the learning rates of the arms were tuned, None where they were not
    looks             after how many seeds the study is judged, where it may stop before the last (inference/looks.py);
                      `seeds` are those up to the look at which it stands
    futility          it may also stop at a look after which an answer has become improbable
    earlier           studies that looked at the same arms before
    contrasts         what an arm is compared with beside the baseline, by their names
    command           gives this study; `verdict_command` the same question at the sizes and seeds of a verdict
    created           when the study was first asked for, UTC
    """

    name: str
    arms: tuple[Arm, ...]
    sizes: tuple[str, ...]
    seeds: tuple[int, ...]
    trials: tuple[Entry, ...]
    references: tuple[Entry, ...] = ()
    preset: str | None = None
    overrides: tuple[str, ...] = ()
    exploratory: bool = False
    curve: str = "heldout"
    tuning: Mapping[str, Any] | None = None
    contrasts: Mapping[str, str] = field(default_factory=dict)
    looks: tuple[int, ...] = ()
    futility: bool = False
    earlier: tuple[Look, ...] = ()
    command: str | None = None
    verdict_command: str | None = None
    created: str | None = None

    def to_dict(self) -> dict[str, Any]:
        found = {f.name: getattr(self, f.name) for f in dataclasses.fields(Declaration)}
        del found["curve"]
        return found | {
            "arms": [arm.to_dict() for arm in self.arms],
            "trials": [trial.to_dict() for trial in self.trials],
            "references": [trial.to_dict() for trial in self.references],
            "earlier": [look.to_dict() for look in self.earlier],
            "protocol": {"curve": self.curve},
        }

    @staticmethod
    def from_dict(found: Mapping[str, Any]) -> Declaration:
        """The inverse of `to_dict`."""
        return Declaration(
            name=found["name"],
            arms=tuple(Arm.from_dict(arm) for arm in found["arms"]),
            sizes=tuple(found["sizes"]),
            seeds=tuple(found["seeds"]),
            trials=tuple(map(Entry.from_dict, found["trials"])),
            references=tuple(map(Entry.from_dict, found.get("references") or ())),
            preset=found.get("preset"),
            overrides=tuple(found.get("overrides") or ()),
            exploratory=bool(found.get("exploratory")),
            curve=str((found.get("protocol") or {}).get("curve") or "heldout"),
            tuning=found.get("tuning"),
            contrasts=found.get("contrasts") or {},
            looks=tuple(found.get("looks") or ()),
            futility=bool(found.get("futility")),
            earlier=tuple(map(Look.from_dict, found.get("earlier") or ())),
            command=found.get("command"),
            verdict_command=found.get("verdict_command"),
            created=found.get("created"),
        )

    @staticmethod
    def read(folder: Path) -> Declaration:
        """The declaration in a study's folder. ValueError, naming the file, where it is missing or damaged."""
        path = folder / FILE
        found = read_json(path)
        check(path, found, SHAPE)
        return Declaration.from_dict(found)

    def write(self, folder: Path) -> Path:
        """Replace the declaration in a study's folder."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / FILE, self.to_dict())
        return folder / FILE
