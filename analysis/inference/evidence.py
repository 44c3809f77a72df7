"""The rule by which a study speaks: paired contrasts, their intervals, and the words they allow.

Unit: the seed. Trials with one seed share initial weights and data order in every arm, so a contrast is
made of paired differences d[s, i] at size s and seed i (nan where either trial is missing). For weights w
over sizes (1/S each for the average over sizes; the least-squares weights of a slope for a trend)

    estimate = Σ_s w_s mean_i d[s, i]
    u_i      = Σ_s (w_s / n_s) (d[s, i] − mean_s)               what seed i adds, its sizes kept together
    se²      = n/(n − 1) Σ_i u_i²,   n = min_s n_s,   interval = estimate ± t_{.975, n−1} se

With all pairs there this is the t interval over per-seed averages, exactly; with missing seeds every pair
counts and n is the smallest size's count, which errs to the wide side. Sizes keep their seeds together
because they share data order: pretending that 3 sizes × 10 seeds are 30 independent pairs would be wrong.

    smallest effect seen = (t_{.975, n−1} + t_{.80, n−1}) se    found with probability .8 (two-sided 5 %)

The words (in this order; primary = log held-out loss at T, arm − baseline):
    hurts                             the primary interval lies above 0 (below 6 seeds: `above baseline`)
    no effect found                   it contains 0; or a control was run and the arm is not below it: its placebo, or
                                      the baseline at another learning rate
    below baseline, … not run         it lies below 0, and the study lacks a control: the arm's placebo, where one
                                      exists, or the baseline at half and at twice its learning rate
    improves                          primary, arm − placebo (where one exists) and arm − each rate all lie below 0
    mitigates deceleration            moreover the slope (r_d, or the tail slope where no break is
                                      identified) is higher or L_d lower after Holm's correction, neither
                                      is worse in its plain interval, and the sign is the same at every
                                      early cut
`beyond LR decay` is added to the last two when (arm + cosine) − cosine lies below 0 too. Below 6 seeds at
any size of the study: `exploratory`. In a study that may stop early, t_{.975, n−1} is that of the look's own level
(analysis/inference/looks.py).

Pure functions of arrays; nothing here reads a file. Oracles: scipy's one-sample t test and enumeration
(tests/unit/test_compare_evidence.py), error rates by simulation
(tests/calibration/test_evidence_simulation.py).

Shapes: S sizes, n seeds; arrays (S, n) in nats or as named. Negative differences of loss are gains.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from analysis.inference.rows import Difference, Interval

CONFIDENCE = 0.95
POWER = 0.80
BOOTSTRAP_DRAWS = 2000
VERDICT_SEEDS = 6  # fewer paired seeds are exploratory; the fewest whose exact test can reach 5 %


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


def holm(p_values: Mapping[str, float | None]) -> dict[str, float | None]:
    """Holm's step-down correction over the p-values that are there; None stays None and does not count."""
    known = sorted((p, name) for name, p in p_values.items() if p is not None)
    adjusted: dict[str, float | None] = dict.fromkeys(p_values)
    largest = 0.0
    for rank, (p, name) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[name] = largest
    return adjusted


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


