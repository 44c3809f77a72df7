"""Adaptive length: sequences grow once what short ones teach cancels.

    T(t) = T · factor, rounded down to a divisor of T;   factor from `lowest` to 1;   e = D − target
    (interventions/adaptive/by_interference.py)

Exact. Cost: below 1, since attention over short sequences is cheaper, and two forward passes over the control set, at
full length, a reading. Oracle: simulated plants (tests/unit/test_adaptive.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from interventions.adaptive.by_interference import ByInterference
from zslx import RunView, State, setting


@dataclass(frozen=True)
class AdaptiveLength(ByInterference):
    """Begins with short sequences, and lengthens them while D of an update is above its target.

    Acts on the batch as length_warmup does: the tokens of a step and their order stay the same, cut into shorter
    sequences. It is that curriculum with a pace that the run sets itself. Its placebo has the pace of another run, its
    actions in a random order. Held-out loss is always measured at full length.
    """

    name = "adaptive_length"
    source = "zslx; for the curriculum: Li et al. 2022 (sequence length warm-up), arXiv 2108.06084"
    cost = "at most 1.07: two forward passes every 10 steps"
    neutral = {"step": 0.0, "lowest": 1.0}

    lowest: float = setting(0.125, "length of the first sequences as a share of the full one", low=0.001, high=1.0)
    step: float = setting(0.1, "change of the factor's logarithm by one action", low=0.0, high=1.0)
    highest: ClassVar[float] = 1.0  # type: ignore[misc]  # there are no longer sequences: no setting
    direction = 1

    def first(self, run: RunView) -> list[float]:
        return [self.lowest]

    def sequence(self, run: RunView, state: State) -> int:
        wanted = run.seq_len * self.factors(run, state)[0]
        return max(1, math.floor(wanted * (1 + 1e-9)))  # exp(log ⅛) may be less than ⅛
