"""Forecasts the loss at step T from the first part of a run, beside a plain power law.

Two forms compete. One is the broken power law with the number of breaks that the break test prefers on the part seen,
after its early cut. The other is a power law with irreducible loss over the last factor of 16 of that part, since a
run that keeps decelerating ends above every straight asymptote. A back-test inside the part seen, at the same ratio of
seen to end, chooses the one that extrapolates better. The 95 % prediction interval is

    estimate ± q · √(s² + v_T + ε²)

with s the spread of the bootstrap (intervals.py), v_T the variance of noise and misfit of one bin at T, ε the error in
that back-test, and q the quantile of Student's t at the effective degrees of freedom.

The plain power law stands beside it: no break, fitted to the last factor of 4 of the part seen, so that it extends the
tail slope. Where the curve reaches T, both errors are given in log loss; docs/deceleration.md has them for finished
runs. Cost: that of a few fits with bootstrap.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zslx.deceleration.binning import bins
from zslx.deceleration.break_choice import forms, test_breaks
from zslx.deceleration.broken_power_law import Form, log_loss, value_and_jacobian
from zslx.deceleration.early_cut import default_cut
from zslx.deceleration.fit import finite
from zslx.deceleration.intervals import covariance, quantile, replicates
from zslx.deceleration.loss_curve import Curve
from zslx.deceleration.single_fit import Estimate, Plan, estimate, last_loss, plan_for

Array = NDArray[np.float64]

# The last factors of the part seen to which the plain power law and the one with irreducible loss are fitted.
POWER_LAW_FACTOR, BENT_FACTOR = 4, 16
# The fewest points that a form is fitted to.
FEWEST = 8


@dataclass(frozen=True, kw_only=True)
class Extrapolation:
    """L at T in nats per token, and its 95 % prediction interval [low, high].

    Where L is known, `error` is log(L̂/L), and `covered` says whether L lies in the interval.
    """

    breaks: int
    irreducible: bool
    L: float
    interval: list[float]
    error: float | None
    covered: bool | None


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The last step seen, the step T, the smoothed loss there (None where the curve ends earlier), both forecasts."""

    share: float
    seen: int
    at: int
    actual: float | None
    fit: Extrapolation
    power_law: Extrapolation

    def as_dict(self) -> dict[str, Any]:
        """Values for JSON; a number that is not finite is None."""
        values: dict[str, Any] = finite(asdict(self))
        return values


def forecast(
    c: Curve,
    *,
    share: float = 0.3,
    at: int | None = None,
    transient: float | None = None,
    bootstrap: int = 500,
    seed: int = 0,
) -> Forecast:
    """The loss at step `at` (default: the last), forecast from the steps ≤ share · at. ValueError where too few.

    `transient` is the early cut, `bootstrap` the number of replicates (0: the delta method), `seed` their seed.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; above 0 and at most 1 is needed")
    last = float(c.steps[-1]) if at is None else float(at)
    cut = default_cut(c) if transient is None else transient
    kept = c.until(share * last).after(cut)
    if kept.steps.size < FEWEST:
        found = kept.steps.size
        raise ValueError(f"{found} points between step {cut:g} and {share * last:g}; a forecast needs {FEWEST}")
    actual = last_loss(c, Plan(form=Form(breaks=0))) if last == c.steps[-1] else None
    generator = np.random.default_rng(seed)
    plan = plan_for(kept, Plan(form=Form(breaks=1, decelerating=True)))
    tried = [(_back_test(kept, p, factor, share), p, factor) for p, factor in _candidates(kept, plan)]
    error, best, factor = min(tried, key=lambda entry: entry[0])
    power_law = replace(plan, form=Form(breaks=0))
    return Forecast(
        share=share,
        seen=int(kept.steps[-1]),
        at=int(last),
        actual=actual,
        fit=_extrapolate(_tail(kept, best, factor), last, actual, bootstrap, generator, error),
        power_law=_extrapolate(_tail(kept, power_law, POWER_LAW_FACTOR), last, actual, bootstrap, generator, 0.0),
    )


def _candidates(kept: Curve, plan: Plan) -> list[tuple[Plan, float]]:
    """(plan, the last factor in steps that it is fitted to); inf stands for all steps."""
    preferred = forms(plan.form)[test_breaks(estimate(kept, plan)).breaks]
    return [
        (replace(plan, form=preferred), np.inf),
        (replace(plan, form=Form(breaks=0, irreducible=True)), BENT_FACTOR),
    ]


def _tail(kept: Curve, plan: Plan, factor: float) -> Estimate:
    """The fit to the last `factor` in steps, or to more of them where these hold too few points."""
    while factor < np.inf:
        tail = kept.after(float(kept.steps[-1]) / factor)
        if tail.steps.size >= FEWEST:
            return estimate(tail, plan)
        factor = factor * 2 if factor < 1e6 else np.inf
    return estimate(kept, plan)


def _back_test(kept: Curve, plan: Plan, factor: float, share: float) -> float:
    """√mean square log error over (share · seen, seen], spaced evenly in log t, of a fit to the steps before it."""
    early = kept.steps <= share * kept.steps[-1]
    if early.sum() < FEWEST or early.all():
        return 0.0 if factor == np.inf else np.inf  # there is nothing to test on: take the preferred form
    e = _tail(kept.where(early), plan, factor)
    after = bins(kept.steps[~early], kept.log_losses[~early], least=plan.least, count=30)
    return float(np.sqrt(np.mean((log_loss(plan.form, e.solution.theta, after.x) - after.y) ** 2)))


def _extrapolate(
    e: Estimate, last: float, actual: float | None, bootstrap: int, generator: np.random.Generator, error: float
) -> Extrapolation:
    form, x = e.plan.form, np.array([np.log(last)])
    value = float(log_loss(form, e.solution.theta, x)[0])
    if bootstrap:
        ends = log_loss(form, replicates(e, bootstrap, generator), x)[:, 0]
        low, high = np.quantile(ends, [0.1587, 0.8413])
        variance = ((high - low) / 2) ** 2
    else:
        gradient = value_and_jacobian(form, e.solution.theta[None], x)[1][0, :, 0]
        variance = gradient @ covariance(e) @ gradient
    spread = quantile(e) * float(np.sqrt(variance + e.noise.long_run / e.weights[-1] + error**2))
    interval = [float(np.exp(value - spread)), float(np.exp(value + spread))]
    return Extrapolation(
        breaks=form.breaks,
        irreducible=form.irreducible,
        L=float(np.exp(value)),
        interval=interval,
        error=value - float(np.log(actual)) if actual is not None else None,
        covered=interval[0] <= actual <= interval[1] if actual is not None else None,
    )
