"""Trends over model sizes, scaling-law fits of final losses, and the scale-equivalent gain of an arm.

The trend of a measure y in log N is fitted by least squares to the size means. It is a contrast with the weights
c_s = (x_s − x̄)/Σ(x − x̄)², so that its interval over seeds keeps what pairing gives (analysis/inference/contrasts.py).

The scale-equivalent gain at size N is exp(−Δ/β), the factor by which the baseline would have to grow for the same loss.
Δ is the paired difference of log held-out loss at that size, and β the slope of the baseline's −log L_T in log
non-embedding N. Both come from the same seeds, so the interval is Fieller's, with their covariance. The gain is
refused, with the reason, below three sizes or where β is not clearly above 0. It is marked where N·gain lies outside
the sizes trained.

Scaling laws (Kaplan et al. 2020, 2001.08361; Hoffmann et al. 2022, 2203.15556), fitted to the baseline's
final losses in log loss: L = (N_c/N)^α from three sizes; L = E + A N^−α from four; L = E + A N^−α + B D^−β
when at least six points have three or more different D, D tokens. Exact: trends. Approximate: a power law
in N is assumed over the sizes trained, and `curvature` says how the sizes depart from it. Checked on
planted laws in tests/unit/test_compare_scaling.py.

Shapes: S sizes, n seeds.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from analysis.inference.contrasts import contrast, influence, ratio_interval, size_means, usable_sizes
from analysis.numbers import count

LEAST_SIZES = 3


def slope_weights(x: np.ndarray) -> np.ndarray:
    """(S,) weights whose product with the size means is the least-squares slope in x."""
    centred = x - x.mean()
    return centred / (centred @ centred)


def trend(values: np.ndarray, parameters: np.ndarray) -> dict[str, Any]:
    """Slope of values (S, n) in log N with its interval, or why there is none."""
    sizes = usable_sizes(values)
    if (different := len(set(parameters[sizes]))) < LEAST_SIZES:
        return {"refused": f"{count(different, 'size')} with two seeds or more; a trend needs {LEAST_SIZES}"}
    x, y = np.log(parameters[sizes]), values[sizes]
    found = contrast(y, slope_weights(x))
    assert found is not None
    means = size_means(y)
    line = means.mean() + found.estimate * (x - x.mean())
    return found.as_dict() | {
        "intercept": float(means.mean() - found.estimate * x.mean()),
        "curvature": float(np.sqrt(np.mean((means - line) ** 2))),
    }


def equivalent_gain(differences: np.ndarray, baseline: np.ndarray, parameters: np.ndarray, at: int) -> dict[str, Any]:
    """Scale-equivalent gain at size `at`: differences and baseline log held-out losses (S, n), N (S,)."""
    sizes = usable_sizes(baseline)
    if (different := len(set(parameters[sizes]))) < LEAST_SIZES:
        return {"refused": f"{count(different, 'size')} with a baseline; the trend needs {LEAST_SIZES}"}
    if not usable_sizes(differences)[at]:
        return {"refused": "fewer than two pairs at this size"}
    weights = -slope_weights(np.log(parameters[sizes]))
    beta = contrast(baseline[sizes], weights)
    delta = contrast(-differences[[at]])
    assert beta is not None and delta is not None and beta.low is not None
    if beta.low <= 0:
        return {"refused": f"the baseline's loss does not clearly fall with size (β from {beta.low:.3g})"}
    n = min(beta.seeds, delta.seeds)
    shared = influence(baseline[sizes], weights) @ influence(-differences[[at]], np.ones(1))
    interval = ratio_interval(delta, beta, n / (n - 1) * float(shared))
    if interval is None:
        return {"refused": "the interval of the ratio is unbounded"}
    gain = math.exp(delta.estimate / beta.estimate)
    inside = parameters[sizes].min() <= parameters[at] * gain <= parameters[sizes].max()
    low, high = (math.exp(min(x, 700.0)) for x in interval)
    return {"gain": gain, "low": low, "high": high, "beta": beta.as_dict(), "extrapolated": not bool(inside)}


def laws(log_loss: np.ndarray, parameters: np.ndarray, tokens: np.ndarray) -> dict[str, Any]:
    """Scaling-law fits of the baseline's final losses: log_loss (S, n), N (S,), D (S,)."""
    there = np.isfinite(log_loss).any(axis=1)
    y, big_n, big_d = size_means(log_loss[there]), parameters[there], tokens[there]
    found: dict[str, Any] = {}
    different = len(set(big_n))
    if different < LEAST_SIZES:
        found["kaplan"] = {"refused": f"{count(different, 'size')}, needs {LEAST_SIZES}"}
    else:
        weights = slope_weights(np.log(big_n))
        alpha = -float(weights @ y)
        log_nc = float(np.mean(y + alpha * np.log(big_n))) / alpha if alpha > 0 else math.nan
        residual = y - alpha * (log_nc - np.log(big_n))
        found["kaplan"] = {"alpha": alpha, "log_N_c": log_nc, "rmse_log": _rms(residual)}
        if alpha <= 0:
            found["kaplan"] = {"refused": "the loss does not fall with size"}
    if different < 4:
        found["chinchilla"] = {
            "refused": f"{count(different, 'size')}, needs 4 (three constants from as many points fit anything)"
        }
    else:
        found["chinchilla"] = _chinchilla(y, big_n, None)
    if len(y) >= 6 and len(set(big_d)) >= 3:
        found["chinchilla_tokens"] = _chinchilla(y, big_n, big_d)
    return found


def _chinchilla(y: np.ndarray, big_n: np.ndarray, big_d: np.ndarray | None) -> dict[str, Any]:
    """L = E + A N^−α (+ B D^−β) by least squares of log L from a grid of starts; N, D relative to their means."""
    n = np.log(big_n) - np.log(big_n).mean()
    d = None if big_d is None else np.log(big_d) - np.log(big_d).mean()

    def model(theta: np.ndarray) -> np.ndarray:
        terms = [np.full_like(n, theta[0]), theta[1] - theta[2] * n]
        if d is not None:
            terms.append(theta[3] - theta[4] * d)
        return np.logaddexp.reduce(terms, axis=0)

    top = float(y.mean())
    starts = [
        [top + math.log(share), top + math.log(1 - share), alpha] + ([top - 2.0, alpha] if d is not None else [])
        for share in (0.1, 0.5, 0.9)
        for alpha in (0.1, 0.3, 0.8)
    ]
    best = min((least_squares(lambda th: model(th) - y, s) for s in starts), key=lambda r: r.cost)
    theta = best.x
    law = {
        "E": math.exp(theta[0]),
        "log_A": float(theta[1] + theta[2] * np.log(big_n).mean()),
        "alpha": float(theta[2]),
        "rmse_log": _rms(best.fun),
    }
    if big_d is not None:
        law |= {"log_B": float(theta[3] + theta[4] * np.log(big_d).mean()), "beta": float(theta[4])}
    return law


def _rms(residual: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(residual))))
