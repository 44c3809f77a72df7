"""Intervals for one run: L_d, t_d, r_d and L̂_T from a bootstrap, or at once from the delta method.

    delta      θ̂ − θ ≈ (JᵀwJ)⁻¹ Jᵀw e,  cov(e) = W (κ diag v) Wᵀ     W the smoothing, κ, v the noise of noise.py
    bootstrap  curve* = fit + new noise (moving blocks of prewhitened residuals), smoothed and refitted by
               Levenberg-Marquardt from the optimum, all replicates at once
    profile    of t_d: every d at which the weighted squares exceed the minimum by less than κ F(1, ν)

Intervals are estimate ± q · s, on the scales log L_d, log t_d, r_d, log L̂_T, with q the quantile of Student's t at
ν, the degrees of freedom of κ, and s the spread of the replicates (their 68 % range, so that a few
replicates that ran away do not count). Where the profile interval of t_d reaches clearly further (a smooth break near
an end of the curve may lie much further out than in, and spreads are symmetric) they are widened to the values that
the measures take there. See benchmarks/README.md for what they cover. Approximate: a run's misfit
and noise are taken as stationary in log t. Cost: the bootstrap of 1,000 on 300 points 0.3 to 1 s.

`MEASURES` are, in this order and on these scales, what `measures` returns for theta (..., P): (..., 4).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import f as f_distribution
from scipy.stats import t as t_distribution

from zslx.deceleration.broken_power_law import Form, log_loss, refine, value_and_jacobian
from zslx.deceleration.single_fit import Estimate

Array = NDArray[np.float64]

MEASURES = ("L_d", "t_d", "r_d", "L_T_hat")
REPLICATES = 1000  # of the bootstrap, where no number is given
# How much further than half the interval an end of the profile interval must reach to count: both are estimates.
STRETCH = 1.2
# Degrees of freedom are counted no lower than this: below, Student's t says nothing that could be used.
FEWEST_FREEDOM = 4


def measures(form: Form, theta: Array, last_step: float) -> Array:
    """[log L_d, log t_d, r_d, log L̂_T] of the strongest deceleration in theta (..., P) -> (..., 4).

    With one break exactly the paper's: L_d = a + b d^{−c_0}, r_d = c_0 + c_1, L̂_T = a + (L_d − a)(t_d/T)^{r_d}.
    With two, L_d lies on the asymptote that leads to the break, and L̂_T follows a later break.
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
    return np.stack([L_d, t_d, r_d, end], axis=-1)


def natural(name: str, value: float) -> float:
    """A measure from the scale of `measures` to its own."""
    return float(value if name == "r_d" else np.exp(np.clip(value, -700, 700)))


def replicates(e: Estimate, count: int, generator: np.random.Generator) -> Array:
    """`count` bootstrap fits -> theta (count, P)."""
    form, theta = e.plan.form, e.solution.theta
    curves = log_loss(form, theta, e.x) + e.noise.draw(count, generator) @ e.matrix.T
    return refine(form, np.tile(theta, (count, 1)), e.x, curves, e.weights, iterations=25, tolerance=1e-6)[0]


def covariance(e: Estimate) -> Array:
    """Covariance of theta (P, P) by the delta method, directions that the points do not see left out."""
    jacobian = value_and_jacobian(e.plan.form, e.solution.theta[None], e.x)[1][0]
    weighted = jacobian * e.weights
    bread = np.linalg.pinv(weighted @ jacobian.T, rcond=1e-13, hermitian=True)
    carried = weighted @ e.matrix * (e.noise.scale * np.sqrt(e.noise.long_run))
    return bread @ (carried @ carried.T) @ bread


def delta_spread(e: Estimate, last_step: float) -> Array:
    """Standard errors (4,) of the measures by the delta method."""
    theta = e.solution.theta
    step = 1e-5
    shifts = np.eye(theta.size) * step
    form = e.plan.form
    gradient = (measures(form, theta + shifts, last_step) - measures(form, theta - shifts, last_step)) / (2 * step)
    return np.sqrt(np.einsum("pm,pq,qm->m", gradient, covariance(e), gradient).clip(0))


def quantile(e: Estimate) -> float:
    """Student's t at 97.5 % with the degrees of freedom of the noise."""
    return float(t_distribution.ppf(0.975, max(e.noise.freedom, FEWEST_FREEDOM)))


def intervals(
    e: Estimate, last_step: float, thetas: Array | None, profile: list[float] | None
) -> dict[str, list[float] | None]:
    """95 % intervals of the measures, from bootstrap replicates (R, P) or (None) by the delta method, and from the
    profile interval of t_d where there is one."""
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
    return {
        name: [natural(name, low), natural(name, high)]
        for name, low, high in zip(MEASURES, ends.min(axis=0), ends.max(axis=0), strict=True)
    }


def _refitted(e: Estimate, t_d: list[float]) -> Array:
    """theta (len(t_d), P) of the best fits with the break held at these steps."""
    rows = np.tile(e.solution.theta, (len(t_d), 1))
    rows[:, 3] = np.log(t_d)
    return refine(e.plan.form, rows, e.x, e.y, e.weights, held=(3,), iterations=40, tolerance=1e-8)[0]


def profile_t_d(e: Estimate, *, points: int = 61) -> list[float] | None:
    """The 95 % profile interval of t_d in steps, or None where it reaches beyond the first or the last step.

    One break only. The squares are those of the bins, weighted, in units of their long-run variance κ.
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
    """Where the excess crosses 0 between grid points i and i + 1, linearly."""
    share = excess[i] / (excess[i] - excess[i + 1])
    return float(grid[i] + share * (grid[i + 1] - grid[i]))
