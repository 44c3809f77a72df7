"""Random weights of the same spread as a method's: noise in the direction of the step, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zslx import GradientMethod, RunView, State, floating, setting

LARGEST = 1e6  # of `a`: beyond it, all weight is on one group


@dataclass(frozen=True)
class Random(GradientMethod):
    """Weights each group's gradient by exp(a·z), z standard normal, scaled to mean 1, with `a` such that the weights
    of every step have the spread that is asked for.

    Random loss weighting, with the spread a setting: give it the `weight_spread` that a method's records show,
    and it is the control for having unequal weights at all. spread 0 is the plain step. K positive weights have a
    spread of at most √(K − 1), where all weight is on one group: asked for more, it gives that.
    """

    name = "random"
    family = "controls"
    source = "Lin et al. 2021 (RLW), arXiv 2111.10603, with log-normal weights of a given spread in place of a softmax"
    cost = "as pcgrad without its solver"
    neutral = {"spread": 0.0}

    spread: float = setting(0.5, "standard deviation of the weights over their mean", low=0.0, high=10.0)

    def group_weights(self, run: RunView, gramian: Tensor, group_losses: Tensor, state: State) -> Tensor:
        gramian = floating(gramian)
        noise = torch.randn(len(gramian), generator=state["generator"], dtype=torch.float64)
        return torch.from_numpy(with_spread(noise.numpy(), self.spread)).to(gramian.device, gramian.dtype)


def with_spread(noise: np.ndarray, spread: float) -> np.ndarray:
    """exp(a·noise) (K,) over its mean, whose standard deviation is `spread`, or as near to that as K values come."""
    noise = noise - noise.max()  # no overflow, and the largest weight is 1 before it is scaled

    def weights(a: float) -> np.ndarray:
        w = np.exp(a * noise)
        return w / w.mean()

    low, high = 0.0, 1.0
    while weights(high).std() < spread and high < LARGEST:
        high *= 2
    for _ in range(60 if spread > 0 else 0):
        middle = (low + high) / 2
        low, high = (middle, high) if weights(middle).std() < spread else (low, middle)
    return weights(low)
