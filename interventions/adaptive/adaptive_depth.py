"""Adaptive depth: layers are added once those in use are at odds with themselves.

    L(t) = max(L(t − 1), ⌊L · factor⌋, 1);   factor from `lowest` to 1;   e = D − target
    (interventions/adaptive/by_interference.py)

A layer comes in on top of the others, with output projections of zero: the function is exactly preserved, and its
moments in the optimizer begin then. Exact. Cost: below 1, since a layer that is not in use is not computed, and two
forward passes over the control set a reading. Oracle: simulated plants (tests/unit/test_growth.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from interventions.adaptive.by_interference import ByInterference
from zslx import RunView, State, setting


@dataclass(frozen=True)
class AdaptiveDepth(ByInterference):
    """Begins with the first layers alone, and adds others while D of an update is above its target.

    Acts on the model: more capacity when, and only when, the changes of token losses cancel. The factor falls again
    while D is below, but a layer in use stays. The time of a run is that of the layers that it used; in trends over
    sizes it counts as the whole model. With one layer it does nothing. Its placebo adds layers at the pace of another
    run, its actions in a random order.
    """

    name = "adaptive_depth"
    source = "zslx; layer addition that preserves the function: Gesmundo and Maile 2023, arXiv 2308.06103"
    cost = "0.72 with half of the layers at 0.4M, 1.07 with all"
    neutral = {"step": 0.0, "lowest": 1.0}

    lowest: float = setting(0.5, "layers at the start as a share of all", low=0.001, high=1.0)
    highest: ClassVar[float] = 1.0  # type: ignore[misc]  # there are no more layers: no setting
    direction = 1

    def first(self, run: RunView) -> list[float]:
        return [self.lowest]

    def depth(self, run: RunView, state: State) -> int:
        wanted = run.config.model.n_layers * self.factors(run, state)[0]
        return max(1, run.depth, math.floor(wanted * (1 + 1e-9)))  # exp(log ½) may be less than ½
