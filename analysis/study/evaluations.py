"""Downstream scores of a study's trials, one number a row (zslx/runs/evaluations.py has the files)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from analysis.study.load import Trial
from zslx.runs.evaluations import read_evaluations


@dataclass(frozen=True, kw_only=True)
class Score:
    """One metric of one task at one checkpoint. `stderr`: its standard error over samples, where lm-eval has one."""

    arm: str
    size: str
    seed: int
    step: int
    task: str
    metric: str
    score: float
    stderr: float | None
    few_shot: int | None
    limit: int
    key: str


def scores(trials: Iterable[Trial]) -> list[Score]:
    """Every score of trials, in their order. ValueError, naming the file, for one that is damaged."""
    found = []
    for trial in trials:
        for record in read_evaluations(trial.folder) if trial.folder else ():
            for task, values in record["scores"].items():
                for metric, score in values.items():
                    name, _, rest = metric.partition(",")
                    if score is None or name.endswith("_stderr"):
                        continue
                    error = values.get(f"{name}_stderr" + (rest and f",{rest}"))
                    found.append(
                        Score(
                            arm=trial.arm,
                            size=trial.size,
                            seed=trial.seed,
                            step=record["step"],
                            task=task,
                            metric=metric,
                            score=float(score),
                            stderr=None if error is None else float(error),
                            few_shot=record["few_shot"],
                            limit=record["limit"],
                            key=record["key"],
                        )
                    )
    return found
