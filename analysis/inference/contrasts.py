"""Paired contrasts: differences between two arms, averaged over seeds and sizes, with their t intervals over seeds.

The equations are those of the rule, which is printed with every comparison (analysis/inference/evidence.py). Pure
functions of arrays; the seed is the unit. Oracle: scipy's one-sample t test (tests/unit/test_compare_evidence.py).

Shapes: S sizes, n seeds; differences (S, n), nan where a pair is missing. Of log losses, negative ones are gains.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from analysis.inference.rows import Difference, Interval

CONFIDENCE = 0.95
POWER = 0.80


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """An estimate with its interval over seeds. `se low high p` are None with fewer than two seeds."""

    estimate: float
    seeds: int  # the smallest number of pairs at any size that counts
    pairs: int
    se: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None  # two-sided t test
    confidence: float = CONFIDENCE  # of the interval; higher at a look (analysis/inference/looks.py)

    @staticmethod
    def of(estimate: float, se: float, seeds: int, pairs: int, confidence: float = CONFIDENCE) -> Contrast:
        """With the t interval and the t test of `seeds` − 1 degrees of freedom."""
        half = float(stats.t.ppf(0.5 + confidence / 2, seeds - 1)) * se
        # All differences equal: no spread to judge by. Zero is no effect, anything else is beyond chance.
        p = 2 * float(stats.t.sf(abs(estimate) / se, seeds - 1)) if se > 0 else float(estimate == 0)
        low, high = estimate - half, estimate + half
        spread = {"se": se, "low": low, "high": high, "p": p}
        return Contrast(estimate=estimate, seeds=seeds, pairs=pairs, confidence=confidence, **spread)

    @property
    def df(self) -> int:
        return self.seeds - 1

    @property
    def below(self) -> bool:
        return self.high is not None and self.high < 0

    @property
    def above(self) -> bool:
        return self.low is not None and self.low > 0

    @property
    def smallest_effect(self) -> float | None:
        """The true effect that this study would find (interval excluding 0) with probability POWER."""
        if self.se is None:
            return None
        return self.se * float(stats.t.ppf(0.5 + self.confidence / 2, self.df) + stats.t.ppf(POWER, self.df))

    def as_dict(self) -> Difference:
        return Difference(
            estimate=self.estimate,
            low=self.low,
            high=self.high,
            se=self.se,
            p=self.p,
            seeds=self.seeds,
            pairs=self.pairs,
            smallest_effect=self.smallest_effect,
        )


def contrast(
    differences: ArrayLike, weights: ArrayLike | None = None, confidence: float = CONFIDENCE
) -> Contrast | None:
    """Σ_s w_s mean_i d[s, i] with its t interval over seeds; None when some size has no pair at all.

    differences (S, n) or (n,), nan where a pair is missing; weights (S,), 1/S each by default.
    """
    d = np.atleast_2d(np.asarray(differences, dtype=np.float64))
    present = np.isfinite(d)
    counts = present.sum(axis=1)
    if not d.size or not counts.all():
        return None
    w = np.full(len(d), 1 / len(d)) if weights is None else np.asarray(weights, dtype=np.float64)
    estimate = float(w @ size_means(d))
    n, pairs = int(counts.min()), int(counts.sum())
    if n < 2:
        return Contrast(estimate=estimate, seeds=n, pairs=pairs, confidence=confidence)
    se = math.sqrt(n / (n - 1) * float(np.sum(influence(d, w) ** 2)))
    return Contrast.of(estimate, se, n, pairs, confidence)


def size_means(d: np.ndarray) -> np.ndarray:
    """Mean (S,) over the seeds that are there."""
    present = np.isfinite(d)
    return np.where(present, d, 0.0).sum(axis=1) / present.sum(axis=1)


def influence(d: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """What each seed adds to Σ_s w_s mean_s, (n,): sums to 0, its squares give the variance."""
    present = np.isfinite(d)
    centred = np.where(present, d - size_means(d)[:, None], 0.0)
    return (weights / present.sum(axis=1)) @ centred


def usable_sizes(differences: np.ndarray, least: int = 2) -> np.ndarray:
    """Which sizes (S,) have at least `least` pairs."""
    return np.isfinite(differences).sum(axis=1) >= least


def pooled_sizes(differences: np.ndarray) -> np.ndarray:
    """Which sizes (S,) count in an average over sizes: those with two pairs or more; if none has two, with one."""
    sizes = usable_sizes(differences)
    return sizes if sizes.any() else usable_sizes(differences, 1)


def pooled(differences: ArrayLike, confidence: float = CONFIDENCE) -> Contrast | None:
    """The average over the sizes that count."""
    d = np.atleast_2d(np.asarray(differences, dtype=np.float64))
    sizes = pooled_sizes(d)
    return contrast(d[sizes], confidence=confidence) if sizes.any() else None


def as_dict(found: Contrast | None) -> Difference | None:
    """The row of a contrast, null where there is none."""
    return None if found is None else found.as_dict()


def mean_interval(values: ArrayLike, log: bool = False) -> Interval | None:
    """Mean of what is finite in (n,) with its t interval; with `log` the geometric mean."""
    v = np.asarray(values, dtype=np.float64)
    v = v[np.isfinite(v)]
    found = contrast(np.log(v) if log else v) if len(v) else None
    if found is None:
        return None

    # Two values far apart give an interval beyond what a float holds.
    def back(x: float) -> float:
        return math.exp(min(x, 700.0)) if log else x

    low, high = (None if x is None else back(x) for x in (found.low, found.high))
    return {"mean": back(found.estimate), "low": low, "high": high, "n": found.seeds}


def seeds_needed(effect: float, spread: float, limit: int = 10_000) -> int | None:
    """The number of paired seeds at which `effect` would be found with probability POWER.

    spread: standard deviation over seeds of the contrast of one seed (√seeds × se). None above `limit`.
    """
    if not effect or spread < 0:
        return None
    n = np.arange(2, limit + 1)
    reach = (stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1) + stats.t.ppf(POWER, n - 1)) * spread / np.sqrt(n)
    found = np.flatnonzero(reach <= abs(effect))
    return int(n[found[0]]) if len(found) else None


def ratio_interval(top: Contrast, bottom: Contrast, covariance: float) -> tuple[float, float] | None:
    """Fieller's 95 % interval of top/bottom for two estimates over the same seeds; None when it is
    unbounded."""
    if top.se is None or bottom.se is None:
        return None
    t2 = float(stats.t.ppf(0.5 + CONFIDENCE / 2, min(top.df, bottom.df))) ** 2
    a = bottom.estimate**2 - t2 * bottom.se**2
    b = top.estimate * bottom.estimate - t2 * covariance
    c = top.estimate**2 - t2 * top.se**2
    if a <= 0:
        return None
    root = math.sqrt(max(0.0, b * b - a * c))
    return (b - root) / a, (b + root) / a
