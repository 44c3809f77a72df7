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
from dataclasses import dataclass

import numpy as np

from analysis.inference.evidence import Verdict, judge, pooled


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


def verdict(world: World, generator: np.random.Generator) -> Verdict:
    """The verdict on one simulated study."""
    shape = (world.sizes, world.seeds)
    seed_effect = generator.normal(0, 0.01, shape)

    def draw(size: tuple[int, ...]) -> np.ndarray:
        return generator.standard_t(4, size) / math.sqrt(2) if world.heavy else generator.normal(0, 1, size)

    def arm(effect: float) -> tuple[np.ndarray, np.ndarray]:
        """(log loss, tail slope): the slope's noise is half the loss's own, the rest its own."""
        noise = world.shared * draw((1, world.seeds)) + world.own * draw(shape)
        slope = -0.5 * noise + math.sqrt(0.75) * (world.shared * draw((1, world.seeds)) + world.own * draw(shape))
        lost = generator.random(shape) < world.missing
        values = seed_effect + effect * world.standard_error + noise
        return np.where(lost, np.nan, values), np.where(lost, np.nan, slope)

    (base, base_slope), (treated, slope), (placebo, _) = arm(0.0), arm(world.arm), arm(world.placebo)
    change = slope + world.slope * world.standard_error - base_slope
    secondary = {"tail_slope": pooled(change), "D": pooled(slope - base_slope)}
    against_placebo = pooled(treated - placebo) if world.with_placebo else None
    sign = float(np.nanmean(change))
    others = {name: arm(world.rate)[0] for name in ("0.5×", "2×")} if world.with_rates else {}
    rates = {name: pooled(treated - losses) for name, losses in others.items()}
    signs = {"tail_slope": [sign] * 3}
    return judge(pooled(treated - base), against_placebo, secondary, signs, rates=rates, has_placebo=world.has_placebo)


def verdicts(world: World, studies: int, seed: int = 0) -> Counter[str]:
    """How often each word is said in `studies` studies."""
    generator = np.random.default_rng(seed)
    return Counter(verdict(world, generator).word for _ in range(studies))
