"""Random weights of the same spread as a method's: noise in the direction of the step, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zslx.intervention import State, fresh_state, setting
from zslx.surgery import Grouped, floating


@dataclass(frozen=True)
class Random(Grouped):
    """Weights each group's gradient by 1 + spread·z, z standard normal, cut at zero and scaled to mean 1.

    Random loss weighting, with the spread a setting: give it the `weight_spread` that a method's records show,
    and it is the control for having unequal weights at all. spread 0 is the plain step.
    """

    name = "random"
    family = "controls"
    source = "Lin et al. 2021 (RLW), arXiv 2111.10603, with normal weights in place of a softmax"
    cost = "as pcgrad without its solver"
    neutral = {"spread": 0.0}
    needs = frozenset({"gramian"})

    spread: float = setting(0.5, "standard deviation of the weights over their mean", low=0.0, high=10.0)

    def group_weights(self, gramian: Tensor, group_losses: Tensor, state: State | None) -> Tensor:
        gramian = floating(gramian)
        state = fresh_state(self, len(gramian), state)
        noise = torch.randn(len(gramian), generator=state["generator"], dtype=torch.float64)
        weights = (1 + self.spread * noise).clamp(min=0)
        weights = torch.ones_like(weights) if not weights.sum() > 0 else weights / weights.mean()
        return weights.to(gramian.device, gramian.dtype)
