"""Deceleration of a loss curve: L_d, t_d, r_d and L̂_T, with a status, intervals, and how far they hang on choices.

    log L(t) = log b − c_0 log t − c_1 f_1 log(1 + (t/d_1)^{1/f_1})
    t_d = d_1,   L_d = b d_1^{−c_0},   r_d = c_0 + c_1,   L̂_T = L_d (t_d/T)^{r_d}

(zero-sum learning paper, arXiv 2506.05447.) L_d is where the two asymptotes cross, below the curve at t_d by the
factor 2^{−c_1 f_1}. The measures are those of the one-break form, whatever number of breaks is preferred, unless
another number is asked for. A number is given only where the curve has a break and the break is identified
(`status`, break_test.py), or under `protocol="paper"`.

Early cut: steps ≤ `transient` are left out. Default: 100 steps (the paper's) or half a percent of the run, whichever
is less, but 2 steps; and at least the warm-up where it is known, since a rising rate bends the curve by itself. The
paper's own cut is 0.05 of its warm-up; the table of every result shows what that choice does.

The status never depends on the protocol: under the paper's, it is that of the default fit of the same curve.

Reading order: bnsl.py (the form and its fit), smoothing.py (points), noise.py (residuals), estimate.py (one fit),
break_test.py (status), uncertainty.py (intervals), then this file. Cost: about 0.2 s without bootstrap.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zslx.deceleration.binning import SMOOTHINGS
from zslx.deceleration.break_choice import BreakTest, identified, test_breaks
from zslx.deceleration.broken_power_law import Form, log_loss
from zslx.deceleration.curve_file import Curve, curve
from zslx.deceleration.intervals import MEASURES, REPLICATES, intervals, measures, natural, profile_t_d, replicates
from zslx.deceleration.single_fit import PAPER_CUT, Estimate, Plan, estimate, is_smoothed, last_loss, plan_for, prepared
from zslx.deceleration.slopes import local_slope, loss_at, tail_slope

__all__ = ["Fit", "default_cut", "fit", "fit_curve", "local_slope", "loss_at", "tail_slope"]

Array = NDArray[np.float64]

# The sensitivity table: shares of the default cut, and of the warm-up where it is known.
CUT_SHARES = (0.5, 1.0, 2.0, 10.0)
WARMUP_SHARES = (0.05, 0.5, 1.0, 2.0)
FEWEST_REPLICATES = 50  # fewer say nothing about a spread
LEAST_CUT = 2  # steps: a cut whose half, double and tenfold differ


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The result of `fit`. Losses in nats per token, t_d and T in steps, slopes without unit; None: not given.

    `theta` and `form` describe the curve that was chosen (no break: a power law); `profile` is the 95 % profile
    interval of t_d; `second` are all parameters of the two-break fit where two breaks are preferred or asked for.
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
    L_T: float
    T: int
    rsle: float | None
    ci95: dict[str, list[float] | None]
    ci_method: str
    profile_t_d: list[float] | None
    sensitivity: list[dict[str, Any]]
    criterion: list[float]
    second: dict[str, float] | None
    transient: float
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
        """Values for JSON; a number that is not finite is null."""
        names = [n for n in self.__dataclass_fields__ if n not in ("form", "theta")]
        return {name: _finite(getattr(self, name)) for name in names}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value


def default_cut(c: Curve) -> float:
    """The early cut: the lesser of 100 steps and half a percent of the run, at least 2, and the warm-up if known."""
    return float(max(c.warmup or 0, LEAST_CUT, min(PAPER_CUT, int(c.steps[-1] / 200))))


def fit(
    steps: ArrayLike,
    losses: ArrayLike,
    *,
    breaks: int | str = "auto",
    smoothing: str | None = None,
    transient: float | None = None,
    protocol: str | None = None,
    irreducible: bool = False,
    robust: bool = False,
    warmup: int | None = None,
    bootstrap: int = REPLICATES,
    seed: int = 0,
) -> Fit:
    """Fit a loss curve: steps (N,) increasing, losses (N,) > 0 in nats per token. Raises ValueError on bad input.

    breaks "auto" lets the data choose between 0, 1 and 2; smoothing is centred (default), paper or none; bootstrap
    is the number of replicates for the intervals, 0 for the delta method (too short on smooth breaks: see
    benchmarks/README.md); seed is that of the replicates.
    """
    return fit_curve(
        curve(steps, losses, warmup), breaks=breaks, smoothing=smoothing, transient=transient, protocol=protocol,
        irreducible=irreducible, robust=robust, bootstrap=bootstrap, seed=seed,
    )  # fmt: skip


def fit_curve(
    c: Curve,
    *,
    breaks: int | str = "auto",
    smoothing: str | None = None,
    transient: float | None = None,
    protocol: str | None = None,
    irreducible: bool = False,
    robust: bool = False,
    bootstrap: int = REPLICATES,
    seed: int = 0,
) -> Fit:
    """`fit` for a curve read from a file."""
    plan = _plan(breaks, smoothing, protocol, irreducible, robust)
    if not c.steps.size:
        raise ValueError("the curve has no step above 0")
    default = float(PAPER_CUT) if plan.paper else default_cut(c)
    cut = default if transient is None else float(transient)
    if not cut >= 0:
        raise ValueError(f"transient is {transient}; a number of steps, not negative, is needed")
    kept = prepared(c, cut, plan)
    if bootstrap and bootstrap < FEWEST_REPLICATES:
        raise ValueError(f"bootstrap is {bootstrap}; allowed: 0 (the delta method), {FEWEST_REPLICATES} or more")
    return _Work(c=c, kept=kept, plan=plan, cut=cut, default=default).result(breaks, bootstrap, seed)


def _plan(breaks: int | str, smoothing: str | None, protocol: str | None, irreducible: bool, robust: bool) -> Plan:
    if breaks not in ("auto", 0, 1, 2):
        raise ValueError(f"breaks is {breaks!r}; allowed: 'auto', 0, 1, 2")
    if protocol not in (None, "paper"):
        raise ValueError(f"protocol is {protocol!r}; allowed: None, 'paper'")
    allowed = SMOOTHINGS if protocol is None else ("paper", "none")
    smoothing = smoothing or ("centred" if protocol is None else "paper")
    if smoothing not in allowed:
        raise ValueError(f"smoothing is {smoothing!r}; allowed: {', '.join(allowed)}")
    if protocol == "paper" and (irreducible or robust or breaks not in ("auto", 1)):
        raise ValueError("protocol paper has one break, no irreducible loss and no robust option")
    m = 2 if breaks == 2 else 1
    form = Form(breaks=m, irreducible=irreducible, decelerating=m == 1 and protocol is None)
    return Plan(form=form, smoothing=smoothing, paper=protocol == "paper", robust=robust)


class Judgement(NamedTuple):
    """Status and its reason, the number of breaks that was fitted, the test, and the profile interval of t_d."""

    status: str
    reason: str
    breaks: int
    test: BreakTest
    profile: list[float] | None


@dataclass(frozen=True, kw_only=True)
class _Work:
    """One curve on its way to a `Fit`."""

    c: Curve
    kept: Curve
    plan: Plan
    cut: float
    default: float
    # Measures by (cut, smoothing), fitted once each.
    rows: dict[tuple[float, str], dict[str, float] | None] = field(default_factory=dict)

    @cached_property
    def fitted(self) -> tuple[Plan, Estimate]:
        """The plan with what was learned of the noise, and the fit. ValueError where there is none."""
        plan = plan_for(self.kept, self.plan)
        return plan, estimate(self.kept, plan)

    def result(self, breaks: int | str, bootstrap: int, seed: int) -> Fit:
        try:
            plan, e = self.fitted
        except ValueError as error:  # too few points, or the paper's fit did not converge
            return self._without_break(str(error))
        last = float(self.kept.steps[-1])
        values = measures(plan.form, e.solution.theta, last)
        table = self.sensitivity(plan)
        status, reason, asked, test, profile = self._usual().judged() if plan.paper else self.judged(breaks)
        given = status == "break" or plan.paper
        thetas = replicates(e, bootstrap, np.random.default_rng(seed)) if given and bootstrap else None
        ci95 = intervals(e, last, thetas, None if plan.paper else profile) if given else dict.fromkeys(MEASURES)
        chosen = e if asked or plan.paper else self._power_law()
        return self._fit(
            chosen, test, status=status, reason=reason, breaks=test.breaks, sensitivity=table, profile_t_d=profile,
            ci95=ci95, ci_method=self._method(e, bootstrap),
            **{n: natural(n, v) if given else None for n, v in zip(MEASURES, values, strict=True)},
        )  # fmt: skip

    def judged(self, breaks: int | str = "auto") -> Judgement:
        """Whether the data prefer a break, and whether the one-break fit of this plan places it."""
        try:
            plan, e = self.fitted
        except ValueError as error:
            return Judgement("no_break", str(error), 0, _no_test(str(error)), None)
        test = test_breaks(e)
        asked = test.breaks if breaks == "auto" else int(breaks)
        if not (asked and test.breaks):
            return Judgement("no_break", test.reason or "no break was asked for", asked, test, None)
        profile = profile_t_d(e)
        around = [self._t_d(plan, (self.cut or self.default) * share) for share in (0.5, 2.0)]
        first, last = float(self.kept.steps[0]), float(self.kept.steps[-1])
        t_d = float(np.exp(measures(plan.form, e.solution.theta, last)[1]))
        status, reason = identified(e.solution, first, last, t_d, around, profile)
        if asked > test.breaks and status != "break_outside":
            status, reason = "not_identifiable", "the data prefer one break to the two asked for"
        return Judgement(status, reason, asked, test, profile)

    def _usual(self) -> _Work:
        """The default fit of a curve that is fitted by the paper's protocol, at its own cut unless one was given."""
        plan = _plan("auto", "centred" if self.plan.smoothing == "paper" else "none", None, False, False)
        default = default_cut(self.c)
        cut = default if self.cut == self.default else self.cut
        return _Work(c=self.c, kept=prepared(self.c, cut, plan), plan=plan, cut=cut, default=default)

    def _t_d(self, plan: Plan, cut: float) -> float | None:
        row = self._row(plan, cut)
        return row["t_d"] if row else None

    def sensitivity(self, plan: Plan) -> list[dict[str, Any]]:
        """The measures at other early cuts and smoothings; null where no fit was possible."""
        rows = [("cut", share, "default cut", self.default * share, plan) for share in CUT_SHARES]
        if self.c.warmup:
            rows += [("cut", share, "warm-up", self.c.warmup * share, plan) for share in WARMUP_SHARES]
        for smoothing in SMOOTHINGS:
            if smoothing != plan.smoothing:
                other = replace(plan, smoothing=smoothing, paper=plan.paper and smoothing == "paper")
                rows.append(("smoothing", 1.0, "chosen cut", self.cut, other))
        empty = dict.fromkeys(MEASURES)
        return [
            {
                "varied": varied, "share": share, "of": of, "cut": cut, "smoothing": p.smoothing,
                **(self._row(p, cut) or empty),
            }
            for varied, share, of, cut, p in rows
        ]  # fmt: skip

    def _row(self, plan: Plan, cut: float) -> dict[str, float] | None:
        if (cut, plan.smoothing) not in self.rows:
            kept = prepared(self.c, cut, plan)
            try:
                e = estimate(kept, plan)
            except ValueError:
                self.rows[cut, plan.smoothing] = None
            else:
                values = measures(plan.form, e.solution.theta, float(kept.steps[-1]))
                row = {n: natural(n, v) for n, v in zip(MEASURES, values, strict=True)}
                self.rows[cut, plan.smoothing] = row
        return self.rows[cut, plan.smoothing]

    def _without_break(self, why: str) -> Fit:
        """A power law at most: what is said of a curve that is too short for anything else."""
        plan = replace(self.plan, form=Form(breaks=0), paper=False, smoothing="none", robust=False)
        e = estimate(self.kept, plan) if self.kept.steps.size >= 3 else None
        empty: dict[str, Any] = dict.fromkeys(MEASURES)
        return self._fit(
            e, _no_test(why), status="no_break", reason=why, breaks=0, sensitivity=self.sensitivity(self.plan),
            profile_t_d=None, ci95=dict(empty), ci_method="none", **empty,
        )  # fmt: skip

    def _power_law(self) -> Estimate:
        return estimate(self.kept, replace(self.plan, form=replace(self.plan.form, breaks=0, decelerating=False)))

    def _fit(self, e: Estimate | None, test: BreakTest, **values: Any) -> Fit:
        """Fill in what follows from the chosen estimate; None: there is no curve."""
        curve = (
            _parameters(e, self.kept)
            if e
            else dict.fromkeys(("b", "c0", "c1", "d1", "f1", "a", "rsle", "form", "theta"))
        )
        return Fit(
            L_T=last_loss(self.c, self.plan), T=int(self.c.steps[-1]),
            criterion=list(test.criterion), second=_second(test, self.plan, e),
            transient=self.cut, smoothing=self.plan.smoothing,
            protocol="paper" if self.plan.paper else None, **curve, **values,
        )  # fmt: skip

    def _method(self, e: Estimate, bootstrap: int) -> str:
        residuals = self.kept.log_losses - log_loss(e.plan.form, e.solution.theta, np.log(self.kept.steps))
        how = (
            f"moving-block bootstrap of prewhitened residuals, {bootstrap} replicates"
            if bootstrap
            else "delta method, long-run variance of the residuals"
        )
        if not self.plan.paper:
            how += ", and the profile interval of t_d"
        if is_smoothed(self.kept, residuals):
            how += "; the input is smoothed or thinned already, so the residuals are those of the smoothed curve"
        return how