NOTHING = "no effect found"
# Which way is better for the measures of deceleration: +1 higher, −1 lower. t_d has no better side.
BETTER = {"r_d": +1, "tail_slope": +1, "L_d": -1}


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The word that a study allows for one arm, what it rests on, and what was missing."""

    word: str
    reasons: tuple[str, ...]
    exploratory: bool
    smallest_effect: float | None
    beyond_lr_decay: bool | None = None  # None: (arm + cosine) against cosine was not run


def judge(
    primary: Contrast | None,
    placebo: Contrast | None,
    secondary: Mapping[str, Contrast | None],
    cut_signs: Mapping[str, Sequence[float]],
    *,
    rates: Mapping[str, Contrast | None] | None = None,
    has_placebo: bool = True,
    beyond_cosine: Contrast | None = None,
    declared: bool = True,
    complete: bool = True,
    against: str = "baseline",
) -> Verdict:
    """The rule of the module docstring.

    primary, placebo: log held-out loss at T, arm − baseline and arm − placebo, averaged over sizes;
    secondary: measure → contrast, arm − baseline (r_d, tail_slope, L_d and t_d as logs, instruments);
    cut_signs: measure → its difference at each early cut (nan: could not be taken); rates: arm − the baseline at other
    learning rates, by factor; has_placebo: whether a placebo of the arm exists at all; declared: False marks what
    was not declared before as exploratory; complete: False where a size was left out of a contrast; against: the arm
    that a study file declares in place of the baseline.
    """
    controls = [] if rates is None else list(rates.values())
    used = [c for c in (primary, placebo, *controls) if c is not None]
    exploratory = not (declared and complete) or primary is None or min(c.seeds for c in used) < VERDICT_SEEDS
    reach = [c.smallest_effect for c in used if c.smallest_effect is not None]
    smallest = max(reach) if len(reach) == len(used) and reach else None
    word, reasons = _word(primary, placebo, rates or {}, has_placebo, against)
    if word == "improves":
        mitigates, why = _mitigates(secondary, cut_signs)
        word = "mitigates deceleration" if mitigates else word
        reasons += why
    return Verdict(
        word=word,
        reasons=tuple(reasons),
        exploratory=exploratory,
        smallest_effect=smallest,
        beyond_lr_decay=None if beyond_cosine is None else beyond_cosine.below,
    )


def _word(
    primary: Contrast | None,
    placebo: Contrast | None,
    rates: Mapping[str, Contrast | None],
    has_placebo: bool,
    against: str,
) -> tuple[str, list[str]]:
    below = f"below {against}"
    if primary is None or primary.se is None:
        return NOTHING, ["fewer than two paired seeds: no interval"]
    if primary.above:
        word = "hurts" if primary.seeds >= VERDICT_SEEDS else f"above {against}"
        return word, [f"the interval of the paired difference to {against} lies above 0"]
    if not primary.below:
        return NOTHING, [f"the interval of the paired difference to {against} contains 0"]
    if placebo is not None and placebo.se is not None and not placebo.below:
        return NOTHING, [f"{below}, but not below its placebo"]
    for name, other in rates.items():
        if other is not None and other.se is not None and not other.below:
            return NOTHING, [f"{below}, but not below the baseline at {name} its learning rate"]
    if has_placebo and (placebo is None or placebo.se is None):
        return f"{below}, placebo not run", [f"{below}; no placebo of this arm to compare with"]
    if not _brackets(rates):
        return f"{below}, rates not run", [f"{below}; the baseline was not run at half and twice its rate"]
    controls = "its placebo and the baseline" if has_placebo else "the baseline"
    return "improves", [f"{below}, and below {controls} at half and at twice its learning rate"]


def _brackets(rates: Mapping[str, Contrast | None]) -> bool:
    """Whether the baseline was run at a lower and at a higher learning rate."""
    factors = [float(name.removesuffix("×")) for name, found in rates.items() if found and found.se is not None]
    return any(f < 1 for f in factors) and any(f > 1 for f in factors)


def slope_measure(secondary: Mapping[str, Contrast | None]) -> str:
    """r_d, or the tail slope where breaks are not identified."""
    return "r_d" if secondary.get("r_d") is not None else "tail_slope"


def holm_family(secondary: Mapping[str, Contrast | None]) -> dict[str, float | None]:
    """Holm's p of the secondary measures; of r_d and tail slope only the one that counts is in the family."""
    other = {"r_d": "tail_slope", "tail_slope": "r_d"}[slope_measure(secondary)]
    return holm({name: c.p if c is not None and name != other else None for name, c in secondary.items()})


def _mitigates(
    secondary: Mapping[str, Contrast | None], cut_signs: Mapping[str, Sequence[float]]
) -> tuple[bool, list[str]]:
    """Whether the deceleration itself is relieved: (verdict, reasons)."""
    adjusted, slope = holm_family(secondary), slope_measure(secondary)
    claims, reasons = [], []
    for name in (slope, "L_d"):
        found, p, label = secondary.get(name), adjusted.get(name), name.replace("_slope", " slope")
        if found is None or found.low is None:
            continue
        gain = BETTER[name] * found.estimate
        if (found.above, found.below)[BETTER[name] > 0]:
            reasons.append(f"{label} is worse")
            return False, reasons
        if gain > 0 and p is not None and p < 1 - found.confidence:
            signs = list(cut_signs.get(name, ()))
            better = f"{label} is better (Holm p = {p:.2g})"
            if any(BETTER[name] * s <= 0 for s in signs):
                reasons.append(f"{better}, but its sign depends on the early cut")
            elif not signs or not all(map(math.isfinite, signs)):
                reasons.append(f"{better}, but not every early cut leaves enough of the curves to tell its sign")
            else:
                claims.append(name)
                reasons.append(f"{better}, the same sign at every early cut")
    if not reasons:
        reasons.append(f"no better {slope.replace('_slope', ' slope')} or L_d after Holm's correction")
    return bool(claims), reasons
