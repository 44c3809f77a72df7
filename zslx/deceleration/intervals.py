"""The measures of a fit (L_d, t_d, r_d and L̂_T) and their 95 % intervals, from a single run.

    bootstrap  New curves are made of the fit and new noise (residual_noise.py), smoothed, and refitted by
               Levenberg-Marquardt from the optimum, all replicates at once.
    delta      θ̂ − θ ≈ (JᵀwJ)⁻¹ Jᵀw e with cov(e) = W (κ diag v) Wᵀ, where W is the smoothing, and κ and v are the
               long-run variance and the scale of the noise. It costs nothing, and is too short for smooth breaks.
    profile    The interval of t_d holds every d at which the weighted squares exceed their minimum by less than
               κ F(1, ν).

An interval is estimate ± q · s on the scales log L_d, log t_d, r_d and log L̂_T. q is the quantile of Student's t at ν,
the degrees of freedom of κ. s is the spread of the replicates: half their 68 % range, since it is robust to bootstrap
refits that diverge. Where the profile interval of t_d reaches clearly further than the interval, the intervals are
widened to the values that the measures take there: a smooth break near an end of the curve may lie much further out
than in, while a spread is symmetric.

Approximate: misfit and noise are taken to be stationary in log t. benchmarks/README.md has the measured coverage.
Cost: 0.3 to 1 s for a bootstrap of 1,000 replicates on 300 points.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import f as f_distribution
from scipy.stats import t as t_distribution

from zslx.deceleration.broken_power_law import SMOOTHEST, Form, log_loss, refine, value_and_jacobian
from zslx.deceleration.single_fit import Estimate

Array = NDArray[np.float64]

REPLICATES = 1000  # of the bootstrap, where no number is given
# An end of the profile interval counts where it reaches this many times further than the interval: both are estimates.
STRETCH = 1.2
# Degrees of freedom are taken to be at least this many. With fewer, Student's t is too wide to be of any use.
FEWEST_FREEDOM = 4


class Measured(NamedTuple):
    """The measures of one fit: loss at the break and predicted loss at T in nats per token, t_d in steps, slope r_d."""

    L_d: float
    t_d: float
    r_d: float
    L_T_hat: float


MEASURES = Measured._fields


def measures(form: Form, theta: Array, last_step: float) -> Array:
    """[log L_d, log t_d, r_d, log L̂_T] of the strongest deceleration in theta (..., P) -> (..., 4).

    With one break they are the paper's: L_d = a + b d^{−c_0}, r_d = c_0 + c_1, L̂_T = a + (L_d − a)(t_d/T)^{r_d}.
    With two, L_d lies on the asymptote that leads to the stronger deceleration, and L̂_T also follows a later break.
    """
    c, d, _, a = form.split(theta)
    which = np.argmin(c, axis=-1)
    level, slope = theta[..., 0] - theta[..., 1] * d[..., 0], theta[..., 1] + c[..., 0]
    L_d, r_d, t_d = level, slope, d[..., 0]
    for i in range(1, form.breaks):
        level = level - slope * (d[..., i] - d[..., i - 1])
        slope = slope + c[..., i]
        chosen = which == i
        L_d, r_d, t_d = np.where(chosen, level, L_d), np.where(chosen, slope, r_d), np.where(chosen, d[..., i], t_d)
    end = level - slope * (np.log(last_step) - d[..., -1])
    if form.irreducible:
        L_d, end = np.log(a[..., 0] + np.exp(L_d)), np.log(a[..., 0] + np.exp(end))
    stacked: Array = np.stack([L_d, t_d, r_d, end], axis=-1)
    return stacked


def natural(values: Array) -> Measured:
    """The measures in their own units, from the scales of `measures` (4,)."""
    L_d, t_d, r_d, L_T_hat = values
    return Measured(bounded_exp(L_d), bounded_exp(t_d), float(r_d), bounded_exp(L_T_hat))


def measured(form: Form, theta: Array, last_step: float) -> Measured:
    """The measures of one fit theta (P,) in their own units."""
    return natural(measures(form, theta, last_step))


def bounded_exp(value: float) -> float:
    """exp, up to what a float holds: the fit of a curve that is no power law at all may diverge."""
    return float(np.exp(min(float(value), 700.0)))


def replicates(e: Estimate, count: int, generator: np.random.Generator) -> Array:
    """The parameters of `count` bootstrap fits: theta (count, P).

    Their breaks may be wider than the form allows: at that bound they would pile up, and their spread would be too
    small for a break that is nearly as wide.
    """
    form, theta = e.plan.form, e.solution.theta
    curves = log_loss(form, theta, e.x) + e.noise.draw(count, generator) @ e.matrix.T
    form = dataclasses.replace(form, widest=SMOOTHEST)
    return refine(form, np.tile(theta, (count, 1)), e.x, curves, e.weights, iterations=25, tolerance=1e-6)[0]


def covariance(e: Estimate) -> Array:
    """Covariance of theta (P, P) by the delta method, without directions on which the points say nothing."""
    jacobian = value_and_jacobian(e.plan.form, e.solution.theta[None], e.x)[1][0]
    weighted = jacobian * e.weights
    bread = np.linalg.pinv(weighted @ jacobian.T, rcond=1e-13, hermitian=True)
    carried = weighted @ e.matrix * (e.noise.scale * np.sqrt(e.noise.long_run))
    result: Array = bread @ (carried @ carried.T) @ bread
    return result


def delta_spread(e: Estimate, last_step: float) -> Array:
    """Standard errors (4,) of the measures, on the scales of `measures`, by the delta method."""
    theta = e.solution.theta
    step = 1e-5
    shifts = np.eye(theta.size) * step
    form = e.plan.form
    gradient = (measures(form, theta + shifts, last_step) - measures(form, theta - shifts, last_step)) / (2 * step)
    variances: Array = np.einsum("pm,pq,qm->m", gradient, covariance(e), gradient)
    spread: Array = np.sqrt(variances.clip(0))
    return spread


def quantile(e: Estimate) -> float:
    """The 97.5 % quantile of Student's t at the degrees of freedom of the noise."""
    return float(t_distribution.ppf(0.975, max(e.noise.freedom, FEWEST_FREEDOM)))


