"""Fits L_d, t_d and r_d, with confidence intervals and their sensitivity to analysis choices.

    log L(t) = log b − c_0 log t − c_1 f_1 log(1 + (t/d_1)^{1/f_1})
    t_d = d_1,   L_d = b d_1^{−c_0},   r_d = c_0 + c_1,   L̂_T = L_d (t_d/T)^{r_d}

These are the measures of the zero-sum learning paper (arXiv 2506.05447): a loss curve follows one power law up to step
t_d, and a flatter one with slope r_d after it. L_d is the loss at which the two asymptotes cross; it lies below the
curve at t_d by the factor 2^{−c_1 f_1}. L̂_T is the loss at the last step T by the second asymptote.

The measures are those of the form with one break, unless another number of breaks is asked for. They are given only
where the curve has a break and the break is identified (break_status.py), or under the paper's protocol. The status
does not depend on the protocol: under the paper's, it is that of the default fit of the same curve.

In what order to read: loss_curve.py and curve_file.py, broken_power_law.py (the form), binning.py (the points),
residual_noise.py, single_fit.py (one fit), intervals.py, early_cut.py, break_choice.py, break_status.py, then this
file. Cost: about 0.2 s without bootstrap.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zslx.deceleration.break_choice import BreakTest
from zslx.deceleration.break_status import Judgement, judge
from zslx.deceleration.broken_power_law import Form, log_loss
from zslx.deceleration.early_cut import CutCurve, SensitivityRow, default_cut
from zslx.deceleration.early_phase import early_phase_end
from zslx.deceleration.fit_options import FitOptions
from zslx.deceleration.intervals import MEASURES, Measured, bounded_exp, intervals, measured, measures, replicates
from zslx.deceleration.loss_curve import Curve
from zslx.deceleration.single_fit import PAPER_CUT, Estimate, Plan, estimate, is_smoothed, last_loss

Array = NDArray[np.float64]

FEWEST_POINTS = 3  # of a power law


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The result of `fit`. Losses are in nats per token, t_d and T in steps; None means that a number is not given.

    status, reason    one of four words (break_status.py), and why
    breaks            the number of breaks that the data prefer
    b c0 c1 d1 f1 a   the parameters of the fitted curve: a power law where the status is no_break
    L_d t_d r_d       the measures, and L_T_hat, the loss at T by the asymptote after the break
    estimate          L_d, t_d, r_d and L_T_hat of the fit whatever the status; unless that is break, they describe the
                      fit and claim nothing
    L_T, T            the smoothed loss at the last step, and that step
    rsle              √mean (log L̂ − log L)² over the points that were fitted
    ci95, ci_method   the 95 % interval [low, high] of each measure, and how it was made
    profile_t_d       the 95 % profile interval of t_d
    sensitivity       the measures at other early cuts and with other smoothings
    criterion         of 0, 1 and 2 breaks; the lowest is preferred (break_choice.py)
    second            the parameters of the fit with two breaks, where two are preferred or asked for
    transient         the early cut in steps
    early_phase       the step at which the early phase ends; None where none is seen, or where the cut was given
    """

    status: str
    reason: str
    breaks: int
    b: float | None
    c0: float | None
    c1: float | None
    d1: float | None
    f1: float | None
    a: float | None
    L_d: float | None
    t_d: float | None
    r_d: float | None
    L_T_hat: float | None
    estimate: dict[str, float] | None
    L_T: float
    T: int
    rsle: float | None
    ci95: dict[str, list[float] | None]
    ci_method: str
    profile_t_d: list[float] | None
    sensitivity: list[SensitivityRow]
    criterion: list[float]
    second: dict[str, float] | None
    transient: float
    early_phase: float | None
    smoothing: str
    protocol: str | None
    form: Form | None = field(default=None, repr=False)
    theta: Array | None = field(default=None, repr=False)

    def curve(self, steps: ArrayLike) -> Array:
        """The fitted loss at steps (M,) > 0 -> (M,)."""
        if self.form is None or self.theta is None:
            raise ValueError("no curve was fitted: " + self.reason)
        return np.exp(log_loss(self.form, self.theta, np.log(np.asarray(steps, dtype=float))))

    def as_dict(self) -> dict[str, Any]:
        """Values for JSON, without form and theta; a number that is not finite is None."""
        values = asdict(self)
        return {name: finite(values[name]) for name in IN_JSON}


