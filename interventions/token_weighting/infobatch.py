"""InfoBatch: leave out a random share of the easy sequences and weigh the rest of them up.

    a sequence whose loss is below the batch's mean is dropped with probability `prune`, else weighs 1/(1 − prune);
    the others weigh 1: the expected gradient is the plain one

Exact. Cost: nothing, but nothing is saved either. Oracle: published values and the expectation
(tests/unit/test_token_weighting.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zslx import Intervention, RunView, State, StepView, setting


@dataclass(frozen=True)
class InfoBatch(Intervention):
    """Drops sequences of below-average loss at random, without bias.

    Acts on whole sequences. Departure: the paper scores a sample by its loss at the last visit and skips it in the
    next epoch; text here is seen once, so the score is the sequence's loss in the forward pass just made and the
    mean is the batch's. That keeps the rule and its unbiasedness, and gives up the saving. As in the paper the
    last `1 − until` of the run is plain. Its scale is part of it: weights are not renormalised.
    """

    name = "infobatch"
    family = "token_weighting"
    source = "Qin et al. 2023, arXiv 2303.04947"
    cost = "1.00 (the paper's saving needs epochs)"
    placebo = "samples"
    keep_scale = True
    neutral = {"prune": 0.0}

    prune: float = setting(0.5, "probability of dropping an easy sequence", low=0.0, high=0.95)
    until: float = setting(0.875, "share of the run in which sequences are dropped", low=0.0, high=1.0)

    def token_weights(self, run: RunView, view: StepView, state: State) -> Tensor:
        losses = view.losses.mean(1)
        weights = torch.ones_like(losses)
        if self.prune > 0 and run.step <= self.until * run.steps:
            draw = torch.rand(len(losses), generator=state["generator"]).to(losses.device)
            easy = losses < losses.mean()
            weights[easy] = torch.where(draw[easy] < self.prune, 0.0, 1 / (1 - self.prune)).to(losses.dtype)
        return weights[:, None].expand_as(view.losses)
