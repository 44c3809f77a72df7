"""The early cut: how many first steps a fit leaves out, and how much the fit depends on that choice.

Early training follows no power law: the learning rate warms up, and the loss curve bends by itself. So a fit leaves
out the steps up to its early cut. The default cut is the smaller of the paper's 100 steps and half a percent of the
run, but at least 2 steps, and at least the warm-up where it is known. (The paper's own cut is 0.05 of its warm-up.)
Where a curve shows an early phase, `fit` moves its cut to the end of that (early_phase.py).

t_d can depend more on this choice than on the noise. `sensitivity` therefore repeats the fit at other cuts and with
the other smoothings.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

from zslx.deceleration.binning import SMOOTHINGS
from zslx.deceleration.intervals import Measured, measured
from zslx.deceleration.loss_curve import Curve
from zslx.deceleration.single_fit import PAPER_CUT, Estimate, Plan, estimate, plan_for, prepared

# The cuts of the sensitivity table, as shares of the early cut, and of the warm-up where it is known.
CUT_SHARES = (0.5, 1.0, 2.0, 10.0)
WARMUP_SHARES = (0.05, 0.5, 1.0, 2.0)
LEAST_CUT = 2  # steps, so that half the cut, the cut and twice the cut differ


def default_cut(c: Curve) -> float:
    """The early cut in steps where none is given."""
    return float(max(c.warmup or 0, LEAST_CUT, min(PAPER_CUT, int(c.steps[-1] / 200))))


@dataclass(frozen=True, kw_only=True)
class SensitivityRow:
    """The measures when one choice is changed; None where the curve cannot be fitted then.

    `varied` is cut or smoothing, and the cut is `share` times what `of` names. Losses are in nats per token; t_d and
    the cut are in steps.
    """

    varied: str
    share: float
    of: str
    cut: float
    smoothing: str
    L_d: float | None
    t_d: float | None
    r_d: float | None
    L_T_hat: float | None


@dataclass(frozen=True, kw_only=True)
class CutCurve:
    """A curve with the plan of its fit, its early cut, and the end of its early phase where that was looked for."""

    whole: Curve
    plan: Plan
    cut: float
    early_phase: float | None = None
    # Fits at other cuts and smoothings, each done once.
    _refits: dict[tuple[float, str], Measured | None] = field(default_factory=dict, init=False, repr=False)

    @cached_property
    def kept(self) -> Curve:
        """What is fitted: the steps after the cut, prepared as the plan asks."""
        return prepared(self.whole, self.cut, self.plan)

    @cached_property
    def estimate(self) -> Estimate | ValueError:
        """The fit, by the plan with what was learned of the noise; or the error that says why there is none."""
        kept = self.kept
        try:
            return estimate(kept, plan_for(kept, self.plan))
        except ValueError as error:
            return error

    def around(self, share: float) -> float:
        """A share of the cut, in steps; of the default cut where nothing is cut."""
        return share * (self.cut or default_cut(self.whole))

    def refit(self, plan: Plan, cut: float) -> Measured | None:
        """The measures of a fit by another plan or at another cut; None where there are too few points."""
        key = (cut, plan.smoothing)
        if key not in self._refits:
            kept = prepared(self.whole, cut, plan)
            try:
                solution = estimate(kept, plan).solution
            except ValueError:
                self._refits[key] = None
            else:
                self._refits[key] = measured(plan.form, solution.theta, float(kept.steps[-1]))
        return self._refits[key]

    def sensitivity(self, plan: Plan) -> list[SensitivityRow]:
        """The measures of fits by `plan` at other early cuts, and with the other smoothings."""
        return [
            SensitivityRow(
                varied=varied, share=share, of=of, cut=cut, smoothing=p.smoothing,
                **(m._asdict() if (m := self.refit(p, cut)) else dict.fromkeys(Measured._fields)),
            )
            for varied, share, of, cut, p in self._variations(plan)
        ]  # fmt: skip

    def _variations(self, plan: Plan) -> Iterator[tuple[str, float, str, float, Plan]]:
        """(what is varied, share, of what, cut, plan) of each row."""
        for share in CUT_SHARES:
            yield "cut", share, "early cut", self.around(share), plan
        for share in WARMUP_SHARES if self.whole.warmup else ():
            yield "cut", share, "warm-up", (self.whole.warmup or 0) * share, plan
        for smoothing in SMOOTHINGS:
            if smoothing != plan.smoothing:
                other = replace(plan, smoothing=smoothing, paper=plan.paper and smoothing == "paper")
                yield "smoothing", 1.0, "early cut", self.cut, other
