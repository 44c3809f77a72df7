"""Turns a loss curve into the points of a fit: bins of equal width in log t, and moving averages over bins.

Bins. The steps are divided into about `BINS` bins of equal width in x = log t. Each bin holds at least `least` steps,
and its point is the mean of x and of log loss over its n steps. A curve with at most `AS_THEY_ARE` × `BINS` points
(short, or thinned before) keeps its points, unless `least` asks for more steps in a bin. Bins do not overlap, because
the noise of the run is modelled on them (residual_noise.py); they must be longer than the noise is correlated.

Smoothing. A matrix of running means turns bins into points:
    centred  the window is [t/√1.2, t·√1.2] and the point lies at the mean of x in it. This is exact for any power law,
             at the ends of the curve too, where the window is cut off.
    paper    the window is [t/1.2, t] and the point lies at t. This is the paper's trailing window. It places t_d too
             late, by a factor of about √1.2 = 1.10.
    none     the points are the bins.

`paper_points` prepares a curve exactly as the paper does. It averages over indices [⌊j/1.2⌋, j] of the curve of
single steps, then keeps the steps divisible by 10^min(⌊log10 s − 1⌋, 3), and the last one.

Cost: one cumulative sum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

BINS = 300
# A curve with up to this many times `BINS` points keeps them.
AS_THEY_ARE = 2
WINDOW = 1.2
SMOOTHINGS = ("centred", "paper", "none")


@dataclass(frozen=True, kw_only=True)
class Bins:
    """Per bin, each (K,): x the mean log step, y the mean log loss, n its steps, first the index of its first step."""

    x: Array
    y: Array
    n: Array
    first: NDArray[np.int64]

    def averaged(self, log_losses: Array) -> Array:
        """Averages another curve (N,) on the same steps over the same bins -> (K,)."""
        return np.add.reduceat(log_losses, self.first) / self.n


def bins(steps: Array, log_losses: Array, *, least: float = 1.0, count: int = BINS) -> Bins:
    """Bins of equal width in log t with at least `least` steps each; steps (N,) > 0 and increasing, log_losses (N,)."""
    x = np.log(steps)
    width = max((x[-1] - x[0]) / count, 1e-12) if x.size > AS_THEY_ARE * count else 1e-12
    place = np.cumsum(np.minimum(np.diff(x, prepend=x[0]) / width, 1 / least))
    first = np.flatnonzero(np.diff(np.floor(place + 1e-9), prepend=-1))
    n = np.diff(first, append=x.size).astype(float)
    return Bins(x=np.add.reduceat(x, first) / n, y=np.add.reduceat(log_losses, first) / n, n=n, first=first)


def windows(b: Bins, smoothing: str) -> tuple[Array, Array]:
    """The x of the points (K,), and the matrix (K, K) of running means that makes them: points = matrix @ bins."""
    if smoothing not in SMOOTHINGS:
        raise ValueError(f"smoothing is {smoothing!r}; allowed: {', '.join(SMOOTHINGS)}")
    if smoothing == "none":
        return b.x, np.eye(b.x.size)
    width = np.log(WINDOW)
    below, above = (width / 2, width / 2) if smoothing == "centred" else (width, 0.0)
    distance = b.x[None, :] - b.x[:, None]
    inside = (distance >= -below - 1e-9) & (distance <= above + 1e-9)
    matrix: Array = inside * b.n
    matrix /= matrix.sum(axis=1, keepdims=True)
    return (matrix @ b.x if smoothing == "centred" else b.x), matrix


def trailing_mean(values: Array) -> Array:
    """The paper's moving average of values (N,) over indices [⌊j/1.2⌋, j] -> (N,)."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    last = np.arange(values.size)
    first = (last // WINDOW).astype(np.int64)
    mean: Array = (total[last + 1] - total[first]) / (last + 1 - first)
    return mean


def paper_points(steps: Array, log_losses: Array) -> tuple[Array, Array]:
    """The paper's points before its early cut: the steps that it keeps, and the moving average of log loss at each."""
    decade = np.minimum(np.floor(np.log10(np.maximum(steps, 1)) - 1), 3).clip(0)
    kept = steps % 10**decade == 0
    kept[-1] = True
    return steps[kept], trailing_mean(log_losses)[kept]
