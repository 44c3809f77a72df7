"""Depth warm-up: the first layers alone at the start, all of them after `duration` of the run.

    L(t) = L · (start + (1 − start) · min(1, (t − 1) / (duration · steps))),   rounded down, at least 1

A layer comes in on top of the others, with output projections of zero: the function is exactly preserved, and its
moments in the optimizer begin then. Departure from Gong et al., who copy the trained layers: a copy changes the loss.
Cost: below 1, since a layer that is not in use is not computed. Oracle: closed form (tests/unit/test_growth.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from zslx import Intervention, RunView, State, setting


@dataclass(frozen=True)
class DepthWarmup(Intervention):
    """Trains the first layers alone, and adds the others one by one.

    Acts on the model: layers that are not in use are neither computed nor updated. The time of a run is that of the
    layers that it used; in trends over sizes it counts as the whole model. With one layer it does nothing. It has no
    placebo: when layers come in is the method, so its control is the baseline with an equally tuned learning rate.
    """

    name = "depth_warmup"
    family = "curriculum"
    source = "Gesmundo and Maile 2023, arXiv 2308.06103 (layer addition); Gong et al. 2019 (progressive stacking), ICML"
    cost = "0.77 with half of the layers at 0.4M, 1.00 with all"
    neutral = {"duration": 0.0}

    start: float = setting(0.5, "layers at the start as a share of all", low=0.001, high=1.0)
    duration: float = setting(0.3, "share of the run after which all layers are in use", low=0.0, high=1.0)

    def depth(self, run: RunView, state: State) -> int:
        done = max(0, run.step - 1) / run.steps
        share = self.start + (1 - self.start) * min(1.0, done / self.duration) if self.duration else 1.0
        return max(1, math.floor(run.config.model.n_layers * share * (1 + 1e-9)))
