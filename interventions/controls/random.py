"""Random weights of the same spread as a method's: noise in the direction of the step, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
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
        return self.packed_group_weights(floating(gramian)[None], group_losses[None], [state])[0]

    def packed_group_weights(self, gramians: Tensor, group_losses: Tensor, states: Sequence[State]) -> Tensor:
        size = gramians.shape[-1]
        draws = [torch.randn(size, generator=state["generator"], dtype=torch.float64) for state in states]
        weights = with_spread(torch.stack(draws).numpy(), self.spread)
        return torch.from_numpy(weights).to(gramians.device, gramians.dtype)


def with_spread(noise: np.ndarray, spread: float) -> np.ndarray:
    """exp(a·noise) (..., K) over its mean, of standard deviation `spread`, or as near to that as K values come."""
    noise = noise - noise.max(-1, keepdims=True)  # no overflow, and the largest weight is 1 before it is scaled

    def weights(a: np.ndarray) -> np.ndarray:
        w = np.exp(a * noise)
        return w / w.mean(-1, keepdims=True)

    def short(a: np.ndarray) -> np.ndarray:
        return weights(a).std(-1, keepdims=True) < spread

    low, high = np.zeros_like(noise[..., :1]), np.ones_like(noise[..., :1])
    while (further := short(high) & (high < LARGEST)).any():
        high = np.where(further, 2 * high, high)
    for _ in range(60 if spread > 0 else 0):
        middle = (low + high) / 2
        more = short(middle)
        low, high = np.where(more, middle, low), np.where(more, high, middle)
    return weights(low)
