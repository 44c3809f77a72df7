"""Loss curves with planted parameters and autocorrelated noise, on which the fit is calibrated.

    log L(t) = broken power law(t; θ) + e_t,   e_t = ρ e_{t−1} + σ √(1 − ρ²) ε_t,   ε_t standard normal, t = 1..T

so that σ is the standard deviation of the log loss of a single step about the planted curve.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter
from scipy.special import expit
from scipy.stats import t as t_distribution

from zslx.deceleration.break_status import STATUSES
from zslx.deceleration.broken_power_law import Form, log_loss
from zslx.deceleration.fit import fit
from zslx.deceleration.fit_options import FitOptions
from zslx.deceleration.intervals import MEASURES, Measured, measured
from zslx.deceleration.loss_curve import Curve
from zslx.deceleration.pooled_fit import pool, pooled_fit, spread_over_seeds

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A curve of `last` steps whose slope falls from c0 to r_d at step t_d; with c0 = r_d it has no break."""

    last: int = 2000
    t_d: float = 200.0
    f: float = 0.2
    c0: float = 0.22
    r_d: float = 0.04
    b: float = 20.0
    sigma: float = 0.01
    rho: float = 0.5

    @property
    def theta(self) -> Array:
        """The parameters (5,) in the order of broken_power_law.py."""
        return np.array([np.log(self.b), self.c0, self.r_d - self.c0, np.log(self.t_d), np.log(self.f)])

    @property
    def truth(self) -> Measured:
        """L_d, t_d, r_d and L̂_T."""
        return measured(Form(breaks=1), self.theta, self.last)

    def draw(self, generator: np.random.Generator) -> Curve:
        """The curve (T,) with new noise."""
        steps = np.arange(1.0, self.last + 1)
        white = generator.normal(0, self.sigma * np.sqrt(1 - self.rho**2), self.last)
        white[0] /= np.sqrt(1 - self.rho**2)  # stationary from the first step
        noise = lfilter([1.0], [1.0, -self.rho], white)
        return Curve(steps=steps, losses=np.exp(log_loss(Form(breaks=1), self.theta, np.log(steps)) + noise))


