"""Measures of a loss curve that need no break, and so stand where t_d does not.

    local slope   −d log L / d log t, from a straight line through log L over log t in a window around each place
    tail slope    the same over the last factor of 4 in steps
    loss at s     the height of such a line at step s

Lines are fitted to bins (binning.py) by least squares, weighted with the number of steps in each bin. Intervals are
95 %, by Student's t. Their variance is the long-run variance of the residuals (residual_noise.py) of all lines
together, so that a window with few bins borrows its noise from the others. Exact for a power law; where the curve bends
inside a window, the slope is the window's mean. Cost: milliseconds.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as t_distribution

from zslx.deceleration import residual_noise
from zslx.deceleration.binning import Bins, bins
from zslx.deceleration.broken_power_law import Form, log_loss, solve, value_and_jacobian
from zslx.deceleration.loss_curve import Curve

Array = NDArray[np.float64]

# The window of the local slope spans a factor of 2 in steps.
SLOPE_WINDOW = 2.0
PLACES = 60
# The points that a curve must have for each break of the trend about which its noise is measured.
POINTS_A_BREAK = 12


class Band(NamedTuple):
    """Values at steps with their 95 % band: steps, value, low and high, each (M,)."""

    steps: Array
    value: Array
    low: Array
    high: Array


def local_slope(c: Curve, *, transient: float = 0, window: float = SLOPE_WINDOW, places: int = PLACES) -> Band:
    """−d log L / d log t at `places` log-spaced steps after `transient`, fewer where there are few bins."""
    b, variance, freedom = _binned(c, transient, 2)
    half = np.log(window) / 2
    at = np.linspace(b.x[0] + half, b.x[-1] - half, places) if b.x[-1] - b.x[0] > 2 * half else np.array([b.x.mean()])
    lines = [_line(b, x - half, x + half, x, variance) for x in at]
    kept = [(x, *line) for x, line in zip(at, lines, strict=True) if line]
    if not kept:
        raise ValueError("no window has the 3 points that a local slope needs")
    x, slope, error, _, _ = (np.array(column) for column in zip(*kept, strict=True))
    q = t_distribution.ppf(0.975, freedom)
    return Band(steps=np.exp(x), value=slope, low=slope - q * error, high=slope + q * error)


def tail_slope(c: Curve, factor: float = 4) -> tuple[float, float, float]:
    """−d log L / d log t over the last `factor` in steps: (value, low, high)."""
    b, variance, freedom = _binned(c, float(c.steps[-1]) / factor * (1 - 1e-12) if c.steps.size else 0, 1)
    line = _line(b, -np.inf, np.inf, float(b.x[-1]), variance)
    if line is None:
        raise ValueError(f"the last factor of {factor:g} in steps has {b.x.size} points; a slope needs 3")
    q = t_distribution.ppf(0.975, freedom)
    return line[0], line[0] - q * line[1], line[0] + q * line[1]


def loss_at(c: Curve, at: ArrayLike, *, transient: float = 0, window: float = SLOPE_WINDOW) -> Band:
    """Loss in nats per token at the given steps (M,); NaN outside the curve."""
    b, variance, freedom = _binned(c, transient, 2)
    q = t_distribution.ppf(0.975, freedom)
    places = np.log(np.atleast_1d(np.asarray(at, dtype=float)))
    half = np.log(window) / 2
    rows = []
    for x in places:
        inside = b.x[0] - half / 4 <= x <= b.x[-1] + half / 4
        line = _line(b, x - half, x + half, x, variance) if inside else None
        rows.append((np.nan,) * 3 if line is None else (line[2], line[2] - q * line[3], line[2] + q * line[3]))
    value, low, high = np.exp(np.array(rows)).T
    return Band(steps=np.exp(places), value=value, low=low, high=high)


def _binned(c: Curve, transient: float, breaks: int) -> tuple[Bins, Array, float]:
    """Bins after the early cut, the long-run variance of each bin (K,), and its degrees of freedom.

    The noise is what remains about a trend with `breaks` breaks (fewer where there are few points), since a bend of the
    curve is not noise.
    """
    kept = c.after(transient)
    if kept.steps.size < 3:
        raise ValueError(f"{kept.steps.size} points after step {transient:g}; a slope needs 3")
    steps, y = kept.steps, kept.log_losses
    b = bins(steps, y)
    form = Form(breaks=min(breaks, b.x.size // POINTS_A_BREAK))
    residuals = y - log_loss(form, _trend(form, b), np.log(steps))
    if y.size > b.x.size:
        length = residual_noise.correlation_length(residuals[-(2**15) :])
        b = bins(steps, y, least=float(np.clip(2 * length - 1, 1, max(1, y.size / 60))))
    value, design = value_and_jacobian(form, _trend(form, b)[None], b.x)
    residuals = b.y - value[0]
    weights = residual_noise.weights(b.n, residual_noise.misfit(residuals, b.n))
    model = residual_noise.noise(residuals, weights, design[0])
    return b, model.long_run / weights, float(max(model.freedom, 2))


def _trend(form: Form, b: Bins) -> Array:
    return solve(form, b.x, b.y, residual_noise.weights(b.n, 0.0)).theta


def _line(b: Bins, low: float, high: float, at: float, variance: Array) -> tuple[float, float, float, float] | None:
    """The line over the bins in [low, high]: (−slope, its error, height at `at`, its error); None below 3 bins."""
    inside = (b.x >= low - 1e-9) & (b.x <= high + 1e-9)
    if inside.sum() < 3:
        return None
    x, y, w, v = b.x[inside] - at, b.y[inside], b.n[inside] / b.n[inside].sum(), variance[inside]
    centre = float(w @ x)
    lever = w * (x - centre) / float(w @ (x - centre) ** 2)
    height = w - lever * centre
    return (
        -float(lever @ y), float(np.sqrt(lever**2 @ v)), float(height @ y), float(np.sqrt(height**2 @ v))
    )  # fmt: skip
