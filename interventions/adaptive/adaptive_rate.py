"""Adaptive rate: the learning rate falls while the changes of token losses cancel more than they should.

    η(t) = η_schedule(t) · factor,   e = target − D   (interventions/adaptive/by_interference.py)

Exact. Cost: two forward passes over the control set a reading. Oracle: simulated plants (tests/unit/test_adaptive.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from interventions.adaptive.by_interference import ByInterference
from zslx import RunView, State


@dataclass(frozen=True)
class AdaptiveRate(ByInterference):
    """Lowers the learning rate while D of an update is above its target, and raises it again while D is below.

    Acts on the rate: its factor multiplies the configured schedule, and never exceeds it by default. A rate that only
    falls is a decay by another name: beside the placebo, which replays another run's actions in a random order, compare
    it with cosine. D is measured on the control set, a fixed sample of the training text.
    """

    name = "adaptive_rate"
    source = "zslx: the deceleration of the zero-sum learning paper, arXiv 2506.05447, fed back to the rate"
    cost = "1.07: two forward passes every 10 steps"

    def lr_factor(self, run: RunView, state: State) -> float:
        return self.factors(run, state)[0]