@dataclass(frozen=True, kw_only=True)
class PlantedEarly(Planted):
    """A planted curve before which the early phase of a language model is put (early_phase.py).

    The loss falls around step t_fall, by `fall` in log loss, to a plateau of slope `plateau`. At step t_end it turns
    into the planted curve, over a width f_end in log t. The truth is that of the planted curve.
    """

    t_end: float = 150.0
    f_end: float = 0.1
    plateau: float = 0.02
    t_fall: float = 35.0
    fall: float = 0.22
    warmup: int = 40

    def draw(self, generator: np.random.Generator) -> Curve:
        """The curve (T,) with new noise."""
        curve = super().draw(generator)
        before = (np.log(self.t_end) - np.log(curve.steps)) / self.f_end
        flatter = (self.c0 - self.plateau) * self.f_end * np.logaddexp(0, before)
        first_fall = self.fall * expit((self.t_fall - curve.steps) * 5 / self.t_fall)
        return replace(curve, losses=curve.losses * np.exp(first_fall - flatter), warmup=self.warmup)


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How the fit did on planted curves.

    `statuses` counts all `curves` by their status. The others are per measure, over the curves whose status is break:
    the share of 95 % intervals that hold the truth, and bias and spread of the estimates (in log, but for r_d).
    """

    curves: int
    statuses: dict[str, int]
    covered: dict[str, float]
    bias: dict[str, float]
    spread: dict[str, float]


def coverage(p: Planted, curves: int, *, bootstrap: int, seed: int = 0, first: int = 0) -> Coverage:
    """Fits `curves` draws of p (numbers first, first + 1, ...), and counts what the intervals hold."""
    statuses = dict.fromkeys(STATUSES, 0)
    hits: dict[str, list[bool]] = {name: [] for name in MEASURES}
    errors: dict[str, list[float]] = {name: [] for name in MEASURES}
    setting = zlib.crc32(repr(p).encode())  # so that no two settings share their noise
    for number in range(first, first + curves):
        curve = p.draw(np.random.default_rng([seed, setting, number]))
        result = fit(curve, FitOptions(bootstrap=bootstrap, seed=number))
        statuses[result.status] += 1
        if result.status != "break":
            continue
        for name, truth in p.truth._asdict().items():
            low, high = result.ci95[name] or (np.nan, np.nan)
            value = getattr(result, name)
            hits[name].append(low <= truth <= high)
            errors[name].append(value - truth if name == "r_d" else float(np.log(value / truth)))
    given = statuses["break"] > 0
    return Coverage(
        curves=curves, statuses=statuses,
        covered={n: float(np.mean(h)) if given else np.nan for n, h in hits.items()},
        bias={n: float(np.mean(e)) if given else np.nan for n, e in errors.items()},
        spread={n: float(np.std(e)) if given else np.nan for n, e in errors.items()},
    )  # fmt: skip


# The settings of the calibration: laptop and paper length, sharp and smooth breaks, noise little and much correlated.
SETTINGS = {
    f"{length} {shape} ρ={rho}": Planted(**base, f=f, rho=rho)  # type: ignore[arg-type]
    for length, base in (
        ("laptop", {"last": 2000, "t_d": 250.0, "c0": 0.22, "r_d": 0.04, "sigma": 0.02}),
        ("paper", {"last": 262_144, "t_d": 6000.0, "c0": 0.2, "r_d": 0.03, "sigma": 0.02}),
    )
    for shape, f in (("sharp", 0.1), ("smooth", 0.4))
    for rho in (0.3, 0.7)
}
# Breaks in the middle of the steps, so smooth that only some of the curves identify them. Those are a selection, and
# their intervals are the hardest to keep honest.
LATE = {
    f"late smooth f={f}": Planted(last=2000, t_d=1000.0, f=f, c0=0.22, r_d=0.04, sigma=0.02, rho=rho)
    for f, rho in ((0.3, 0.3), (0.5, 0.0))
}


def bent(last: int, sigma: float, generator: np.random.Generator) -> Curve:
    """A curve of `last` steps whose slope falls evenly in log t, from 0.15 at step 100 to 0.03 at the last step."""
    steps = np.arange(1.0, last + 1)
    x = np.log(steps / 100)
    y = 2.0 - 0.15 * x + 0.06 / np.log(last / 100) * x**2 + generator.normal(0, sigma, last)
    return Curve(steps=steps, losses=np.exp(y))


# No break at all.
STRAIGHT = {
    f"{last} steps, ρ={rho}": Planted(last=last, t_d=last / 8, c0=0.1, r_d=0.1, sigma=0.02, rho=rho)
    for last, rho in ((2000, 0.0), (2000, 0.8), (262_144, 0.5))
}
# With an early phase like that of a small model: noise of one run and of a mean of six, a slow end of the phase.
_SMALL = PlantedEarly(last=8000, t_d=1800.0, f=0.4, c0=0.17, r_d=0.02, b=15.0, sigma=0.045, rho=0.0)
EARLY = {
    "early phase, one run": _SMALL,
    "early phase, mean of six runs": replace(_SMALL, sigma=0.018),
    "early phase that ends slowly": replace(_SMALL, sigma=0.018, f=0.3, f_end=0.25),
}


@dataclass(frozen=True, kw_only=True)
class PooledCoverage:
    """Shares of 95 % intervals over seeds that hold the truth, by measure, and of pooled fits that are identified."""

    levels: dict[str, float]
    differences: dict[str, float]
    identified: float


def pooled_coverage(seeds: int, studies: int, *, first: int = 0) -> PooledCoverage:
    """Pooled fits of planted studies of two arms, of which one has a higher r_d, on curves with an early phase.

    Seeds shift the whole curve of both arms alike (sd 0.4 %), and the slope after the break of each arm by itself.
    """
    base = EARLY["early phase, one run"]
    arm = replace(base, r_d=base.r_d + 0.004)
    truth, other = (np.array([np.log(p.truth.L_d), np.log(p.truth.t_d), p.truth.r_d, np.log(p.truth.L_T_hat)])
                    for p in (base, arm))  # fmt: skip
    levels: list[NDArray[np.bool_]] = []
    differences: list[NDArray[np.bool_]] = []
    identified: list[bool] = []
    for number in range(first, first + studies):
        draws = np.random.default_rng([seeds, number])
        shifts = draws.normal(0, 0.004, seeds)

        def run(planted: PlantedEarly, draws: np.random.Generator = draws, shifts: Array = shifts) -> list[Curve]:
            made = [replace(planted, r_d=planted.r_d + draws.normal(0, 0.001)).draw(draws) for _ in range(seeds)]
            return [replace(c, losses=c.losses * np.exp(s)) for c, s in zip(made, shifts, strict=True)]

        runs = run(base), run(arm)
        cut = fit(pool(runs[0]), FitOptions(bootstrap=0)).transient
        a, b = (pooled_fit(curves, cut) for curves in runs)
        quantile = t_distribution.ppf(0.975, seeds - 1)
        for found, wanted, spread, into in (
            (a.estimate, truth, a.spread(), levels),
            (b.estimate - a.estimate, other - truth, spread_over_seeds(b.draws - a.draws, seeds), differences),
        ):
            into.append(np.abs(found - wanted) <= quantile * spread)
        identified.append(a.identified)
    return PooledCoverage(
        levels=dict(zip(MEASURES, np.mean(levels, axis=0).tolist(), strict=True)),
        differences=dict(zip(MEASURES, np.mean(differences, axis=0).tolist(), strict=True)),
        identified=float(np.mean(identified)),
    )
