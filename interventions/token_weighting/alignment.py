"""Alignment: weigh groups of tokens by how their gradient agrees with the rest of the batch's.

    a_k = ⟨g_k, G − g_k⟩ / ‖g_k‖,   z_k = mid-rank of a_k in (−1, 1),   w_k ∝ exp(strength · z_k)

⟨g_k, G⟩ is a row sum of the Gramian, so this is a function of it. Ranks make the weights independent of the
gradients' scale and of outliers. Exact. Cost: the Gramian. Oracle: closed form on full gradients
(tests/unit/test_token_weighting.py). Per token: token_alignment.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zslx import GramianMethod, State, setting


@dataclass(frozen=True)
class Alignment(GramianMethod):
    """Weighs a sequence (or another group) by the agreement of its gradient with that of all the others.

    Acts on groups, in one pass through the gradient engine: strength > 0 follows the majority, < 0 listens to
    those that it works against, 0 is the baseline. The group's own gradient is left out of the comparison, or
    long gradients would agree with themselves. Weights: positive, mean 1, the largest at most
    exp(2 |strength|) times the least.
    """

    name = "alignment"
    family = "token_weighting"
    source = "zslx: gradient alignment as a weight, after the paper's interference (arXiv 2506.05447)"
    cost = "at most 1.35: Gramian"
    neutral = {"strength": 0.0}

    strength: float = setting(0.5, "how strongly agreement is rewarded; negative: punished", low=-3.0, high=3.0)

    def packed_solve(self, gramians: Tensor, losses: Tensor, states: Sequence[State]) -> Tensor:
        squared = gramians.diagonal(dim1=1, dim2=2)
        rest = gramians.sum(2) - squared
        agreement = torch.where(squared > 0, rest / squared.clamp(min=math.ulp(0.0)).sqrt(), 0.0)
        weights = (self.strength * mid_ranks(agreement)).exp()
        return weights / weights.mean(1, keepdim=True)


def mid_ranks(values: Tensor) -> Tensor:
    """Ranks of values (..., N), ties sharing their mean rank, spread evenly over (−1, 1)."""
    ordered = values.sort().values
    below = torch.searchsorted(ordered, values, right=False)
    up_to = torch.searchsorted(ordered, values, right=True)
    return (below + up_to).to(torch.float64) / values.shape[-1] - 1
