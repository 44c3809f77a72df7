"""Loss curves with planted parameters and autocorrelated noise, to calibrate the fit against.

    log L(t) = BNSL(t; θ) + e_t,   e_t = ρ e_{t−1} + σ √(1 − ρ²) ε_t,   ε_t standard normal, t = 1..T

so that σ is the standard deviation of the noise of log loss per step.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from zslx.deceleration.break_choice import STATUSES
from zslx.deceleration.broken_power_law import Form, log_loss
from zslx.deceleration.fit import fit
from zslx.deceleration.intervals import MEASURES, measures

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Planted:
    """A curve of `last` steps that decelerates at step t_d from slope c0 to r_d; c0 = r_d plants no break."""

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
        """The parameters (5,) in the order of bnsl.py."""
        return np.array([np.log(self.b), self.c0, self.r_d - self.c0, np.log(self.t_d), np.log(self.f)])

    @property
    def truth(self) -> dict[str, float]:
        """L_d, t_d, r_d and L̂_T."""
        L_d, t_d, r_d, L_T_hat = measures(Form(breaks=1), self.theta, self.last)
        return {
            "L_d": float(np.exp(L_d)), "t_d": float(np.exp(t_d)), "r_d": float(r_d), "L_T_hat": float(np.exp(L_T_hat)),
        }  # fmt: skip

    def draw(self, generator: np.random.Generator) -> tuple[Array, Array]:
        """Steps (T,) and losses (T,)."""
        steps = np.arange(1.0, self.last + 1)
        white = generator.normal(0, self.sigma * np.sqrt(1 - self.rho**2), self.last)
        white[0] /= np.sqrt(1 - self.rho**2)  # stationary from the first step
        noise = lfilter([1.0], [1.0, -self.rho], white)
        return steps, np.exp(log_loss(Form(breaks=1), self.theta, np.log(steps)) + noise)


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """How often the 95 % intervals held the truth, per measure, over the curves whose status was `break`.

    statuses counts all curves; bias and spread are of the estimates, on the scale of the intervals (log but for r_d).
    """

    curves: int
    statuses: dict[str, int]
    covered: dict[str, float]
    bias: dict[str, float]
    spread: dict[str, float]


def coverage(p: Planted, curves: int, *, bootstrap: int, seed: int = 0, first: int = 0) -> Coverage:
    """Fit `curves` draws of p (numbers first, first + 1, ...) with the default settings and look into the intervals."""
    statuses = dict.fromkeys(STATUSES, 0)
    hits: dict[str, list[bool]] = {name: [] for name in MEASURES}
    errors: dict[str, list[float]] = {name: [] for name in MEASURES}
    setting = zlib.crc32(repr(p).encode())  # so that no two settings share their noise
    for number in range(first, first + curves):
        steps, losses = p.draw(np.random.default_rng([seed, setting, number]))
        result = fit(steps, losses, bootstrap=bootstrap, seed=number)
        statuses[result.status] += 1
        if result.status != "break":
            continue
        for name, truth in p.truth.items():
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


# The settings of the calibration: laptop and paper length, sharp and smooth, noise little and much correlated.
SETTINGS = {
    f"{length} {shape} ρ={rho}": Planted(**base, f=f, rho=rho)  # type: ignore[arg-type]
    for length, base in (
        ("laptop", {"last": 2000, "t_d": 250.0, "c0": 0.22, "r_d": 0.04, "sigma": 0.02}),
        ("paper", {"last": 262_144, "t_d": 6000.0, "c0": 0.2, "r_d": 0.03, "sigma": 0.02}),
    )
    for shape, f in (("sharp", 0.1), ("smooth", 0.4))
    for rho in (0.3, 0.7)
}
# Breaks in the middle of the steps, so smooth that a part of the curves does not identify them: those that do are a
# selection, and their intervals the hardest to keep honest.
LATE = {
    f"late smooth f={f}": Planted(last=2000, t_d=1000.0, f=f, c0=0.22, r_d=0.04, sigma=0.02, rho=rho)
    for f, rho in ((0.3, 0.3), (0.5, 0.0))
}
# No break at all: what is said of a power law.
STRAIGHT = {
    f"{last} steps, ρ={rho}": Planted(last=last, t_d=last / 8, c0=0.1, r_d=0.1, sigma=0.02, rho=rho)
    for last, rho in ((2000, 0.0), (2000, 0.8), (262_144, 0.5))
}
