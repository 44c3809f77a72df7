"""Tunes the learning rate of each arm at each size before a study, on seeds that the study does not use.

A comparison of two arms says little where one of them trains at a poor rate: loss, tail slope, L_d, t_d and r_d all
move with it. So the baseline, each arm that was asked for, cosine and each arm with cosine are trained at rates on a
grid of factors of √2 around the preset's, and each gets the rate with the lowest mean log held-out loss at T. Where an
arm's best rate lies at an end of its grid, the grid of that arm is extended there. An arm whose gradient is rescaled to
the plain one's norm (`scale=matched`) has no rate of its own and takes the baseline's. A placebo takes that of its arm.

The tuning is a study like any other: its trials are in the ledger, an interrupted one goes on, and study.json of the
comparison names it with its cost. Its trials measure held-out losses alone, and so do those of a search.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analysis.study.arm import Arm, sets_rate
from analysis.study.load import Study, environment, load_study, moved
from analysis.study.measures import Measures
from analysis.study.tuning import train_seconds
from sweeps.arms import BASELINE_ARM
from sweeps.packing import AUTO
from sweeps.planned import PlannedTrial
from sweeps.study import PlannedStudy, build, with_arms
from zslx.intervention import registry

FACTORS = tuple(2 ** (k / 2) for k in (-2, -1, 0, 1, 2))
SEEDS = (1000, 1001, 1002)
UNPROBED = "instruments.probes=false"  # a seventh of a small trial's time, for what no choice of a rate reads
AGAIN = "move {} away, and the same command trains what is gone again"
WIDEST = 2**3  # the grid is extended up to this factor, and down to its inverse

Rates = dict[str, dict[str, float]]
Grids = Mapping[str, Sequence[float]]  # factors by arm, of those that have others than FACTORS


def tuning_study(
    asked: Sequence[str],
    preset: str,
    *,
    sizes: Sequence[str],
    overrides: Sequence[str],
    grids: Grids | None = None,
    pack: str = AUTO,
    results: str | Path = "results",
) -> PlannedStudy:
    """The arms that have a rate of their own, at each factor on it."""
    plain = build(asked, preset, sizes=sizes, seeds=SEEDS, overrides=unprobed(overrides), pack=pack, results=results)
    tuned = [arm for arm in plain.arms if arm.role == "baseline" or (is_tuned(arm) and has_own_rate(arm))]
    found = [at(arm, f, plain.sizes) for arm in tuned for f in (grids or {}).get(arm.name, FACTORS)]
    return with_arms(plain, found, results)


def unprobed(overrides: Sequence[str]) -> list[str]:
    """The settings of trials that measure held-out losses alone."""
    return [pair for pair in overrides if not pair.startswith("instruments.probes=")] + [UNPROBED]


def at(arm: Arm, factor: float, sizes: Sequence[str]) -> Arm:
    """The arm at a factor on its rate; the baseline at 1 stays the baseline."""
    if factor == 1:
        return arm
    role = "control" if arm.role == "baseline" else arm.role
    return dataclasses.replace(arm, name=name(arm.name, factor), role=role, rates=dict.fromkeys(sizes, factor))


def name(arm: str, factor: float) -> str:
    return f"{arm} rate x {factor:.3g}"


def is_tuned(arm: Arm) -> bool:
    """Whether a tuning chooses for this arm: not for a placebo, which is as its arm, nor for a control of rates."""
    return arm.role != "placebo" and not sets_rate(arm.name)


def has_own_rate(arm: Arm) -> bool:
    """Whether the arm may shift the effective rate: not where every method rescales its gradient to the plain norm."""
    methods = registry.load_spec(arm.intervention, arm.settings)
    return not all(getattr(method, "scale", None) == "matched" for method in methods)


def best_rates(study: PlannedStudy, measures: Measures, grids: Grids) -> tuple[Rates, dict[str, Any]]:
    """(factor by arm and size, mean log loss by arm, size and factor); a trial that diverged counts as infinite."""
    rates: Rates = {}
    losses: dict[str, Any] = {}
    for arm in arms_of(study):
        factors = grids.get(arm, FACTORS)
        for size in study.sizes:
            means = [_mean(measures, arm if f == 1 else name(arm, f), size) for f in factors]
            if not np.isfinite(means).any():
                raise ValueError(f"no rate of {arm} at {size} came to an end: give another optim.lr by SET")
            rates.setdefault(arm, {})[size] = float(factors[int(np.argmin(means))])
            losses.setdefault(arm, {})[size] = {
                f"{f:.3g}": m if math.isfinite(m) else None for f, m in zip(factors, means, strict=True)
            }
    return rates, losses


def arms_of(study: PlannedStudy) -> list[str]:
    """The names of the arms that are tuned, without their factors."""
    return [arm.name for arm in study.arms if not arm.rates]


def _mean(measures: Measures, arm: str, size: str) -> float:
    losses = [measures.log_loss(trial) for trial in measures.study.of(arm, size)]
    return float(np.mean(losses)) if len(losses) == len(measures.study.seeds) else math.inf


def wider(grids: Grids, rates: Rates) -> Grids:
    """The grids, one step longer at each end at which the best rate of that arm lies; the same where none does."""
    found = dict(grids)
    for arm, by_size in rates.items():
        factors, chosen = list(grids.get(arm, FACTORS)), set(by_size.values())
        low, high = min(factors), max(factors)
        below = [low / math.sqrt(2)] if low in chosen and low > 1.01 / WIDEST else []
        above = [high * math.sqrt(2)] if high in chosen and high < WIDEST / 1.01 else []
        if below or above:
            found[arm] = [*below, *factors, *above]
    return found


def summary(study: PlannedStudy, measures: Measures, losses: Mapping[str, Any]) -> dict[str, Any]:
    """What study.json of the comparison says of its tuning."""
    return {
        "study": study.name,
        "seeds": list(SEEDS),
        "trials": len(study.trials),
        "train_seconds": train_seconds(measures.study.trials),
        "log_loss": losses,
    }


def load(results: str | Path, study: PlannedStudy) -> Study:
    """A tuning with the records of its trials. ValueError where they were trained on two kinds of machine.

    Of a comparison, trials that ran elsewhere are left out. Here that would leave out a rate or a point, and another
    one would be chosen for it.
    """
    found = load_study(results, study.name)
    for trial in found.trials:
        if places := moved(trial):
            raise ValueError(f"{trial.folder} was trained on two kinds of machine ({places}): {AGAIN.format('it')}")
    ended = {tuple(environment(t).items()): t for t in found.trials if t.manifest}
    if len(ended) > 1:
        (one, first), (other, second), *_ = ended.items()
        differs = ", ".join(f"{k} {dict(one).get(k)} and {v}" for k, v in other if dict(one).get(k) != v)
        raise ValueError(
            f"{study.name}: its trials {first.folder} and {second.folder} ran on two kinds of machine ({differs}), and "
            f"what is chosen would depend on that: {AGAIN.format('those of one kind')}"
        )
    return found


def describe(rates: Rates, trials: Sequence[PlannedTrial]) -> list[str]:
    """One line an arm: its learning rate at each size."""
    plain = {t.size: t.config.optim.lr for t in trials if t.arm == BASELINE_ARM}
    return [
        f"rate of {arm}: "
        + ", ".join(f"{size} {plain[size] * factor:.3g} (x {factor:.3g})" for size, factor in by.items())
        for arm, by in rates.items()
    ]
