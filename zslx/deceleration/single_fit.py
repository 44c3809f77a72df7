"""One fit of one loss curve at one early cut: the points, their weights, the best broken power law, and its noise.

The curve is binned and smoothed (binning.py), then fitted by weighted least squares of log loss (broken_power_law.py).
The weights are 1/(1/n + g), with n the steps in a bin and g the misfit (residual_noise.py). Where the noise of single
steps dominates, they are inverse variances; where misfit dominates, each factor of t counts the same. The length of
the bins and g are learned once, from a first fit, and kept in the `Plan`. So fits of one curve at several early cuts
can be compared.

`Plan.paper` follows the published protocol (notebook fit_bnsl of the zero-sum learning code): its points, its early
cut of 100 steps, and scipy's curve_fit by dogbox from a single start with equal weights. It departs from the protocol
in two cases, neither of which occurs on a curve like the paper's. The start splits the curve at step 6,000, or in its
geometric middle where the curve does not reach that far. And where dogbox does not converge (on a power law, say), the
same least squares are solved from many starts.

`Plan.robust` uses Huber's loss on the log loss of single steps. The curve is replaced by the fit plus its residuals,
clipped, until it no longer changes. That is Huber's estimate, and it works with any smoothing.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import OptimizeWarning, curve_fit

from zslx.deceleration import residual_noise
from zslx.deceleration.binning import BINS, Bins, bins, paper_points, trailing_mean, windows
from zslx.deceleration.broken_power_law import Form, Solution, log_loss, on_bound, refine, solve, value_and_jacobian
from zslx.deceleration.loss_curve import Curve

Array = NDArray[np.float64]

# Noise that is correlated over more steps than this comes from a moving average that was taken before.
LONGEST_CORRELATION = 64
# The early cut of the paper, and the step at which its start splits the curve.
PAPER_CUT, PAPER_SPLIT = 100, 6000
# Huber's constant, which is 95 % efficient under normal noise.
HUBER = 1.345
# The most points that the paper's fit takes as they are. Its bootstrap holds all of them 1,000 times.
MOST_POINTS = 10_000


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How to fit: the form, the smoothing, the protocol, and what was learned of the noise (steps a bin, misfit g)."""

    form: Form
    smoothing: str = "centred"
    paper: bool = False
    robust: bool = False
    least: float = 1.0
    g: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A fit: its solution, its points (x, y) = matrix @ bins with weights, and the residuals of the bins, each (K,)."""

    plan: Plan
    solution: Solution
    x: Array
    y: Array
    weights: Array
    matrix: Array
    bins: Bins
    residuals: Array

    @cached_property
    def noise(self) -> residual_noise.Noise:
        """The model of the noise in the residuals of the bins."""
        design = value_and_jacobian(self.plan.form, self.solution.theta[None], self.bins.x)[1][0]
        return residual_noise.noise(self.residuals, self.weights, design)

    @property
    def rsle(self) -> float:
        """√mean (log L̂ − log L)² over the points."""
        return float(np.sqrt(np.mean((log_loss(self.plan.form, self.solution.theta, self.x) - self.y) ** 2)))


def is_smoothed(c: Curve, residuals: Array) -> bool:
    """Whether the curve was thinned or averaged before, as noise correlated over very many steps shows."""
    return c.gap > 1 or residual_noise.correlation_length(residuals[-(2**15) :]) > LONGEST_CORRELATION


def plan_for(c: Curve, plan: Plan) -> Plan:
    """The plan with `least` and `g` learned from the curve c after its early cut.

    `least` comes from the residuals of a fit with two breaks. Those of one break would count a second bend as noise,
    and bins that are too long would blur the early curve. `g` comes from the plan's own form, whose misfit it is.
    """
    if plan.paper:
        return plan
    if c.steps.size > BINS:
        flexible = replace(plan, form=replace(plan.form, breaks=2, decelerating=False), robust=False)
        residuals = c.log_losses - log_loss(flexible.form, estimate(c, flexible).solution.theta, np.log(c.steps))
        if not is_smoothed(c, residuals):
            length = residual_noise.correlation_length(residuals[-(2**15) :])
            plan = replace(plan, least=float(np.clip(2 * length - 1, 1, max(1, c.steps.size / 60))))
    first = estimate(c, plan)
    return replace(plan, g=residual_noise.misfit(first.residuals, first.bins.n))


def estimate(c: Curve, plan: Plan) -> Estimate:
    """The fit of the curve c, after its early cut, by the plan. ValueError where it has too few points for the form."""
    needed = plan.form.size + (3 if plan.form.breaks else 1)
    if c.steps.size < needed:
        raise ValueError(f"{c.steps.size} points are too few for a fit of {plan.form.size} parameters")
    if plan.paper:
        return _paper_estimate(c, plan)
    result = _estimate(c, c.log_losses, c.log_losses, plan)
    return _robust(c, result, plan) if plan.robust else result


def _estimate(c: Curve, y: Array, noisy: Array, plan: Plan, start: Array | None = None) -> Estimate:
    """Fits log losses y (N,) on the steps of c, from `start` (P,) or many starts. The noise is that of `noisy` (N,)."""
    b = bins(c.steps, y, least=plan.least)
    x, matrix = windows(b, plan.smoothing)
    smooth, weights = matrix @ b.y, residual_noise.weights(b.n, plan.g)
    if start is None:
        solution = solve(plan.form, x, smooth, weights)
    else:
        theta, losses = refine(plan.form, start[None], x, smooth, weights)
        bound = on_bound(plan.form, theta[0], x, smooth)
        solution = Solution(form=plan.form, theta=theta[0], loss=float(losses[0]), on_bound=bound)
    # The noise is what a fit to the bins themselves leaves, since a trailing window shifts its points and its fit.
    unsmoothed = refine(plan.form, solution.theta[None], b.x, b.y, weights)[0][0]
    carrier = b.y if noisy is y else b.averaged(noisy)
    residuals = carrier - log_loss(plan.form, unsmoothed, b.x)
    return Estimate(
        plan=plan, solution=solution, x=x, y=smooth, weights=weights, matrix=matrix, bins=b,
        residuals=residuals,
    )  # fmt: skip


def _robust(c: Curve, result: Estimate, plan: Plan) -> Estimate:
    """Huber's estimate by modified residuals, started at the least-squares estimate `result`."""
    x, y = np.log(c.steps), c.log_losses
    for _ in range(30):
        theta = result.solution.theta
        fitted = log_loss(plan.form, theta, x)
        residual = y - fitted
        limit = HUBER * 1.4826 * float(np.median(np.abs(residual)))
        clipped = np.clip(residual, -limit, limit)
        share = max(float(np.mean(np.abs(residual) <= limit)), 0.5)
        # Noise is taken from ψ/E ψ′, the influence of each step on the estimate.
        result = _estimate(c, fitted + clipped, fitted + clipped / share, plan, theta)
        if np.abs(result.solution.theta - theta).max() < 1e-6:
            break
    return result


