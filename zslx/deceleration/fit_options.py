"""The options of a fit. Every caller of `fit` fills in one `FitOptions`, which checks them when it is made."""

from __future__ import annotations

from dataclasses import dataclass

from zslx.deceleration.binning import SMOOTHINGS
from zslx.deceleration.broken_power_law import SHARPEST, SMOOTHEST, Form
from zslx.deceleration.intervals import REPLICATES
from zslx.deceleration.single_fit import Plan

WIDEST = 0.5
FEWEST_REPLICATES = 50  # fewer say nothing about a spread


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How a loss curve is fitted. Raises ValueError where a value is not allowed.

    breaks        the number of breaks: "auto" (the data choose between 0, 1 and 2), 0, 1 or 2
    smoothing     the moving average before the fit: centred, paper or none; None is centred, or paper under the
                  paper's protocol, which allows paper and none
    transient     the early cut: only steps > transient are fitted; None is the end of the early phase, where the curve
                  shows one (early_phase.py), and `default_cut` elsewhere
    protocol      None, or "paper" for the published protocol, which gives numbers whatever the status
    widest        the largest width f of the break in log t. The slope changes over a factor of about e^{4f} in steps:
                  7 at 0.5. A curve that ends sooner after its break cannot tell a wider one from one whose second slope
                  is lower, and t_d and r_d would depend on the early cut. Of the paper's models f is 0.20 to 0.45
    irreducible   also fit an irreducible loss a
    robust        use Huber's loss, under which outliers count little
    bootstrap     the number of replicates for the intervals, at least 50; 0 takes the delta method, whose intervals are
                  too short where a break is smooth
    seed          the seed of the replicates
    """

    breaks: int | str = "auto"
    smoothing: str | None = None
    transient: float | None = None
    protocol: str | None = None
    widest: float = WIDEST
    irreducible: bool = False
    robust: bool = False
    bootstrap: int = REPLICATES
    seed: int = 0

    def __post_init__(self) -> None:
        if self.breaks not in ("auto", 0, 1, 2):
            raise ValueError(f"breaks is {self.breaks!r}; allowed: 'auto', 0, 1, 2")
        if self.protocol not in (None, "paper"):
            raise ValueError(f"protocol is {self.protocol!r}; allowed: None, 'paper'")
        allowed = SMOOTHINGS if self.protocol is None else ("paper", "none")
        if self.smoothing is not None and self.smoothing not in allowed:
            raise ValueError(f"smoothing is {self.smoothing!r}; allowed: {', '.join(allowed)}")
        if self.protocol == "paper" and (self.irreducible or self.robust or self.breaks not in ("auto", 1)):
            raise ValueError("protocol paper has one break, no irreducible loss and no robust option")
        if self.transient is not None and not self.transient >= 0:
            raise ValueError(f"transient is {self.transient}; a number of steps, not negative, is needed")
        if not SHARPEST < self.widest <= SMOOTHEST:
            raise ValueError(f"widest is {self.widest}; allowed: above {SHARPEST}, up to {SMOOTHEST}")
        if self.bootstrap and self.bootstrap < FEWEST_REPLICATES:
            allowed = ("0 (the delta method)", f"{FEWEST_REPLICATES} or more")
            raise ValueError(f"bootstrap is {self.bootstrap}; allowed: {', '.join(allowed)}")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; a whole number, not negative, is needed")

    @property
    def plan(self) -> Plan:
        """The plan of the fit. Without `breaks=2` its form has one break, since the measures are those of one."""
        paper = self.protocol == "paper"
        breaks = 2 if self.breaks == 2 else 1
        widest = SMOOTHEST if paper else self.widest
        decelerating = breaks == 1 and not paper
        form = Form(breaks=breaks, irreducible=self.irreducible, decelerating=decelerating, widest=widest)
        smoothing = self.smoothing or ("paper" if paper else "centred")
        return Plan(form=form, smoothing=smoothing, paper=paper, robust=self.robust)
