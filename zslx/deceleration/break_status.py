"""The status of a fit: one of four words that say whether a loss curve has a break and whether the data place it.

Each curve gets the first word that applies:
    no_break          no break is preferred (break_choice.py)
    break_outside     t_d of the one-break fit lies before the first step fitted or after the last
    not_identifiable  a parameter lies on its bound; or t_d changes by more than a factor of 1.25 as the early cut goes
                      from half to twice its value; or the 95 % profile interval of t_d reaches an end of the curve
    break             none of these: the break is identified

tests/calibration/test_fit_calibration.py counts how often a planted break is identified.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from zslx.deceleration.break_choice import BreakTest, no_test, test_breaks
from zslx.deceleration.broken_power_law import Solution
from zslx.deceleration.early_cut import CutCurve
from zslx.deceleration.intervals import measures, profile_t_d

STATUSES = ("no_break", "break_outside", "not_identifiable", "break")
# The largest ratio between t_d at half, at once and at twice the early cut. Of planted breaks it is up to 1.11;
# of curves without a break, whose slope falls evenly in log t, it is 1.35 to 2.2 (tests/calibration).
STEADY = 1.25


class Judgement(NamedTuple):
    """The status and its reason, the number of breaks fitted, the test that chose it, the profile interval of t_d."""

    status: str
    reason: str
    breaks: int
    test: BreakTest
    profile: list[float] | None


def judge(curve: CutCurve, breaks: int | str = "auto") -> Judgement:
    """The status of a curve: whether a break is preferred, and whether the fit of its plan places it.

    `breaks` is the number asked for; "auto" asks for the number that the data prefer.
    """
    e = curve.estimate
    if isinstance(e, ValueError):
        return Judgement("no_break", str(e), 0, no_test(str(e)), None)
    test = test_breaks(e)
    asked = test.breaks if breaks == "auto" else int(breaks)
    if not (asked and test.breaks):
        return Judgement("no_break", test.reason or "no break was asked for", asked, test, None)
    profile = profile_t_d(e)
    refits = [curve.refit(e.plan, curve.around(share)) for share in (0.5, 2.0)]
    around = [refit.t_d if refit else None for refit in refits]
    first, last = float(curve.kept.steps[0]), float(curve.kept.steps[-1])
    t_d = float(np.exp(measures(e.plan.form, e.solution.theta, last)[1]))
    status, reason = identified(e.solution, first, last, t_d, around, profile)
    if asked > test.breaks and status != "break_outside":
        status, reason = "not_identifiable", "the data prefer one break to the two asked for"
    return Judgement(status, reason, asked, test, profile)


def identified(
    solution: Solution, first: float, last: float, t_d: float, around: list[float | None], profile: list[float] | None
) -> tuple[str, str]:
    """(status, reason) of a curve on which a break is preferred; its steps are `first` to `last`.

    `around` holds t_d at half and at twice the early cut, None where the curve could not be fitted there.
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
