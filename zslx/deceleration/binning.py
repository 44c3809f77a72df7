"""From a loss curve to the points of a fit: bins of equal width in log t, and moving averages of log loss.

Bins: the steps are cut into at most about `BINS` cells of equal width in x = log t, but of at least `least`
steps each; a bin is the mean of log loss and of x over its n steps. A curve of at most twice as many points (a
short one, or one that is thinned already) is taken as it is, but for `least`. Bins do not overlap: the noise of
a run is modelled on them (noise.py), which asks for bins no shorter than the noise is correlated.

Smoothing turns bins into points by a matrix of running means:
    centred  window [t/√1.2, t·√1.2], its abscissa the mean of x in the window: exact for any power law, also at
             the ends of the curve where the window is cut off
    paper    window [t/1.2, t], placed at t: the trailing window of the paper, which puts t_d late by about
             √1.2 = 1.09
    none     the bins themselves

`paper_points` is the paper's own preparation, step by step: index window [⌊j/1.2⌋, j] on the per-step curve, then
the steps divisible by 10^min(⌊log10 s − 1⌋, 3) and the last. Cost: one cumulative sum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

BINS = 300
# Up to this many times `BINS` points are taken as they are.
AS_THEY_ARE = 2
WINDOW = 1.2
SMOOTHINGS = ("centred", "paper", "none")


@dataclass(frozen=True, kw_only=True)
class Bins:
    """x: mean log step, y: mean log loss, n: steps in the bin, first: index of its first step; each (K,)."""

    x: Array
    y: Array
    n: Array
    first: NDArray[np.int64]

    def averaged(self, log_losses: Array) -> Array:
        """Another curve (N,) on the same steps, averaged over the same bins -> (K,)."""
        return np.add.reduceat(log_losses, self.first) / self.n


def bins(steps: Array, log_losses: Array, *, least: float = 1.0, count: int = BINS) -> Bins:
    """Bins of equal width in log t, of at least `least` steps; steps (N,) increasing and above 0, log_losses (N,)."""
    x = np.log(steps)
    width = max((x[-1] - x[0]) / count, 1e-12) if x.size > AS_THEY_ARE * count else 1e-12
    place = np.cumsum(np.minimum(np.diff(x, prepend=x[0]) / width, 1 / least))
    first = np.flatnonzero(np.diff(np.floor(place + 1e-9), prepend=-1))
    n = np.diff(first, append=x.size).astype(float)
    return Bins(x=np.add.reduceat(x, first) / n, y=np.add.reduceat(log_losses, first) / n, n=n, first=first)


def windows(b: Bins, smoothing: str) -> tuple[Array, Array]:
    """The points' abscissae (K,) and the matrix (K, K) of running means: points = matrix @ bins."""
    if smoothing not in SMOOTHINGS:
        raise ValueError(f"smoothing is {smoothing!r}; allowed: {', '.join(SMOOTHINGS)}")
    if smoothing == "none":
        return b.x, np.eye(b.x.size)
    width = np.log(WINDOW)
    below, above = (width / 2, width / 2) if smoothing == "centred" else (width, 0.0)
    distance = b.x[None, :] - b.x[:, None]
    inside = (distance >= -below - 1e-9) & (distance <= above + 1e-9)
    matrix = inside * b.n
    matrix /= matrix.sum(axis=1, keepdims=True)
    return (matrix @ b.x if smoothing == "centred" else b.x), matrix


def trailing_mean(values: Array) -> Array:
    """The paper's moving average over indices [⌊j/1.2⌋, j]; values (N,) -> (N,)."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    last = np.arange(values.size)
    first = (last // WINDOW).astype(np.int64)
    return (total[last + 1] - total[first]) / (last + 1 - first)


def paper_points(steps: Array, log_losses: Array) -> tuple[Array, Array]:
    """The paper's points before its cut at s > 100: steps and log of the moving average, thinned."""
    decade = np.minimum(np.floor(np.log10(np.maximum(steps, 1)) - 1), 3).clip(0)
    kept = steps % 10**decade == 0
    kept[-1] = True
    return steps[kept], trailing_mean(log_losses)[kept]
