"""What an arm costs in seconds of training, and its loss at equal compute."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from analysis.inference.contrasts import mean_interval, pooled
from analysis.inference.rows import Interval, finite
from analysis.study.load import Trial
from analysis.study.measures import Measure, Measures


def step_cost(measures: Measures, arm: str, at: int) -> Interval | None:
    """Seconds of a step over the baseline's, paired by seed: geometric mean and interval."""
    log_seconds = measures.paired(arm, measures.study.baseline.name, lambda t: math.log(measures.step_seconds(t)))
    return mean_interval(np.exp(log_seconds[at]), log=True)


def equal_compute(measures: Measures, arm: str, against: str) -> dict[str, Any] | None:
    """Paired difference at equal measured compute: the dearer of the two is read where its time is up.

    Compute: seconds of training up to T, those of a reference model included, without instruments.

    Read off curves whose schedule was made for T steps, not retrained for the budget: `read_off` says so.
    It is fair to constant rates; a decaying schedule that is cut short is put at a disadvantage.
    """
    study = measures.study
    log_seconds = measures.paired(arm, against, lambda trial: math.log(measures.compute_seconds(trial)))
    means = [mean_interval(np.exp(row), log=True) for row in log_seconds]
    cost = np.array([np.nan if m is None else m["mean"] for m in means])
    if not np.isfinite(cost).any():
        return None
    place = {size: s for s, size in enumerate(study.sizes)}

    def read(share: Callable[[float], float]) -> Measure:
        def at(trial: Trial) -> float:
            c = cost[place[trial.size]]
            return measures.log_loss(trial, measures.horizon[trial.size] * share(c)) if np.isfinite(c) else math.nan

        return at

    arm_loss = study.grid(arm, read(lambda c: min(1.0, 1 / c)))
    base_loss = study.grid(against, read(lambda c: min(1.0, c)))
    found = pooled(arm_loss - base_loss)
    return None if found is None else dict(found.as_dict()) | {"read_off": True, "cost": [finite(c) for c in cost]}
