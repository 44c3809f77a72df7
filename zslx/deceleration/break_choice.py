"""Is there a break, and is it identified? 0 against 1 against 2 breaks, and four words in a fixed order.

One more break is preferred when both hold:
    criterion   X²/κ + P log n_eff is lower; X² the weighted squares of the bins, κ and n_eff long-run variance and
                effective number of the residuals of the largest form, so that correlated residuals do not count
                as evidence (a plain BIC takes every wiggle of a smoothed curve for a break)
    tail        fitted on the first three quarters of the steps only, it predicts the last quarter no worse than
                the form without it, by more than noise (Δ X²_tail / κ ≤ 4)
Only decelerations (c_1 < 0) count as the one break; with two breaks either sign is allowed.

    no_break          zero breaks are preferred
    break_outside     t_d of the one-break fit lies before the first step fitted or after the last
    not_identifiable  a parameter on its bound; or t_d moves by more than 1.5 × as the early cut goes from half to
                      twice its value; or its 95 % profile interval reaches an end of the curve
    break             none of these

False alarms and misses are counted in tests/calibration/test_fit_calibration.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from zslx.deceleration import residual_noise
from zslx.deceleration.broken_power_law import Form, Solution, log_loss, solve, value_and_jacobian
from zslx.deceleration.single_fit import Estimate

Array = NDArray[np.float64]

STATUSES = ("no_break", "break_outside", "not_identifiable", "break")
# Largest ratio between t_d at half and at twice the early cut.
STEADY = 1.5
# How much worse (in units of noise variance) the tail may be predicted before a break is refused.
TAIL_SLACK = 4.0
TAIL_FROM = 0.75
# Differences of log loss smaller than this are no evidence, however little noise there is (rounding of a file).
RESOLUTION = 1e-4


@dataclass(frozen=True, kw_only=True)
class BreakTest:
    """The preferred number of breaks; per number of breaks criterion and tail error (None where not fitted)."""

    breaks: int
    criterion: tuple[float, ...]
    tail: tuple[float, ...]
    solutions: tuple[Solution, ...]
    reason: str


def forms(base: Form) -> tuple[Form, ...]:
    """The competitors: none, one deceleration, two breaks of either sign."""
    return (
        replace(base, breaks=0, decelerating=False),
        replace(base, breaks=1, decelerating=True),
        replace(base, breaks=2, decelerating=False),
    )


def test_breaks(e: Estimate) -> BreakTest:
    """Compare 0, 1 and 2 breaks on the bins of an estimate, whatever its smoothing."""
    b = e.bins
    fitted = [f for f in forms(e.plan.form) if b.x.size >= f.size + 3]
    if len(fitted) < 2:
        return BreakTest(
            breaks=0, criterion=(), tail=(), solutions=(), reason=f"{b.x.size} points are too few to tell a break"
        )
    solutions = tuple(solve(f, b.x, b.y, e.weights) for f in fitted)
    residuals = [b.y - log_loss(s.form, s.theta, b.x) for s in solutions]
    design = value_and_jacobian(fitted[-1], solutions[-1].theta[None], b.x)[1][0]
    largest = residual_noise.noise(residuals[-1], e.weights, design)
    scale = max(largest.long_run, RESOLUTION**2)
    criterion = tuple(
        float(e.weights @ r**2) / scale + s.form.size * float(np.log(largest.effective))
        for r, s in zip(residuals, solutions, strict=True)
    )
    tail = _tail_errors(e, fitted, scale)
    chosen = 0
    for m in range(1, len(fitted)):
        worse = tail and tail[m] > tail[chosen] + TAIL_SLACK
        if criterion[m] < criterion[chosen] and not worse:
            chosen = m
    reason = "" if chosen else "a power law without a break describes the curve as well"
    return BreakTest(breaks=chosen, criterion=criterion, tail=tail, solutions=solutions, reason=reason)


def _tail_errors(e: Estimate, fitted: list[Form], scale: float) -> tuple[float, ...]:
    """Weighted squares over the last quarter of the steps of fits to the rest, in units of κ."""
    head = e.bins.x <= e.bins.x[-1] + np.log(TAIL_FROM)
    if head.sum() < fitted[-1].size + 1 or head.all():
        return ()
    errors = []
    for form in fitted:
        theta = solve(form, e.bins.x[head], e.bins.y[head], e.weights[head]).theta
        missed = (e.bins.y - log_loss(form, theta, e.bins.x))[~head]
        errors.append(float(e.weights[~head] @ missed**2) / scale)
    return tuple(errors)


def identified(
    solution: Solution, first: float, last: float, t_d: float, around: list[float | None], profile: list[float] | None
) -> tuple[str, str]:
    """(status, reason) of a curve on which a break is preferred.

    `around`: t_d at half and at twice the early cut, None where no fit was possible there.
    """
    if not first <= t_d <= last:
        return "break_outside", f"t_d = {t_d:.4g} lies outside the steps {first:.0f} to {last:.0f}"
    if solution.on_bound:
        return "not_identifiable", f"{', '.join(solution.on_bound)} on the bound of what is allowed"
    places = [t_d, *(t for t in around if t is not None)]
    if len(places) < 3:
        return "not_identifiable", "at half or twice the early cut the curve cannot be fitted"
    if max(places) > STEADY * min(places):
        return "not_identifiable", f"t_d goes from {min(places):.4g} to {max(places):.4g} with the early cut"
    if solution.form.breaks == 1 and profile is None:
        return "not_identifiable", "the 95 % profile interval of t_d reaches an end of the curve"
    return "break", ""
