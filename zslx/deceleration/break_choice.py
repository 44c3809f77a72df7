"""Decides how many breaks a loss curve has: fits with 0, 1 and 2 breaks compete.

One more break is preferred when both of these hold:
    criterion   X²/κ + P log n_eff is lower. X² is the weighted sum of squares of the fit to the bins, and P its number
                of parameters. κ and n_eff are the long-run variance and the effective number of the residuals of the
                largest form (residual_noise.py), so that correlated residuals are not counted as evidence. A plain BIC
                takes the wiggles of a smoothed curve for breaks.
    tail        Fitted to the first three quarters of the steps, it predicts the last quarter no worse than the form
                without it, up to noise: its X²_tail / κ is higher by at most 4.

A single break must be a deceleration (c_1 < 0). Of two breaks, each may have either sign.

tests/calibration/test_fit_calibration.py counts how often a break is seen where there is none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from zslx.deceleration import residual_noise
from zslx.deceleration.broken_power_law import Form, Solution, log_loss, solve, value_and_jacobian
from zslx.deceleration.single_fit import Estimate

Array = NDArray[np.float64]

# The tail begins at this share of the steps. A break is refused where it predicts the tail worse by more than the
# slack, in units of the variance of the noise.
TAIL_FROM, TAIL_SLACK = 0.75, 4.0
# Differences of log loss below this are no evidence, however little noise there is: files are rounded.
RESOLUTION = 1e-4
# A form is fitted only where there are this many more points than parameters.
SPARE_POINTS = 3


@dataclass(frozen=True, kw_only=True)
class BreakTest:
    """The preferred number of breaks, and the reason where it is 0.

    `criterion`, `tail` and `solutions` are those of 0, 1 and 2 breaks, as far as there are points enough to fit them.
    """

    breaks: int
    criterion: tuple[float, ...]
    tail: tuple[float, ...]
    solutions: tuple[Solution, ...]
    reason: str


def forms(base: Form) -> tuple[Form, ...]:
    """The competing forms: no break, one deceleration, two breaks of either sign."""
    return (
        replace(base, breaks=0, decelerating=False),
        replace(base, breaks=1, decelerating=True),
        replace(base, breaks=2, decelerating=False),
    )


def no_test(why: str) -> BreakTest:
    """The result where nothing could be compared: no break."""
    return BreakTest(breaks=0, criterion=(), tail=(), solutions=(), reason=why)


def test_breaks(e: Estimate) -> BreakTest:
    """Compares 0, 1 and 2 breaks on the bins of an estimate. Its smoothing plays no part."""
    points = e.bins.x.size
    fitted = [f for f in forms(e.plan.form) if points >= f.size + SPARE_POINTS]
    if len(fitted) < 2:
        return no_test(f"{points} points are too few to tell a break")
    solutions, criterion, scale = compare(e, fitted)
    tail = _tail_errors(e, fitted, scale)
    chosen = 0
    for m in range(1, len(fitted)):
        worse = tail and tail[m] > tail[chosen] + TAIL_SLACK
        if criterion[m] < criterion[chosen] and not worse:
            chosen = m
    reason = "" if chosen else "a power law without a break describes the curve as well"
    return BreakTest(breaks=chosen, criterion=criterion, tail=tail, solutions=solutions, reason=reason)


def compare(e: Estimate, competitors: list[Form]) -> tuple[tuple[Solution, ...], tuple[float, ...], float]:
    """The fits of each form to the bins of e, their criteria, and κ of the last form, which is the largest."""
    b = e.bins
    solutions = tuple(solve(f, b.x, b.y, e.weights) for f in competitors)
    residuals = [b.y - log_loss(s.form, s.theta, b.x) for s in solutions]
    design = value_and_jacobian(competitors[-1], solutions[-1].theta[None], b.x)[1][0]
    largest = residual_noise.noise(residuals[-1], e.weights, design)
    scale = max(largest.long_run, RESOLUTION**2)
    criterion = tuple(
        float(e.weights @ r**2) / scale + s.form.size * float(np.log(largest.effective))
        for r, s in zip(residuals, solutions, strict=True)
    )
    return solutions, criterion, scale


def _tail_errors(e: Estimate, fitted: list[Form], scale: float) -> tuple[float, ...]:
    """Weighted squares over the last quarter of the steps, in units of κ, of fits to the steps before it."""
    head = e.bins.x <= e.bins.x[-1] + np.log(TAIL_FROM)
    if head.sum() < fitted[-1].size + 1 or head.all():
        return ()
    errors = []
    for form in fitted:
        theta = solve(form, e.bins.x[head], e.bins.y[head], e.weights[head]).theta
        missed = (e.bins.y - log_loss(form, theta, e.bins.x))[~head]
        errors.append(float(e.weights[~head] @ missed**2) / scale)
    return tuple(errors)
