"""Broken power laws, and the least-squares fit of one to points of log loss.

    log(L(t) − a) = log b − c_0 x − Σ_{i=1..m} c_i f_i log(1 + exp((x − log d_i)/f_i)),    x = log t

b is the scale and c_0 the first slope. At each break i the slope changes by c_i around step d_i; f_i is the width of
the change in log t. a is the irreducible loss. The form is that of broken neural scaling laws (Caballero et al.,
arXiv 2210.14891). The zero-sum learning paper (arXiv 2506.05447) uses one break and a = 0.

How it is fitted. Given d, f and a the form is linear in the other parameters (variable projection), so each of 70 or
more starts on a grid gets its best b and c by one small linear solve. The best starts are refined by
Levenberg-Marquardt with exact derivatives, all at once; in the bootstrap all replicates are. A minimum that lies
between two starts could be missed; nothing else is approximate. tests/oracles/test_fit.py checks the result against
scipy.optimize.curve_fit and a brute-force grid. Cost: about 10 ms for one break on 300 points.

Shapes: S starts or replicates, K points, P = 2 + 3m (+1) parameters in the order
[log b, c_0, c_1..c_m, log d_1..log d_m, log f_1..log f_m, (a)].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

# Limits of f. A wider break cannot be told from a curve that bends everywhere, a sharper one not from a kink.
SMOOTHEST, SHARPEST = 2.0, 0.02
# How many of the starts are refined by a few iterations, and how many of these until they converge.
REFINED, FINISHED = 16, 3
# How far outside the data a break may be placed, in log t. The fit must be able to say that it lies outside.
OUTSIDE = float(np.log(10))
# The irreducible loss is at most this share of the smallest loss.
IRREDUCIBLE_SHARE = 0.98


@dataclass(frozen=True, kw_only=True)
class Form:
    """A member of the family: its number of breaks, whether a is fitted, whether breaks must decelerate (c_i < 0).

    `widest` is the largest f that is allowed. Below `SMOOTHEST`, it is a choice that defines the form, and an f that
    lies on it is no sign of a fit that failed.
    """

    breaks: int
    irreducible: bool = False
    decelerating: bool = False
    widest: float = SMOOTHEST

    @property
    def size(self) -> int:
        """P, the number of parameters."""
        return 2 + 3 * self.breaks + self.irreducible

    def split(self, theta: Array) -> tuple[Array, Array, Array, Array]:
        """(c_1..c_m, log d, f, a) of theta (..., P), each (..., m), a (..., 1)."""
        m = self.breaks
        a = theta[..., -1:] if self.irreducible else np.zeros_like(theta[..., :1])
        f = np.exp(theta[..., 2 + 2 * m : 2 + 3 * m])
        return theta[..., 2 : 2 + m], theta[..., 2 + m : 2 + 2 * m], f, a


@dataclass(frozen=True, kw_only=True)
class Solution:
    """The best theta (P,), its weighted sum of squares, and the names of the parameters that lie on a bound."""

    form: Form
    theta: Array
    loss: float
    on_bound: tuple[str, ...]


def log_loss(form: Form, theta: Array, x: Array) -> Array:
    """log L at x = log t: theta (..., P), x (K,) -> (..., K)."""
    c, d, f, a = form.split(theta)
    value = theta[..., :1] - theta[..., 1:2] * x
    for i in range(form.breaks):
        value = value - c[..., i : i + 1] * _bend(x, d[..., i : i + 1], f[..., i : i + 1])[0]
    return np.log(a + np.exp(value)) if form.irreducible else value


def _bend(x: Array, d: Array, f: Array) -> tuple[Array, Array]:
    """f log(1 + e^z) and its slope 1/(1 + e^−z) at z = (x − d)/f, by one exponential that cannot overflow."""
    z = (x - d) / f
    small = np.exp(-np.abs(z))
    bend = f * (np.maximum(z, 0) + np.log1p(small))
    return bend, np.where(z >= 0, 1.0, small) / (1 + small)


def value_and_jacobian(form: Form, theta: Array, x: Array) -> tuple[Array, Array]:
    """log L (S, K) and its derivatives (S, P, K) at theta (S, P)."""
    m = form.breaks
    c, d, f, a = form.split(theta)
    jacobian = np.empty((len(theta), form.size, x.size))
    jacobian[:, 0] = 1
    jacobian[:, 1] = -x
    value = theta[:, :1] - theta[:, 1:2] * x
    for i in range(m):
        ci, di, fi = c[:, i : i + 1], d[:, i : i + 1], f[:, i : i + 1]
        bend, slope = _bend(x, di, fi)
        value -= ci * bend
        jacobian[:, 2 + i] = -bend
        jacobian[:, 2 + m + i] = ci * slope
        jacobian[:, 2 + 2 * m + i] = -ci * (bend - (x - di) * slope)
    if form.irreducible:
        reducible = np.exp(value)
        loss = a + reducible
        jacobian[:, :-1] *= (reducible / loss)[:, None]
        jacobian[:, -1] = 1 / loss
        value = np.log(loss)
    return value, jacobian


def bounds(form: Form, x: Array, y: Array) -> tuple[Array, Array]:
    """Lowest and highest value of each parameter (P,)."""
    m = form.breaks
    low, high = np.full(form.size, -np.inf), np.full(form.size, np.inf)
    low[2 + m : 2 + 2 * m], high[2 + m : 2 + 2 * m] = x.min() - OUTSIDE, x.max() + OUTSIDE
    low[2 + 2 * m : 2 + 3 * m], high[2 + 2 * m : 2 + 3 * m] = np.log(SHARPEST), np.log(form.widest)
    if form.decelerating:
        high[2 : 2 + m] = 0
    if form.irreducible:
        low[-1], high[-1] = 0, IRREDUCIBLE_SHARE * float(np.exp(y.min()))
    return low, high


def refine(
    form: Form, theta: Array, x: Array, y: Array, weights: Array, *, iterations: int = 60, tolerance: float = 1e-10,
    held: tuple[int, ...] = (),
) -> tuple[Array, Array]:  # fmt: skip
    """Levenberg-Marquardt on all rows at once: theta (S, P), y (K,) or (S, K), weights (K,) -> theta, losses (S,).

    A row is finished when an iteration lowers its loss by less than the share `tolerance`. Parameters whose indices
    are in `held` keep their values.
    """
    low, high = bounds(form, x, y)
    theta = np.clip(theta, low, high)
    fixed = np.isin(np.arange(form.size), held)
    y = np.broadcast_to(y, (len(theta), x.size))
    root = np.sqrt(weights)
    value, jacobian = value_and_jacobian(form, theta, x)
    residual = (y - value) * root
    losses = np.einsum("sk,sk->s", residual, residual)
    damping = np.full(len(theta), 1e-3)
    active = np.arange(len(theta))
    for _ in range(iterations):
        if not active.size:
            break
        scaled = jacobian * root
        normal = scaled @ scaled.transpose(0, 2, 1)
        right = np.einsum("spk,sk->sp", scaled, residual)
        step = _damped_step(normal, right, theta[active], damping[active], low, high, fixed)
        trial = np.clip(theta[active] + step, low, high)
        trial_value, trial_jacobian = value_and_jacobian(form, trial, x)
        trial_residual = (y[active] - trial_value) * root
        trial_losses = np.einsum("sk,sk->s", trial_residual, trial_residual)
        better = trial_losses < losses[active]
        gain = np.where(better, losses[active] - trial_losses, 0)
        done = np.where(better, gain <= tolerance * losses[active], damping[active] > 1e6)
        rows = active[better]
        theta[rows], losses[rows] = trial[better], trial_losses[better]
        damping[active] *= np.where(better, 0.2, 6.0)
        keep = ~done
        residual = np.where(better[:, None], trial_residual, residual)[keep]
        jacobian = np.where(better[:, None, None], trial_jacobian, jacobian)[keep]
        active = active[keep]
    return theta, losses


def _damped_step(
    normal: Array, right: Array, theta: Array, damping: Array, low: Array, high: Array, fixed: NDArray[np.bool_]
) -> Array:
    """Solves (JᵀJ + λ diag) δ = Jᵀr in each row, without the parameters that are fixed or would cross their bound."""
    held = ((theta <= low) & (right < 0)) | ((theta >= high) & (right > 0)) | fixed
    diagonal = np.einsum("spp->sp", normal)
    floor = 1e-14 * diagonal.max(axis=1, keepdims=True) + 1e-300
    matrix = normal.copy()
    np.einsum("spp->sp", matrix)[:] += damping[:, None] * diagonal + floor
    if held.any():
        matrix[held[:, :, None] | held[:, None, :]] = 0
        np.einsum("spp->sp", matrix)[held] = 1
        right = np.where(held, 0, right)
    return np.asarray(np.linalg.solve(matrix, right[..., None])[..., 0], dtype=np.float64)


def starts(form: Form, x: Array, y: Array, weights: Array) -> tuple[Array, Array]:
    """The starts on the grid, each with its best linear parameters: theta (S, P), losses (S,)."""
    shares = np.array([0.0, 0.5, 0.8]) if form.irreducible else np.zeros(1)
    inside = np.linspace(x[0], x[-1], 2 * 14 + 1)[1::2]
    if form.breaks == 0:
        d = f = np.empty((1, 0))
    elif form.breaks == 1:
        widths = np.unique(np.minimum([0.05, 0.15, 0.35, 0.7, 1.2], form.widest))
        d, f = (g.reshape(-1, 1) for g in np.meshgrid(inside, widths))
    else:
        first, second = np.triu_indices(inside.size, k=2)
        d = np.stack([inside[first], inside[second]], axis=1)
        d, f = np.tile(d, (2, 1)), np.repeat([[0.15, 0.15], [0.5, 0.5]], len(d), axis=0)
    thetas, losses = [], []
    for a in shares * np.exp(y.min()):
        theta, loss = _project(form, d, f, float(a), x, y, weights)
        thetas.append(theta)
        losses.append(loss)
    return np.concatenate(thetas), np.concatenate(losses)


def _project(form: Form, d: Array, f: Array, a: float, x: Array, y: Array, weights: Array) -> tuple[Array, Array]:
    """The best linear parameters at log d (S, m), f (S, m) and a, by variable projection: theta (S, P), losses (S,)."""
    target = np.log(np.exp(y) - a)
    # Multiplied by d log L / d log(L − a), the squares are those of log L to first order.
    root = np.sqrt(weights) * np.exp(target - y)
    columns = [np.ones((len(d), x.size)), np.broadcast_to(-x, (len(d), x.size))]
    columns += [-_bend(x, d[:, i : i + 1], f[:, i : i + 1])[0] for i in range(form.breaks)]
    design = np.stack(columns, axis=1) * root
    normal = design @ design.transpose(0, 2, 1)
    diagonal = np.einsum("spp->sp", normal)
    diagonal += 1e-12 * diagonal.max(axis=1, keepdims=True)
    linear: Array = np.linalg.solve(normal, (design @ (target * root))[..., None])[..., 0]
    if form.decelerating and form.breaks:
        linear[:, 2:] = np.minimum(linear[:, 2:], 0)
    residual = target * root - np.einsum("sp,spk->sk", linear, design)
    parts = [linear, d, np.log(f)] + ([np.full((len(d), 1), a)] if form.irreducible else [])
    return np.concatenate(parts, axis=1), np.einsum("sk,sk->s", residual, residual)


def solve(form: Form, x: Array, y: Array, weights: Array) -> Solution:
    """The best fit of `form` to points (x, y), each (K,), from many starts.

    The best `REFINED` starts take a few iterations; the best `FINISHED` of these go on until they converge. Raises
    ValueError where there are fewer points than parameters.
    """
    if x.size < form.size:
        raise ValueError(f"{x.size} points are too few for a fit of {form.size} parameters")
    theta, losses = starts(form, x, y, weights)
    theta, losses = refine(form, theta[_best(losses, REFINED)], x, y, weights, iterations=8)
    theta, losses = refine(form, theta[_best(losses, FINISHED)], x, y, weights)
    winner = int(np.argmin(losses))
    return Solution(
        form=form,
        theta=theta[winner],
        loss=float(losses[winner]),
        on_bound=on_bound(form, theta[winner], x, y),
    )


def _best(losses: Array, count: int) -> NDArray[np.int64]:
    return np.argsort(losses, kind="stable")[:count]


def on_bound(form: Form, theta: Array, x: Array, y: Array) -> tuple[str, ...]:
    """Names of the parameters that lie on a bound. f = `SHARPEST` does not count: a kink, too, has a definite place."""
    low, high = bounds(form, x, y)
    low[2 + 2 * form.breaks : 2 + 3 * form.breaks] = -np.inf
    if form.widest < SMOOTHEST:
        high[2 + 2 * form.breaks : 2 + 3 * form.breaks] = np.inf
    if form.irreducible:
        low[-1] = -np.inf  # a = 0 is the paper's form
    m = form.breaks
    names = ["b", "c0", *(f"{p}{i + 1}" for p in "cdf" for i in range(m)), *(["a"] if form.irreducible else [])]
    near = 1e-6
    return tuple(n for n, v, lo, hi in zip(names, theta, low, high, strict=True) if v <= lo + near or v >= hi - near)
