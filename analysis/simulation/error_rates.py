"""How often the rule of evidence errs: verdicts on simulated studies whose truth is known.

log loss of a trial = what its seed does in every arm + what its arm does + own noise; the noise of a trial has a
part that it shares with the same seed's trials at other sizes (same data order) and a part of its own. Effects
are given in standard errors of the pooled paired difference, so that they mean the same at any noise. Each trial
also has a tail slope, whose noise follows that of its loss. Used by tests/calibration/test_evidence_simulation.py and
benchmarks/analysis.py.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.optimize import brentq

from analysis.inference.contrasts import CONFIDENCE, Contrast, pooled
from analysis.inference.evidence import NOTHING, Verdict, judge
from analysis.inference.looks import FUTILE, conditional_power, confidence_at, futile, looks_of


@dataclass(frozen=True, kw_only=True)
class World:
    """What is true: effects of arm, placebo and other rates in pooled standard errors; how trials vary and fail."""

    arm: float = 0.0
    placebo: float = 0.0
    slope: float = 0.0  # of the arm on the tail slope, in standard errors of its own
    sizes: int = 3
    seeds: int = 10
    own: float = 0.003  # sd of log loss of one trial
    shared: float = 0.002  # sd of what trials of one seed share over sizes, within an arm
    heavy: bool = False  # t with 4 degrees of freedom instead of normal
    missing: float = 0.0  # share of trials that fail
    with_placebo: bool = True
    has_placebo: bool = True
    rate: float = 3.0  # effect of the baseline at other learning rates
    with_rates: bool = True

    @property
    def standard_error(self) -> float:
        return math.sqrt(2 * (self.shared**2 + self.own**2 / self.sizes) / self.seeds)


@dataclass(frozen=True)
class Drawn:
    """A simulated study: (S, n) log losses (tail slopes) of the arms, nan where a trial failed; `rates` by factor."""

    base: np.ndarray
    treated: np.ndarray
    placebo: np.ndarray
    base_slope: np.ndarray
    slope: np.ndarray
    rates: dict[str, np.ndarray]


def draw(world: World, generator: np.random.Generator) -> Drawn:
    """One study."""
    shape = (world.sizes, world.seeds)
    seed_effect = generator.normal(0, 0.01, shape)

    def noise_of(size: tuple[int, ...]) -> np.ndarray:
        return generator.standard_t(4, size) / math.sqrt(2) if world.heavy else generator.normal(0, 1, size)

    def arm(effect: float) -> tuple[np.ndarray, np.ndarray]:
        """(log loss, tail slope): the slope's noise is half the loss's own, the rest its own."""
        noise = world.shared * noise_of((1, world.seeds)) + world.own * noise_of(shape)
        own = world.shared * noise_of((1, world.seeds)) + world.own * noise_of(shape)
        slope = -0.5 * noise + math.sqrt(0.75) * own
        lost = generator.random(shape) < world.missing
        values = seed_effect + effect * world.standard_error + noise
        return np.where(lost, np.nan, values), np.where(lost, np.nan, slope)

    (base, base_slope), (treated, slope), (placebo, _) = arm(0.0), arm(world.arm), arm(world.placebo)
    rates = {name: arm(world.rate)[0] for name in ("0.5×", "2×")} if world.with_rates else {}
    return Drawn(base, treated, placebo, base_slope, slope, rates)


def judged(world: World, drawn: Drawn, looks: tuple[int, ...] = (), seeds: int | None = None) -> Verdict:
    """The verdict on a study; on its first seeds at one of its looks."""
    seeds = seeds or world.seeds
    confidence = confidence_at(looks, seeds)
    primary, placebo, rates = contrasts_of(world, drawn, confidence, seeds)
    slope, base_slope = drawn.slope[:, :seeds], drawn.base_slope[:, :seeds]
    change = slope + world.slope * world.standard_error - base_slope
    secondary = {"tail_slope": pooled(change, confidence), "D": pooled(slope - base_slope, confidence)}
    signs = {"tail_slope": [float(np.nanmean(change))] * 3}
    return judge(primary, placebo, secondary, signs, rates=rates, has_placebo=world.has_placebo)


def contrasts_of(
    world: World, drawn: Drawn, confidence: float, seeds: int
) -> tuple[Contrast | None, Contrast | None, dict[str, Contrast | None]]:
    """The arm against the baseline, its placebo and the baseline at other rates, over the first seeds."""

    def against(losses: np.ndarray) -> Contrast | None:
        return pooled((drawn.treated - losses)[:, :seeds], confidence)

    rates = {name: against(losses) for name, losses in drawn.rates.items()}
    return against(drawn.base), against(drawn.placebo) if world.with_placebo else None, rates


def hopeless(world: World, drawn: Drawn, looks: tuple[int, ...], seeds: int) -> bool:
    """Whether a study is futile at a look."""
    primary, placebo, rates = contrasts_of(world, drawn, confidence_at(looks, seeds), seeds)
    return futile(primary, [placebo, *rates.values()], looks, seeds)


def verdict(world: World, generator: np.random.Generator) -> Verdict:
    """The verdict on one simulated study."""
    return judged(world, draw(world, generator))


def verdict_at_looks(world: World, generator: np.random.Generator, *, futility: bool = False) -> tuple[Verdict, int]:
    """(verdict, seeds): of one simulated study that stops at its first look with an answer, or for futility."""
    drawn, looks = draw(world, generator), looks_of(world.seeds)
    for seeds in looks:
        found = judged(world, drawn, looks, seeds)
        if not found.exploratory and (found.word != NOTHING or (futility and hopeless(world, drawn, looks, seeds))):
            break
    return found, seeds


def decided_share(
    seeds: int, effect: float, studies: int, generator: np.random.Generator, *, futility: bool = False
) -> tuple[float, float, float]:
    """(share decided, share that a study without looks decides, mean number of seeds) of one paired contrast with looks
    whose true effect is so many standard errors of all seeds; normal noise. `futility`: it may stop for that."""
    d, looks = generator.normal(effect / math.sqrt(seeds), 1, (studies, seeds)), looks_of(seeds)

    def statistics(n: int) -> np.ndarray:
        first = d[:, :n]
        return np.asarray(first.mean(axis=1) / first.std(axis=1, ddof=1) * math.sqrt(n))

    def p_values(n: int) -> np.ndarray:
        return np.asarray(2 * stats.t.sf(np.abs(statistics(n)), n - 1))

    hits = np.stack([p_values(n) < 1 - confidence_at(looks, n) for n in looks], axis=1)
    ends = hits.copy()
    for k, n in enumerate(looks[:-1]):
        if futility:  # the bound on |t| below which both conditional powers are too small
            ends[:, k] |= np.abs(statistics(n)) < futile_below(looks, n)
    first = np.where(ends.any(axis=1), ends.argmax(axis=1), len(looks) - 1)
    found = hits[np.arange(studies), first]
    fixed = float((p_values(seeds) < 1 - CONFIDENCE).mean())
    return float(found.mean()), fixed, float(np.array(looks)[first].mean())


def futile_below(looks: Sequence[int], seeds: int) -> float:
    """The largest |estimate/se| at which a contrast without controls is futile at a look; 0 where none is."""

    def power(at: float) -> float:
        return max(conditional_power(Contrast.of(at, 1.0, seeds, seeds), looks, seeds)) - FUTILE

    return float(brentq(power, 0.0, 20.0)) if power(0.0) < 0 else 0.0


def verdicts(world: World, studies: int, seed: int = 0) -> Counter[str]:
    """How often each word is said in `studies` studies."""
    generator = np.random.default_rng(seed)
    return Counter(verdict(world, generator).word for _ in range(studies))
