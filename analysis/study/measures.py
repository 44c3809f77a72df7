"""Measures of one trial: held-out loss, deceleration, cut-robust slopes, instruments and cost.

The axis is t, the tokens trained on divided by those of a baseline step at that size. Arms whose steps differ in tokens
are so compared at equal data; for all others t is the step. The horizon T is the largest t that all finished trials of
a size reach, in every arm. Measures come from the held-out curve up to T: about 100 log-spaced points, step 0 left out.
Between points log L is taken as linear in log t.

Exact: values at recorded points. Approximate: values between them. Fits: zslx/deceleration/fit.py, one a trial.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np

from analysis.study.doublings import Doubling
from analysis.study.load import Study, Trial
from analysis.study.step_records import StepSummary, summarise
from zslx.config.groups import ModelConfig
from zslx.deceleration.fit import Fit, fit
from zslx.deceleration.fit_options import FitOptions
from zslx.deceleration.loss_curve import curve
from zslx.deceleration.slopes import tail_slope
from zslx.instruments.measuring_steps import FINAL_SHARE

TAIL_FACTORS = (2, 4, 8)  # the tail slope's own sensitivity: over the last factor of 4, beside 2 and 8


Measure = Callable[[Trial], float]


class Measures:
    """Measures of the trials of one study, each computed once."""

    def __init__(self, study: Study):
        self.study = study
        self._fits: dict[tuple[str, str, int], Fit] = {}
        self._steps: dict[int, StepSummary | None] = {}  # by id of the trial
        self._tails: dict[tuple[str, str, int, float], float] = {}

    @cached_property
    def unit(self) -> dict[str, float]:
        """Tokens of one baseline step at each size (of another arm's, where no baseline trial finished)."""
        found = {}
        for size in self.study.sizes:
            trial = self.example(size)
            if trial is not None:
                found[size] = float(trial.probe_tokens[-1] / trial.probe_steps[-1])
        return found

    def example(self, size: str) -> Trial | None:
        """A finished trial of a size, of the baseline if there is one."""
        arms = sorted(self.study.arms, key=lambda arm: arm.role != "baseline")
        return next((trial for arm in arms for trial in self.study.of(arm.name, size)), None)

    @cached_property
    def horizon(self) -> dict[str, float]:
        """T of each size: the smallest last t of its finished trials."""
        ends = {
            size: [float(t.probe_tokens[-1]) / unit for arm in self.study.arms for t in self.study.of(arm.name, size)]
            for size, unit in self.unit.items()
        }
        return {size: min(e) for size, e in ends.items() if e}

    def curve(self, trial: Trial, key: str = "heldout_loss") -> tuple[np.ndarray, np.ndarray]:
        """(t, values) of one instrument, 0 < t ≤ T."""
        _, tokens, values = trial.series(key)
        t = tokens / self.unit[trial.size]
        keep = (t > 0) & (t <= self.horizon[trial.size] * (1 + 1e-9))
        return t[keep], values[keep]

    def paired(self, arm: str, against: str, measure: Measure) -> np.ndarray:
        """Differences (S, n) of a measure between two arms; nan where either trial is missing."""
        return self.study.grid(arm, measure) - self.study.grid(against, measure)

    def log_loss(self, trial: Trial, t: float | None = None, key: str = "heldout_loss") -> float:
        """log held-out loss at t (T by default): the mean over the points in (7/8 t, t], of which a run has
        eight at its end (zslx.instruments.heldout), each weighted by its share of the steps and carried to t along the
        slope of the last factor of 4; between its neighbours where there is none; nan outside the curve.

        At a constant rate the loss of one step's weights fluctuates by 0.1 to 0.3 %, over tens of steps.
        `key`: of a part of the held-out tokens, where it is above 0."""
        t = self.horizon[trial.size] if t is None else t
        # The whole curve: a longer run may have no point at T itself.
        _, tokens, values = trial.series(key)
        x = tokens / self.unit[trial.size]
        keep = (x > 0) & (values > 0)
        x, y = np.log(x[keep]), np.log(values[keep])
        at = math.log(t)
        if not len(x) or not x[0] <= at <= x[-1] + 1e-9:
            return math.nan
        near = (x > at + math.log(1 - FINAL_SHARE)) & (x <= at + 1e-9)
        recent = (x > at - math.log(4)) & (x <= at + 1e-9)
        if not near.any() or recent.sum() < 3:
            return float(np.interp(at, x, y))
        slope = np.polyfit(x[recent], y[recent], 1)[0]
        weights = np.gradient(np.exp(x[near])) if near.sum() > 1 else np.ones(1)
        return float(np.average(y[near] + slope * (at - x[near]), weights=weights))

    def last_doubling(self, trial: Trial) -> Doubling | None:
        """The domains in the changes over the last doubling of the steps that ends at T or before."""
        found = trial.doublings
        if found is None:
            return None
        t = trial.probe_tokens[found.rows] / self.unit[trial.size]
        done = np.flatnonzero(t <= self.horizon[trial.size] * (1 + 1e-9))
        return found.at(done[-1], trial.probe_steps) if len(done) else None

    def training_curve(self, trial: Trial) -> tuple[np.ndarray, np.ndarray]:
        """(t, losses) of the training loss of each step, 0 < t ≤ T; empty where the step records cannot be read."""
        summary = self.steps(trial)
        return (summary.t, summary.losses) if summary else (np.empty(0), np.empty(0))

    def fit(self, trial: Trial) -> Fit:
        """The fit of the trial's own held-out curve. Fits over seeds are in analysis/inference/pooled_breaks.py."""
        key = (trial.arm, trial.size, trial.seed)
        if key not in self._fits:
            heldout = curve(*self.curve(trial), warmup=trial.warmup)
            self._fits[key] = fit(heldout, FitOptions(smoothing="none", bootstrap=0))
        return self._fits[key]

    def fit_all(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Fit every finished trial (0.2 s each) and its tail, so that what follows is quick."""
        trials = [t for t in self.study.trials if t.finished]
        for done, trial in enumerate(trials, 1):
            self.fit(trial)
            for factor in TAIL_FACTORS:
                self.tail(trial, factor)
            if progress:
                progress(done, len(trials))

    def tail(self, trial: Trial, factor: float = 4) -> float:
        """Tail slope −d log L / d log t over the last `factor` of t; nan with fewer than 3 points there."""
        key = (trial.arm, trial.size, trial.seed, factor)
        if key not in self._tails:
            try:
                self._tails[key] = float(tail_slope(curve(*self.curve(trial)), factor)[0])
            except ValueError:
                self._tails[key] = math.nan
        return self._tails[key]

    def instrument(self, trial: Trial, key: str) -> float:
        """The mean of an instrument over the probes in the last factor of 4 of t; nan when there are none."""
        t, values = self.curve(trial, key)
        late = t >= self.horizon[trial.size] / 4
        return float(values[late].mean()) if late.any() else math.nan

    def steps(self, trial: Trial) -> StepSummary | None:
        """What the step records say; None when there are none or they are damaged."""
        if not self._steps:
            finished = [t for t in self.study.trials if t.finished]
            # Parsing leaves Python's lock: two cores read twice as fast.
            with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
                self._steps = dict(zip(map(id, finished), pool.map(self._summary, finished), strict=True))
        return self._steps[id(trial)]

    def _summary(self, trial: Trial) -> StepSummary | None:
        assert trial.folder is not None, "a finished trial has a folder"
        try:
            return summarise(trial.folder / "steps.jsonl", self.unit[trial.size], self.horizon[trial.size])
        except (ValueError, OSError):
            return None

    def train_seconds(self, trial: Trial) -> float:
        """Seconds of training up to T, without instruments; nan when the run has not recorded them."""
        totals = trial.manifest.get("totals") or {}
        share = self.horizon[trial.size] * self.unit[trial.size] / float(trial.probe_tokens[-1])
        return float(totals.get("train_seconds") or math.nan) * share

    @staticmethod
    def reference_seconds(trial: Trial) -> float:
        """Seconds of training of its reference model, all of which are spent before the first step; 0 without one."""
        return float((trial.manifest.get("totals") or {}).get("reference_seconds") or 0)

    def step_seconds(self, trial: Trial) -> float:
        """Median seconds of a training step; nan when the run has not recorded it."""
        seconds = (trial.manifest.get("totals") or {}).get("median_step_seconds")
        return float(seconds) if seconds else math.nan


def parameters(trial: Trial) -> dict[str, int]:
    """{non_embedding, embedding, total} parameters of a trial's model: as it was built, or, where an earlier version
    did not record that, from its configuration."""
    if counted := trial.manifest.get("parameters"):
        return dict(counted)
    config = trial.config
    return ModelConfig(**config["model"]).parameters(int(config["data"]["vocab_size"]))._asdict()


def flops_per_token(trial: Trial) -> float:
    """Floating-point operations of a plain training step, per token, without what a method adds.

    Of a model of transformers: 6 for each parameter (Kaplan et al. 2020, 2001.08361), look-ups included.
    """
    model, data = ModelConfig(**trial.config["model"]), trial.config["data"]
    if model.hf:
        return 6.0 * parameters(trial)["total"]
    return float(model.flops_per_token(int(data["seq_len"]), int(data["vocab_size"])))
