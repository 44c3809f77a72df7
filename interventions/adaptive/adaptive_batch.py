"""Adaptive batch: more windows in a step while the changes of token losses cancel more than they should.

    B(t) = max(1, ⌊B · factor + ½⌋),   e = D − target   (interventions/adaptive/by_interference.py)

Exact. Cost: that of the larger batches, and two forward passes over the control set a reading. Oracle: simulated plants
(tests/unit/test_adaptive.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from interventions.adaptive.by_interference import ByInterference
from zslx import RunView, State, setting


@dataclass(frozen=True)
class AdaptiveBatch(ByInterference):
    """Enlarges the batch while D of an update is above its target, and makes it smaller while D is below.

    Acts on the number of windows in a step: the noise of a batch is a part of what cancels. A run has other tokens than
    the baseline, up to `highest` times as many, and is to be judged at equal compute. Its placebo replays another run's
    actions in a random order, and has as many tokens only on average over orders.
    """

    name = "adaptive_batch"
    source = "zslx; larger batches against the gradient's noise: McCandlish et al. 2018, arXiv 1812.06162"
    cost = "0.5 to 2 times, by the batch; 1.07 at factor 1"

    lowest: float = setting(0.5, "least factor on the batch", low=0.001, high=1.0)
    highest: float = setting(2.0, "largest factor on the batch", low=1.0, high=1000.0)
    direction = 1

    def batch_size(self, run: RunView, state: State) -> int:
        return max(1, math.floor(run.batch_size * self.factors(run, state)[0] + 0.5))