IN_JSON = tuple(f.name for f in fields(Fit) if f.name not in ("form", "theta"))


def finite(value: Any) -> Any:
    """A value for JSON, in which each number that is not finite is None."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value


def fit(curve: Curve, options: FitOptions | None = None) -> Fit:
    """Fits where a loss curve decelerates: L_d, t_d and r_d, with intervals, or why they are not given.

        found = zslx.fit(zslx.curve(steps, losses))
        found = zslx.fit(zslx.curve(steps, losses, warmup=100), zslx.FitOptions(transient=200))

    Raises ValueError where the curve is empty.
    """
    options = options or FitOptions()
    if not curve.steps.size:
        raise ValueError("the curve has no step above 0")
    plan = options.plan
    at = CutCurve(whole=curve, plan=plan, cut=float(PAPER_CUT) if plan.paper else default_cut(curve))
    if options.transient is not None:
        at = replace(at, cut=float(options.transient))
    elif not plan.paper:
        at = after_early_phase(at)
    e = at.estimate
    if isinstance(e, ValueError):  # too few points, or the paper's fit did not converge
        straight = Plan(form=Form(breaks=0), smoothing="none")
        shown = estimate(at.kept, straight) if at.kept.steps.size >= FEWEST_POINTS else None
        return _result(at, judge(at), shown, at.sensitivity(plan), _Numbers())
    judgement = judge(_by_default(at, options) if plan.paper else at, options.breaks)
    straight = replace(plan, form=replace(plan.form, breaks=0, decelerating=False))
    shown = e if judgement.breaks or plan.paper else estimate(at.kept, straight)
    last = float(at.kept.steps[-1])
    given = judgement.status == "break" or plan.paper
    numbers = _numbers(e, last, judgement.profile, options) if given else _Numbers()
    numbers = numbers._replace(
        estimate=measured(e.plan.form, e.solution.theta, last), method=_method(at.kept, e, options)
    )
    return _result(at, judgement, shown, at.sensitivity(e.plan), numbers)


def after_early_phase(at: CutCurve) -> CutCurve:
    """The curve with its cut moved to the end of its early phase, where it shows one.

    The cut stays where t_d would lie before the first step that is left: there the early phase runs into the
    deceleration, and without it nothing of the deceleration is to be seen.
    """
    end = early_phase_end(at.whole, at.cut)
    if end is None:
        return at
    moved = replace(at, cut=end, early_phase=end)
    e = moved.estimate
    swallowed = isinstance(e, ValueError) or _log_t_d(e) < math.log(moved.kept.steps[0])
    return replace(at, early_phase=end) if swallowed else moved


def _log_t_d(e: Estimate) -> float:
    return float(measures(e.plan.form, e.solution.theta, float(e.x[-1]))[1])


def _by_default(at: CutCurve, options: FitOptions) -> CutCurve:
    """The default fit of a curve that is fitted by the paper's protocol, at its own cut unless one was given."""
    plan = FitOptions(smoothing="centred" if at.plan.smoothing == "paper" else "none").plan
    if options.transient is not None:
        return replace(at, plan=plan)
    return after_early_phase(CutCurve(whole=at.whole, plan=plan, cut=default_cut(at.whole)))


class _Numbers(NamedTuple):
    """The measures with their intervals, and how these were made; None where they are not given.

    `estimate` are the measures of the fit whatever its status.
    """

    estimate: Measured | None = None
    measures: Measured | None = None
    ci95: dict[str, list[float] | None] | None = None
    method: str = "none"


