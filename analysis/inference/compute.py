"""What an arm costs in seconds of training, and its loss at equal compute."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

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
    """Paired difference at equal measured compute: the dearer of the two is read where the other's seconds are spent.

    Compute: seconds of training up to T, without instruments, and before them those of a reference model. `cost`: all
    of the arm's over all of the other's, by size. Where the reference alone takes more than the budget, the arm has no
    loss to read, and `unaffordable` names the size; such sizes count nowhere.

    Read off curves whose schedule was made for T steps, not retrained for the budget: `read_off` says so.
    It is fair to constant rates; a decaying schedule that is cut short is put at a disadvantage.
    """
    study = measures.study
    budgets = dict(zip(study.sizes, _budgets(measures, arm, against), strict=True))
    if not any(budgets.values()):
        return None

    def read(which: Callable[[Budget], float]) -> Measure:
        def at(trial: Trial) -> float:
            budget = budgets[trial.size]
            share = which(budget) if budget else math.nan
            return measures.log_loss(trial, measures.horizon[trial.size] * share) if share > 0 else math.nan

        return at

    differences = study.grid(arm, read(lambda b: b.share)) - study.grid(against, read(lambda b: b.other_share))
    found = pooled(differences)
    lost = [size for size, b in budgets.items() if b and min(b.share, b.other_share) <= 0]
    return (dict(found.as_dict()) if found else {"estimate": None, "low": None, "high": None}) | {
        "read_off": True,
        "cost": [finite(b.cost) if b else None for b in budgets.values()],
        "unaffordable": lost,
    }


class Budget(NamedTuple):
    """What two arms cost at one size, and the shares of T that each reaches within the budget of the cheaper one."""

    cost: float
    share: float
    other_share: float


def _budgets(measures: Measures, arm: str, against: str) -> list[Budget | None]:
    """One a size, from its pairs; None without any. Seconds are in units of the other arm's training to T."""
    study = measures.study

    def over(trials: str, seconds: Measure) -> np.ndarray:
        return study.grid(trials, seconds) / study.grid(against, measures.train_seconds)

    trained, reference = over(arm, measures.train_seconds), over(arm, measures.reference_seconds)
    other_reference = over(against, measures.reference_seconds)
    found: list[Budget | None] = []
    for s in range(len(study.sizes)):
        pairs = np.isfinite(trained[s])
        if not pairs.any():
            found.append(None)
            continue
        step = float(np.exp(np.log(trained[s][pairs]).mean()))
        before, other_before = float(reference[s][pairs].mean()), float(other_reference[s][pairs].mean())
        own, other = before + step, other_before + 1.0
        budget = min(own, other)
        share, other_share = (budget - before) / step, budget - other_before
        found.append(Budget(own / other, min(1.0, share), min(1.0, other_share)))
    return found
