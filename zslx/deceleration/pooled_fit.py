"""Fits the mean log loss curve of several seeds, and differences between two such fits.

The noise of one run hides where its curve bends. The mean of the log losses of n seeds has less noise, and what remains
about its fit is misfit. One fit of this mean gives L_d, t_d and r_d of an arm at one size.

Intervals are over seeds, which are the unit of every comparison. Each replicate r gives the seeds random weights w_r
(the Bayesian bootstrap of Rubin, Ann. Stat. 1981: Dirichlet(1, …, 1)) and fits Σ_i w_ri log L_i again, so the measures
(intervals.py) move by as much as other seeds would move them. The weights depend on (seed, n) alone. Two arms that
share their seeds share their draws, so the difference between them is paired.

    estimate ± t(.975, n − 1) · s,   s = (half the 68 % range of the replicates) · √((n + 1)/(n − 1))

The factor is exact for a mean: the variance of Σ w_i x_i is Σ (x_i − x̄)² / (n (n + 1)), and that of the mean of n
seeds is estimated by Σ (x_i − x̄)² / (n (n − 1)). Unlike draws with replacement, these weights leave no seed out, so
that a refit of three seeds is a fit of three seeds.

Exact: weights, and the mean curve. Approximate: replicates are refined from the optimum of the mean curve, and the
measures are taken to move nearly linearly with the curve. tests/calibration/test_pooled_calibration.py counts what the
intervals cover. Cost: one fit, and about 0.2 s for the replicates of one cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as t_distribution

from zslx.deceleration.broken_power_law import refine
from zslx.deceleration.fit import Fit, fit
from zslx.deceleration.fit_options import FitOptions
from zslx.deceleration.intervals import MEASURES, Measured, measures, natural
from zslx.deceleration.loss_curve import Curve
from zslx.deceleration.single_fit import Estimate, estimate, plan_for, prepared

Array = NDArray[np.float64]

REPLICATES = 400
CUT_SHARES = (0.5, 1.0, 2.0)  # of the common cut: where the signs of a difference are looked at


class Range(NamedTuple):
    """A value with its 95 % interval; the ends are None with fewer than two seeds."""

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class PooledFit:
    """The fit of n seeds' mean log curve.

    fit       the fit of the mean curve; its status says whether the break is identified
    estimate  the measures of its one-break form (4,), identified or not, on the scales of `intervals.measures`:
              log L_d, log t_d, r_d, log L̂_T
    draws     the same of each replicate (R, 4); R = 0 with one seed
    at_cuts   the estimate at each share of the cut in `CUT_SHARES`, None where the curve is too short there
    """

    seeds: int
    cut: float
    fit: Fit
    estimate: Array
    draws: Array
    at_cuts: dict[float, Array | None]

    @property
    def identified(self) -> bool:
        """Whether the data place the break."""
        return self.fit.status == "break"

    def spread(self) -> Array | None:
        """The standard error of each measure over seeds (4,)."""
        return spread_over_seeds(self.draws, self.seeds)

    def ranges(self) -> dict[str, Range]:
        """L_d, t_d, r_d and L̂_T in their own units, with 95 % intervals over seeds."""
        spread = self.spread()
        middle = natural(self.estimate)
        if spread is None:
            return {name: Range(value, None, None) for name, value in zip(MEASURES, middle, strict=True)}
        half = float(t_distribution.ppf(0.975, self.seeds - 1)) * spread
        ends: tuple[Measured, Measured] = (natural(self.estimate - half), natural(self.estimate + half))
        return {name: Range(*values) for name, *values in zip(MEASURES, middle, *ends, strict=True)}


def pool(curves: Sequence[Curve]) -> Curve:
    """The mean log loss of several curves at the steps that all of them have. ValueError where they share none."""
    if not curves:
        raise ValueError("no curve to pool")
    steps, rows = _shared(curves)
    return replace(curves[0], steps=steps, losses=np.exp(rows.mean(axis=0)))


def pooled_fit(curves: Sequence[Curve], cut: float, *, smoothing: str = "centred", seed: int = 0) -> PooledFit:
    """Fits the mean log curve of several seeds of one arm after the early cut `cut`, in steps.

    ValueError where fewer points are left than the form needs.
    """
    whole = pool(curves)
    options = FitOptions(smoothing=smoothing, transient=cut, bootstrap=0, seed=seed)
    e = _estimate(whole, cut, options)
    steps, rows = _shared(curves)
    last = float(steps[-1])
    kept = rows[:, steps > cut]
    draws = np.empty((0, len(MEASURES)))
    if len(curves) > 1:
        averaged = np.stack([e.matrix @ e.bins.averaged(row) for row in kept])
        thetas = refine(
            e.plan.form, np.tile(e.solution.theta, (REPLICATES, 1)), e.x, seed_weights(len(curves), seed) @ averaged,
            e.weights, iterations=40, tolerance=1e-8,
        )[0]  # fmt: skip
        draws = measures(e.plan.form, thetas, last)
    at_cuts: dict[float, Array | None] = {}
    for share in CUT_SHARES:
        try:
            other = e if share == 1 else _estimate(whole, cut * share, options)
            at_cuts[share] = measures(other.plan.form, other.solution.theta, last)
        except ValueError:
            at_cuts[share] = None
    return PooledFit(
        seeds=len(curves), cut=cut, fit=fit(whole, options), draws=draws, at_cuts=at_cuts,
        estimate=measures(e.plan.form, e.solution.theta, last),
    )  # fmt: skip


def seed_weights(seeds: int, seed: int = 0, count: int = REPLICATES) -> Array:
    """The weights of the Bayesian bootstrap (count, seeds), each row summing to 1."""
    drawn: Array = np.random.default_rng([seed, seeds]).dirichlet(np.ones(seeds), size=count)
    return drawn


def spread_over_seeds(draws: Array, seeds: int) -> Array | None:
    """The standard error (M,) of values whose replicates are `draws` (R, M); None with one seed."""
    if seeds < 2 or not len(draws):
        return None
    low, high = np.quantile(draws, [0.1587, 0.8413], axis=0)
    spread: Array = (high - low) / 2 * np.sqrt((seeds + 1) / (seeds - 1))
    return spread


def _estimate(whole: Curve, cut: float, options: FitOptions) -> Estimate:
    kept = prepared(whole, cut, options.plan)
    return estimate(kept, plan_for(kept, options.plan))


def _shared(curves: Sequence[Curve]) -> tuple[Array, Array]:
    """The steps that all curves have (N,), and the log losses there (n, N)."""
    steps = curves[0].steps
    for c in curves[1:]:
        steps = np.intersect1d(steps, c.steps)
    if not steps.size:
        raise ValueError("the curves have no step in common")
    return steps, np.stack([c.log_losses[np.searchsorted(c.steps, steps)] for c in curves])