def intervals(
    e: Estimate, last_step: float, thetas: Array | None, profile: list[float] | None
) -> dict[str, list[float] | None]:
    """95 % intervals [low, high] of the measures, widened by the profile interval of t_d where there is one.

    The spread is that of bootstrap replicates `thetas` (R, P); None takes the delta method.
    """
    centre = measures(e.plan.form, e.solution.theta, last_step)
    if thetas is None:
        spread = delta_spread(e, last_step)
    else:
        low, high = np.quantile(measures(e.plan.form, thetas, last_step), [0.1587, 0.8413], axis=0)
        spread = (high - low) / 2
    half = quantile(e) * spread
    ends = np.stack([centre - half, centre + half])
    if far := [t for t in profile or () if abs(np.log(t) - centre[1]) > STRETCH * half[1]]:
        ends = np.concatenate([ends, measures(e.plan.form, _refitted(e, far), last_step)])
    lows, highs = natural(ends.min(axis=0)), natural(ends.max(axis=0))
    return {name: [low, high] for name, low, high in zip(MEASURES, lows, highs, strict=True)}


def _refitted(e: Estimate, t_d: list[float]) -> Array:
    """The best fits with the break held at each of these steps: theta (len(t_d), P)."""
    rows = np.tile(e.solution.theta, (len(t_d), 1))
    rows[:, 3] = np.log(t_d)
    return refine(e.plan.form, rows, e.x, e.y, e.weights, held=(3,), iterations=40, tolerance=1e-8)[0]


def profile_t_d(e: Estimate, *, points: int = 61) -> list[float] | None:
    """The 95 % profile interval of t_d in steps; None where it reaches the first or the last step.

    Only a form with one break has one. The squares are those of the bins, in units of their long-run variance κ.
    """
    form, b = e.plan.form, e.bins
    if form.breaks != 1:
        return None
    grid = np.linspace(b.x[0], b.x[-1], points)
    theta, _ = refine(form, e.solution.theta[None], b.x, b.y, e.weights)
    best = theta[0]
    for _ in range(2):
        rows = np.tile(best, (grid.size, 1))
        rows[:, 3] = grid
        losses = refine(form, rows, b.x, b.y, e.weights, held=(3,), iterations=40, tolerance=1e-8)[1]
        limit = e.noise.long_run * f_distribution.ppf(0.95, 1, max(e.noise.freedom, FEWEST_FREEDOM))
        excess = losses - refine(form, best[None], b.x, b.y, e.weights)[1][0] - limit
        inside = excess <= 0
        if not inside.any():
            grid = best[3] + np.linspace(-1, 1, points) * (grid[1] - grid[0])
            continue
        first, last = int(np.argmax(inside)), points - 1 - int(np.argmax(inside[::-1]))
        if first == 0 or last == points - 1:
            return None
        ends = [_crossing(grid, excess, first - 1), _crossing(grid, excess, last)]
        grid = np.linspace(grid[first - 1], grid[last + 1], points)
    return [float(np.exp(end)) for end in ends] if inside.any() else None


def _crossing(grid: Array, excess: Array, i: int) -> float:
    """Where the excess crosses 0 between grid points i and i + 1, by linear interpolation."""
    share = excess[i] / (excess[i] - excess[i + 1])
    return float(grid[i] + share * (grid[i + 1] - grid[i]))