def _numbers(e: Estimate, last: float, profile: list[float] | None, options: FitOptions) -> _Numbers:
    """The measures of an estimate and their intervals."""
    generator = np.random.default_rng(options.seed)
    thetas = replicates(e, options.bootstrap, generator) if options.bootstrap else None
    ci95 = intervals(e, last, thetas, None if e.plan.paper else profile)
    return _Numbers(measures=measured(e.plan.form, e.solution.theta, last), ci95=ci95)


def _method(kept: Curve, e: Estimate, options: FitOptions) -> str:
    """How the intervals are made."""
    how = "delta method, long-run variance of the residuals"
    if options.bootstrap:
        how = f"moving-block bootstrap of prewhitened residuals, {options.bootstrap} replicates"
    if not e.plan.paper:
        how += ", and the profile interval of t_d"
    if is_smoothed(kept, kept.log_losses - log_loss(e.plan.form, e.solution.theta, np.log(kept.steps))):
        how += "; the input is smoothed or thinned already, so the residuals are those of the smoothed curve"
    return how


def _result(
    at: CutCurve, judgement: Judgement, shown: Estimate | None, sensitivity: list[SensitivityRow], numbers: _Numbers
) -> Fit:
    """Puts the result together. `shown` is the estimate whose curve is shown; None: there is no curve."""
    test = judgement.test
    return Fit(
        status=judgement.status, reason=judgement.reason, breaks=test.breaks,
        **_shape(at.kept, shown)._asdict(),
        **(numbers.measures._asdict() if numbers.measures else dict.fromkeys(MEASURES)),
        estimate=numbers.estimate._asdict() if numbers.estimate else None,
        L_T=last_loss(at.whole, at.plan), T=int(at.whole.steps[-1]),
        ci95=numbers.ci95 or dict.fromkeys(MEASURES), ci_method=numbers.method, profile_t_d=judgement.profile,
        sensitivity=sensitivity, criterion=list(test.criterion), second=_second(test, shown),
        transient=at.cut, early_phase=at.early_phase,
        smoothing=at.plan.smoothing, protocol="paper" if at.plan.paper else None,
    )  # fmt: skip


class _Shape(NamedTuple):
    """The fields of `Fit` that describe the fitted curve; c1, d1 and f1 are None without a break."""

    b: float | None = None
    c0: float | None = None
    c1: float | None = None
    d1: float | None = None
    f1: float | None = None
    a: float | None = None
    rsle: float | None = None
    form: Form | None = None
    theta: Array | None = None


def _shape(kept: Curve, e: Estimate | None) -> _Shape:
    """The fitted curve of an estimate.

    rsle is over the points that were fitted; without smoothing over those of the curve, which the bins only sum up.
    """
    if e is None:
        return _Shape()
    form, theta = e.plan.form, e.solution.theta
    c, d, f, a = form.split(theta)
    missed = log_loss(form, theta, np.log(kept.steps)) - kept.log_losses
    rsle = float(np.sqrt(np.mean(missed**2))) if e.plan.smoothing == "none" else e.rsle
    shape = _Shape(b=bounded_exp(theta[0]), c0=float(theta[1]), a=float(a[0]), rsle=rsle, form=form, theta=theta)
    return shape._replace(c1=float(c[0]), d1=bounded_exp(d[0]), f1=float(f[0])) if form.breaks else shape


def _second(test: BreakTest, shown: Estimate | None) -> dict[str, float] | None:
    """The parameters of the fit with two breaks, the earlier break first.

    They are given where two breaks are preferred, or where two are asked for and at least one is preferred.
    """
    if shown and shown.plan.form.breaks == 2 and test.breaks > 0:
        s = shown.solution
    elif test.breaks == 2:
        s = test.solutions[2]
    else:
        return None
    c, d, f, a = s.form.split(s.theta)
    first, later = np.argsort(d)
    return {
        "b": bounded_exp(s.theta[0]), "c0": float(s.theta[1]), "a": float(a[0]),
        "c1": float(c[first]), "c2": float(c[later]),
        "d1": bounded_exp(d[first]), "d2": bounded_exp(d[later]),
        "f1": float(f[first]), "f2": float(f[later]),
    }  # fmt: skip