def _no_test(why: str) -> BreakTest:
    return BreakTest(breaks=0, criterion=(), tail=(), solutions=(), reason=why)


def _exp(x: float) -> float:
    """exp of a parameter; the paper's fit of a hopeless curve may run away beyond what a float holds."""
    return float(np.exp(min(float(x), 700.0)))


def _parameters(e: Estimate, kept: Curve) -> dict[str, Any]:
    """The fields of `Fit` that describe the fitted curve; c1, d1, f1 are None without a break.

    rsle is over the points that were fitted; without smoothing over those of the curve, which the bins only sum up.
    """
    form, theta = e.plan.form, e.solution.theta
    raw = log_loss(form, theta, np.log(kept.steps)) - kept.log_losses
    rsle = float(np.sqrt(np.mean(raw**2))) if e.plan.smoothing == "none" else e.rsle
    c, d, f, a = form.split(theta)
    first = {"c1": c, "d1": np.array([_exp(x) for x in d]), "f1": f}
    return {
        "b": _exp(theta[0]), "c0": float(theta[1]), "a": float(a[0]), "rsle": rsle,
        **{name: float(v[0]) if form.breaks else None for name, v in first.items()},
        "form": form, "theta": theta,
    }  # fmt: skip


def _second(test: BreakTest, plan: Plan, e: Estimate | None) -> dict[str, float] | None:
    """All parameters of the two-break fit, the earlier break first, where two are preferred, or asked for while a
    break is preferred to none."""
    asked = e is not None and plan.form.breaks == 2 and test.breaks > 0
    if not asked and (test.breaks < 2 or len(test.solutions) < 3):
        return None
    s = e.solution if asked and e else test.solutions[2]
    c, d, f, a = s.form.split(s.theta)
    first, later = np.argsort(d)
    return {
        "b": _exp(s.theta[0]), "c0": float(s.theta[1]), "a": float(a[0]),
        "c1": float(c[first]), "c2": float(c[later]), "d1": _exp(d[first]), "d2": _exp(d[later]),
        "f1": float(f[first]), "f2": float(f[later]),
    }  # fmt: skip
