"""How a loss, or a term of its decomposition, changes with model size: the trend log|M| = c + α log N.

The trend is fitted by least squares in log-log. R² is the squared correlation of log|M| and log N. The slope gap
α_M − α_CE tells how differently a term scales from cross-entropy itself. It is the slope of log|M| − log CE, so that
its interval keeps what the two have in common. Intervals are 95 %, by t with n − 2 degrees of freedom: they take the
models' departures from the law as independent and of one size. Source: "What Scales in Cross-Entropy Scaling Law?"
(arXiv 2510.04067), Section 4, which has no intervals and takes the gap's absolute value. Exact;
tests/unit/test_decomposition.py checks it on planted laws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import t as t_distribution

TERMS = ("ce", "ee", "sa", "conf")
LEVEL = 0.95
Interval = tuple[float, float]


class ScalingTrend(NamedTuple):
    """log|M| = c + α log N over n models, with the interval of α.

    R² is None where two points leave no choice, or where M is constant; intervals are None below three points.
    `slope_gap`, α − α_CE, and its interval are there where the trend is that of a term of the decomposition.
    """

    alpha: float
    c: float
    r2: float | None
    n: int
    interval: Interval | None = None
    slope_gap: float | None = None
    gap_interval: Interval | None = None


def scaling_trend(sizes: Sequence[float], values: Sequence[float]) -> ScalingTrend:
    """The trend of a measure over sizes: parameters N > 0, and the measure at each, of one sign and not 0.

    Raises ValueError where there are fewer than two different sizes.
    """
    n, m = np.asarray(sizes, dtype=np.float64), np.abs(np.asarray(values, dtype=np.float64))
    if n.shape != m.shape or n.ndim != 1:
        raise ValueError(f"scaling trend: {n.shape} sizes and {m.shape} values; one value a size is needed")
    if not (np.isfinite(n).all() and np.isfinite(m).all() and (n > 0).all() and (m > 0).all()):
        raise ValueError("scaling trend: sizes and magnitudes must be finite and above 0")
    signs = np.sign(np.asarray(values, dtype=np.float64))
    if len(set(signs)) > 1:
        raise ValueError("scaling trend: the values change sign, so log|M| has no trend")
    if len(set(n.tolist())) < 2:
        raise ValueError(f"scaling trend: {len(set(n.tolist()))} different sizes; at least 2 are needed")
    x, y = np.log(n), np.log(m)
    alpha, interval = _slope(x, y)
    dx, dy = x - x.mean(), y - y.mean()
    spread = float(dy @ dy)
    r2 = float((dx @ dy) ** 2 / ((dx @ dx) * spread)) if len(n) > 2 and spread > 0 else None
    return ScalingTrend(alpha=alpha, c=float(y.mean() - alpha * x.mean()), r2=r2, n=len(n), interval=interval)


def _slope(x: np.ndarray, y: np.ndarray) -> tuple[float, Interval | None]:
    """The least-squares slope of y (n,) over x (n,) and its interval."""
    dx = x - x.mean()
    slope = float(dx @ y / (dx @ dx))
    if len(x) < 3:
        return slope, None
    rest = y - y.mean() - slope * dx
    error = float(np.sqrt(rest @ rest / (len(x) - 2) / (dx @ dx)))
    half = float(t_distribution.ppf((1 + LEVEL) / 2, len(x) - 2)) * error
    return slope, (slope - half, slope + half)


def decomposition_trends(
    sizes: Sequence[float], records: Sequence[Mapping[str, Any]]
) -> dict[str, ScalingTrend | ValueError]:
    """The trend of each term of the decomposition over sizes; for a term without one, the error that says why."""
    if any(records[0][key] != record[key] for record in records for key in ("n", "bins")):
        raise ValueError("scaling trend: decompositions of different token counts or bins cannot be compared")
    found: dict[str, ScalingTrend | ValueError] = {}
    for term in TERMS:
        try:
            found[term] = scaling_trend(sizes, [record[term] for record in records])
        except ValueError as error:
            found[term] = error
    if isinstance(found["ce"], ScalingTrend):
        x, reference = np.log(np.asarray(sizes, dtype=np.float64)), _logs(records, "ce")
        for term, trend in found.items():
            if isinstance(trend, ScalingTrend):
                gap, interval = _slope(x, _logs(records, term) - reference)
                found[term] = trend._replace(slope_gap=gap, gap_interval=interval)
    return found


def _logs(records: Sequence[Mapping[str, Any]], term: str) -> np.ndarray:
    return np.log(np.abs([record[term] for record in records]))
