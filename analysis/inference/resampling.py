"""What is said of an arm without assuming a normal distribution: a sign-flip test, and bootstrapped measures.

They stand beside the t intervals; the rule of evidence does not read them. Both resample seeds, the unit, whose sizes
stay together. Oracle: enumeration (tests/unit/test_compare_evidence.py).

Shapes: S sizes, n seeds, R draws of the seeds; nan where a trial or a pair is missing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from analysis.inference.contrasts import CONFIDENCE, usable_sizes
from analysis.inference.evidence import VERDICT_SEEDS

BOOTSTRAP_DRAWS = 2000


def sign_flip(differences: ArrayLike, generator: np.random.Generator | None = None) -> dict[str, Any] | None:
    """Two-sided sign-flip test of the average over sizes: each seed's differences change sign together.

    Exact (all 2^n) up to 20 seeds; beyond, 100,000 flips drawn from `generator`, and `exact` is False.
    None below 6 seeds, where its smallest p is above 5 %.
    """
    d = np.atleast_2d(np.asarray(differences, dtype=np.float64))
    d = d[usable_sizes(d)]
    present = np.isfinite(d)
    units = (np.where(present, d, 0.0) / present.sum(axis=1, keepdims=True)).sum(axis=0)[present.any(axis=0)]
    n = len(units) if len(d) else 0
    if n < VERDICT_SEEDS:
        return None
    observed = abs(units.sum())
    if n <= 20:
        # One sign may be fixed: flipping all of them leaves |sum| as it is.
        patterns = np.arange(2 ** (n - 1))
        sums = np.full(len(patterns), units[n - 1])
        for i in range(n - 1):
            sums += np.where(patterns >> i & 1, -units[i], units[i])
        extreme = np.abs(sums) >= observed * (1 - 1e-12)
        return {"p": float(extreme.mean()), "exact": True, "seeds": n}
    if generator is None:
        raise ValueError(f"sign_flip: {n} seeds are too many to enumerate, so it needs a generator")
    sums = (generator.integers(0, 2, (100_000, n)) * 2 - 1) @ units
    hits = int((np.abs(sums) >= observed * (1 - 1e-12)).sum())
    return {"p": (hits + 1) / 100_001, "exact": False, "seeds": n}


def across_sizes(arm: np.ndarray, against: np.ndarray, generator: np.random.Generator) -> dict[str, Any] | None:
    """Interquartile mean of the paired differences and probability of improvement, over all sizes.

    arm, against (S, n): lower is better, nan where missing. As in rliable (Agarwal et al. 2021,
    2108.13264): the interquartile mean leaves out the lowest and highest quarter of the S·n differences;
    the probability that a run of the arm beats a run of the other is taken over all pairs of seeds at one
    size (ties count half) and averaged over sizes. 95 % percentile intervals from 2,000 bootstrap draws of
    seeds, the same seeds at every size so that what is paired stays paired.
    """
    d = arm - against
    sizes = usable_sizes(d)
    if not sizes.any():
        return None
    seeds = np.isfinite(d[sizes]).any(axis=0)
    d = d[sizes][:, seeds]
    wins = _wins(arm[sizes][:, seeds], against[sizes][:, seeds], np.isfinite(d))
    n = d.shape[1]
    draws = generator.integers(0, n, (BOOTSTRAP_DRAWS, n))
    # The draws, and before them every seed once: the estimate itself.
    draws = np.concatenate([np.arange(n)[None], draws])
    return {
        "interquartile_mean": _with_interval(_interquartile_means(d, draws)),
        "probability_of_improvement": _with_interval(_probabilities(wins, draws)),
    }


def _interquartile_means(d: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """(R,) for draws (R, n) of the seeds of d (S, n)."""
    values = np.sort(np.moveaxis(d[:, draws], 1, 0).reshape(len(draws), -1), axis=1)  # nan goes last
    counts = np.isfinite(values).sum(axis=1, keepdims=True)
    cut = counts // 4
    place = np.arange(values.shape[1])
    inner = (place >= cut) & (place < counts - cut)
    with np.errstate(invalid="ignore"):
        return np.where(inner, values, 0.0).sum(axis=1) / inner.sum(axis=1)


def _wins(arm: np.ndarray, against: np.ndarray, paired: np.ndarray) -> np.ndarray:
    """(S, n, n): 1 where arm's seed i beats the other's seed j, ½ for a tie, nan where either has no pair."""
    gap = against[:, None, :] - arm[:, :, None]
    known = paired[:, None, :] & paired[:, :, None]
    return np.where(known, (np.sign(gap) + 1) / 2, np.nan)


def _probabilities(wins: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """(R,): the share of wins at each size, averaged over the sizes that a draw leaves with any pair."""
    times = np.stack([(draws == i).sum(axis=1) for i in range(wins.shape[1])], axis=1)  # (R, n)
    known = np.isfinite(wins)
    won = np.einsum("ri,rj,sij->rs", times, times, np.where(known, wins, 0.0))
    of = np.einsum("ri,rj,sij->rs", times, times, known.astype(float))
    with np.errstate(invalid="ignore"):
        return np.nanmean(np.where(of > 0, won / np.where(of > 0, of, 1.0), np.nan), axis=1)


def _with_interval(values: np.ndarray) -> dict[str, float]:
    """The first value with the percentile interval of the others."""
    low, high = np.nanquantile(values[1:], [0.5 - CONFIDENCE / 2, 0.5 + CONFIDENCE / 2])
    return {"estimate": float(values[0]), "low": float(low), "high": float(high)}
