"""Successive halving of a search: what is worse early is not trained to its end (ASHA: Li et al. 2020, 1810.05934).

    rungs    a quarter and a half of the steps; the trials of all points that are left are paused there
    value    at a rung, the value that the point would have if that were the end of its trials (search.py): the mean
             paired difference in log held-out loss to the untuned baseline, at the last step measured up to the rung
    cut      by Optuna's SuccessiveHalvingPruner: at each rung a point goes on if it is among the better half of all
             points of its arm that came there, itself and those of earlier rounds included; of two or three, the best

Optuna is told the points of a rung in their order, when all of them are there, so what is cut does not depend on which
trial ends first. Point 0, the arm as it is, comes to every rung first and is never cut. A trial that goes on is, bit
for bit, the trial that was never paused: its settings, its schedule among them, are those of the whole length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from analysis.study.load import Study, Trial, one_environment
from zslx.config.run_config import Config
from zslx.instruments.measuring_steps import heldout_steps
from zslx.runs.records import OVER

FACTOR = 2  # of the points at a rung one in FACTOR goes on, to FACTOR times the steps


def rungs(config: Config) -> tuple[int, ...]:
    """The steps at which a search pauses its trials; ValueError where too few losses are measured up to there."""
    steps, chosen = config.train.steps, config.instruments
    first = steps // FACTOR**2
    for rung, at in zip(found := (first, first * FACTOR), measured_before(config, found), strict=True):
        if at <= rung // FACTOR:
            raise ValueError(
                f"HALVING: no held-out loss is measured after step {rung // FACTOR} and up to the rung at step {rung}: "
                f"give more than {steps} train.steps, or more than {chosen.heldout_points} instruments.heldout_points"
            )
    return found


def measured_before(config: Config, at: Sequence[int]) -> list[int]:
    """The last steps up to those of `at` at which held-out loss is measured."""
    chosen = config.instruments
    steps = heldout_steps(config.train.steps, chosen.heldout_points, chosen.probes)
    return [max(s for s in steps if s <= step) for step in at]


def at_rung(study: Study, step: int) -> Study:
    """The study as it stood at `step`: of each trial that came there the records up to it, as of one that ended."""
    return one_environment(replace(study, trials=tuple(_up_to(trial, step) for trial in study.trials)))


def _up_to(trial: Trial, step: int) -> Trial:
    last = int((trial.manifest.get("totals") or {}).get("steps") or 0)
    came = last - (trial.status == "diverged")  # the step that diverged is counted
    if trial.status not in ("paused", *OVER) or came < step:
        return trial
    count = int((trial.probe_steps <= step).sum())
    values = {key: (rows[rows < count], numbers[rows < count]) for key, (rows, numbers) in trial.values.items()}
    return replace(
        trial,
        status="finished",
        error="",
        probe_steps=trial.probe_steps[:count],
        probe_tokens=trial.probe_tokens[:count],
        values=values,
        doublings=None,
    )