def prepared(c: Curve, cut: float, plan: Plan) -> Curve:
    """The curve that `estimate` takes: c after its early cut, and averaged and thinned under the paper's protocol."""
    if plan.paper and plan.smoothing == "paper":
        steps, y = paper_points(c.steps, c.log_losses)
        if (steps > cut).sum() > plan.form.size:  # a file that was thinned before may have few of the paper's steps
            c = replace(c, steps=steps, losses=np.exp(y))
    kept = c.after(cut)
    if plan.paper and kept.steps.size > MOST_POINTS:
        raise ValueError(
            f"{kept.steps.size} points are too many for protocol paper with smoothing none, which takes at most "
            f"{MOST_POINTS}; smoothing paper averages and thins them"
        )
    return kept


def _paper_estimate(c: Curve, plan: Plan) -> Estimate:
    x, y, form = np.log(c.steps), c.log_losses, plan.form
    theta = paper_fit(x, y)
    if theta is None:
        theta = solve(form, x, y, np.ones_like(x)).theta
    residual = y - log_loss(form, theta, x)
    solution = Solution(form=form, theta=theta, loss=float(residual @ residual), on_bound=on_bound(form, theta, x, y))
    ones = np.ones_like(x)
    b = Bins(x=x, y=y, n=ones, first=np.arange(x.size))
    return Estimate(
        plan=plan, solution=solution, x=x, y=y, weights=ones, matrix=np.eye(x.size), bins=b,
        residuals=residual,
    )  # fmt: skip


def paper_fit(x: Array, y: Array) -> Array | None:
    """The paper's call of curve_fit on x = log t and y = log L, each (K,) -> theta (5,), or None where it fails."""
    split = np.log(PAPER_SPLIT) if x[1] < np.log(PAPER_SPLIT) < x[-2] else (x[0] + x[-1]) / 2
    slope = np.gradient(y, x)
    c0 = -float(slope[x <= split].mean())
    c1 = -float(slope[x > split].mean()) - c0

    def form(x: Array, log_b: float, c0: float, c1: float, log_d: float, f: float) -> Array:
        return log_b - c0 * x - c1 * f * np.logaddexp(0, (x - log_d) / f)

    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore", OptimizeWarning)
            found, _ = curve_fit(form, x, y, p0=[y[0] + c0 * x[0], c0, c1, split, 0.3], method="dogbox")
    except (RuntimeError, ValueError):  # out of evaluations; overflow
        return None
    if not np.isfinite(found).all() or found[4] <= 0:
        return None
    return np.array([*found[:4], np.log(found[4])])


def last_loss(c: Curve, plan: Plan) -> float:
    """L_T: the smoothed loss at the last step, in nats per token.

    Smoothing `none` takes the last point as it is, and `paper` the trailing mean there. `centred` takes the mean over
    [T/1.2, T] and carries it to T along the slope of the last factor of 4.
    """
    if plan.smoothing == "none":
        return float(c.losses[-1])
    if plan.smoothing == "paper":
        return float(np.exp(trailing_mean(c.log_losses)[-1]))
    x, y = np.log(c.steps), c.log_losses
    window, tail = x >= x[-1] - np.log(1.2), x >= x[-1] - np.log(4)
    spread = x[tail] - x[tail].mean()
    slope = float(spread @ y[tail] / (spread @ spread)) if spread @ spread > 0 else 0.0
    return float(np.exp(y[window].mean() + slope * (x[-1] - x[window].mean())))
