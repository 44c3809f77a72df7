r"""Looks: when a study may be judged before all its seeds are trained, and at what level each time.

A study that is judged several times, and stops at the first interval that excludes 0, finds something where nothing is
in more than 5 % of cases. So each look has a stricter level. The looks come after a half, three quarters and all of the
seeds (SHARES), none before VERDICT_SEEDS. The two-sided error that may have been spent up to a share τ of the seeds is
that of Lan and DeMets (1983), of the type of O'Brien and Fleming,

    α(τ) = 4 [1 − Φ(z_{1−α/4} / √τ)],    α = TOTAL

so that little is spent early, and the last look is nearly as sharp as a study without looks. The nominal level p_k of
look k solves

    P(|Z_1| < c_1, ..., |Z_{k−1}| < c_{k−1}, |Z_k| ≥ c_k) = α(τ_k) − α(τ_{k−1}),    p_k = 2 [1 − Φ(c_k)]

for a Brownian motion seen at τ_1 < τ_2 < ..., by recursive integration (Armitage, McPherson and Rowe 1969). Seeds are
few, so the contrasts of look k are judged by t intervals of confidence 1 − p_k (significance levels: Jennison and
Turnbull 2000, section 4.4). That adds up to 8 % to the error, and TOTAL leaves room for it. Such intervals are
repeated confidence intervals: over all looks together they cover with 95 %, whenever the study stops.

Exact for known variance; for t simulated: tests/calibration/test_looks_simulation.py. Oracle: the published bounds
(tests/unit/test_looks.py).

A study stops for an answer. It stops for the lack of one only where it was declared so (`futility`), by stochastic
curtailment (Lan, Simon and Halperin 1982). With B = √τ · estimate/se at a look before the last, and θ the smallest
effect that the whole study could have seen in its own standard errors, t_{c} + t_{.80} (contrasts.py), the conditional
power is the probability that the last interval lies below 0 although only θ is true from here on:

    P(below) = Φ[(−B + θ (1 − τ) − t_c) / √(1 − τ)],   P(above) likewise with B

An arm is futile where P(above) and, for the arm or one of its controls, P(below) are under FUTILE. The rule is not
binding: it spends no error, and no bound is lower for it, so a study that goes on all the same has the same error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import norm, t

from analysis.inference.contrasts import CONFIDENCE, POWER, Contrast
from analysis.inference.evidence import VERDICT_SEEDS

Array = NDArray[np.float64]

SHARES = (0.5, 0.75, 1.0)  # of the seeds, after which a study is judged
TOTAL = 0.046  # of the 5 % that the error may be: t statistics of six seeds and more add the rest
FUTILE = 0.2  # conditional power under which it is no use to go on
NODES = 120  # of the integration at each look


def looks_of(seeds: int) -> tuple[int, ...]:
    """After how many of the seeds a study is judged. ValueError where there are too few for more than one look."""
    found = sorted({max(VERDICT_SEEDS, math.ceil(share * seeds)) for share in SHARES})
    if seeds <= VERDICT_SEEDS:
        raise ValueError(f"{seeds} seeds are judged once: looks begin at {VERDICT_SEEDS}, so allowed are more seeds")
    return tuple(found)


def spent(share: float, total: float = TOTAL) -> float:
    """The error that may have been spent up to this share of the seeds."""
    return float(4 * norm.sf(norm.isf(total / 4) / math.sqrt(share))) if share else 0.0


def confidence_at(looks: Sequence[int], seeds: int) -> float:
    """The confidence of the intervals of a study with these looks (none: 95 %) that stands at the look of so many
    seeds."""
    return 1 - nominal_levels(tuple(looks))[list(looks).index(seeds)] if looks else CONFIDENCE


def futile(primary: Contrast | None, controls: Iterable[Contrast | None], looks: Sequence[int], seeds: int) -> bool:
    """Whether the seeds after the look of so many would hardly give an answer: neither that the arm hurts, nor that it
    lies below 0 and below its controls."""
    if not looks or seeds >= looks[-1] or primary is None or primary.se is None:
        return False
    below, above = conditional_power(primary, looks, seeds)
    others = [conditional_power(c, looks, seeds)[0] for c in controls if c is not None and c.se is not None]
    return above < FUTILE and min([below, *others]) < FUTILE


def conditional_power(found: Contrast, looks: Sequence[int], seeds: int) -> tuple[float, float]:
    """(below, above): the probability that the interval of the last look lies on that side of 0, if from this look on
    the true effect were the smallest, on that side, that the whole study could have seen."""
    assert found.se is not None and seeds < looks[-1]
    # Pairs that are lost, as where a trial diverged, are lost to the last look, too.
    share, df = found.seeds / (looks[-1] - (seeds - found.seeds)), looks[-1] - (seeds - found.seeds) - 1
    bound = float(t.ppf(0.5 + confidence_at(looks, looks[-1]) / 2, df))
    drift = bound + float(t.ppf(POWER, df))
    # Without any scatter: an arm with the losses of the baseline, or a difference beyond chance.
    score = (
        found.estimate / found.se if found.se else math.copysign(math.inf, found.estimate) if found.estimate else 0.0
    )
    at = score * math.sqrt(share)
    below, above = ((side * at + drift * (1 - share) - bound) / math.sqrt(1 - share) for side in (-1, 1))
    return float(norm.cdf(below)), float(norm.cdf(above))


@lru_cache
def nominal_levels(looks: tuple[int, ...], total: float = TOTAL) -> tuple[float, ...]:
    """The two-sided nominal level of each look."""
    x, w = np.polynomial.legendre.leggauss(NODES)
    places, density = np.zeros(1), np.ones(1)  # of the process at the look before, times the weights of the integration
    before, levels = 0.0, []
    for n in looks:
        share = n / looks[-1]
        step, budget = math.sqrt(share - before), spent(share, total) - spent(before, total)
        bound = _bound(places, density, step, budget)
        levels.append(float(2 * norm.sf(bound / math.sqrt(share))))
        inside = bound * x
        density = bound * w * (norm.pdf((inside[:, None] - places) / step) / step @ density)
        places, before = inside, share
    return tuple(levels)


def _bound(places: Array, density: Array, step: float, budget: float) -> float:
    """The bound that the process, a step (its sd) after it had this density, is beyond with probability `budget`."""

    def excess(bound: float) -> float:
        return float(density @ (norm.sf((bound - places) / step) + norm.cdf((-bound - places) / step))) - budget

    return float(brentq(excess, 0.0, 12.0, xtol=1e-12))
