"""Finds the early phase of training in a loss curve: the first steps, which follow no power law.

A language model first learns how often each token occurs. Its loss falls to the entropy of that distribution and rests
there, on a plateau. Then it falls ever faster, and only then does the loss follow a power law, whose slope decelerates
later. So in log-log, the early phase ends with an acceleration, where the loss curve becomes steeper for the last time.

The end is found in rounds. Forms with 0, 1 and 2 breaks of either sign compete for the steps after the cut, by the
criterion of break_choice.py. If the preferred form has an acceleration (c_i > 0) in the first quarter of the steps, the
cut moves to d_i e^{3 f_i}, where 95 % of its change of slope have happened. When no acceleration is left, the cut is
the end of the early phase. Accelerations that come later, as a falling learning rate makes them, or that are not
complete by half of the steps, do not belong to the early phase.

Why it matters: where a fit includes this phase, its form is wrong. The misfit is no noise, so no averaging removes it,
and t_d depends on the early cut.

Approximate: in a single run the end is found to within a factor of about 1.5. The steps before `cut` are not looked at,
and a cut that lies before the first fall can hide the acceleration after it: the warm-up should be known. Cost: about
0.1 s a round.
"""

from __future__ import annotations

import numpy as np

from zslx.deceleration.break_choice import SPARE_POINTS, compare
from zslx.deceleration.broken_power_law import Form
from zslx.deceleration.loss_curve import Curve
from zslx.deceleration.single_fit import Plan, estimate, plan_for

# The shares of the steps within which the last acceleration of the early phase lies, and is complete.
LATEST, COMPLETE = 0.25, 0.5
# How many widths f after its midpoint an acceleration is complete: 95 % of the change of slope.
WIDTHS = 3.0
# The most rounds. Each ends with a later cut; real curves take one or two.
ROUNDS = 8


def early_phase_end(curve: Curve, cut: float) -> float | None:
    """The step at which the early phase of the curve ends, later than `cut`; None where there is none after it."""
    start = cut
    for _ in range(ROUNDS):
        end = _last_acceleration(curve.after(cut))
        if end is None or end <= cut:
            break
        cut = end
    return cut if cut > start else None


def _last_acceleration(curve: Curve) -> float | None:
    """The step at which the last early acceleration of a curve is complete, by the form that its data prefer."""
    try:
        e = estimate(curve, plan_for(curve, Plan(form=Form(breaks=1))))
    except ValueError:  # too few points
        return None
    competitors = [form for form in (Form(breaks=m) for m in (0, 1, 2)) if e.bins.x.size >= form.size + SPARE_POINTS]
    solutions, criterion, _ = compare(e, competitors)
    preferred = solutions[int(np.argmin(criterion))]
    c, d, f, _ = preferred.form.split(preferred.theta)
    places, ends, last = np.exp(d), np.exp(d + WIDTHS * f), curve.steps[-1]
    early = ends[(c > 0) & (places <= LATEST * last) & (ends <= COMPLETE * last)]
    return float(early.max()) if early.size else None
