"""AND-mask: keep the coordinates on which the signs of the group gradients agree.

    mask_j = [|Σ_k sign g_kj| / K ≥ threshold],   gradient = mask · Σg / (share of coordinates kept)

Exact, from the engine's sums. Cost: the engine with sign sums, and one pass over the parameters.
Oracle: the same on full gradients (tests/oracles/test_elementwise.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zslx import CoordinateSums, GradientMethod, RunView, State, setting


@dataclass(frozen=True)
class AndMask(GradientMethod):
    """Zeroes every coordinate of the gradient whose sign the groups do not agree on.

    Acts elementwise. With K groups of random signs |Σ sign|/K is about 1/√K, so the threshold means little
    below that. `inverse_sparsity` divides each tensor by the share of coordinates kept, as the authors' code
    does. Departure: coordinates without any gradient (rows of tokens that are not in the batch) do not count in
    that share, else an embedding would be blown up.
    """

    name = "and_mask"
    source = "Parascandolo et al. 2020, arXiv 2009.00329"
    cost = "at most 1.35; sign sums take one more copy of the gradient"
    sums = ("sign_sum",)
    placebo = "elementwise"
    neutral = {"threshold": 0.0}

    threshold: float = setting(0.2, "least |mean sign| of a coordinate that is kept", low=0.0, high=1.0)
    inverse_sparsity: bool = setting(True, "divide each tensor by the share of its coordinates that are kept")

    def combine(self, run: RunView, sums: CoordinateSums, state: State) -> Tensor:
        assert sums.sign_sum is not None
        mask = sums.sign_sum.abs() >= self.threshold * sums.count * (1 - 1e-6)  # (1 − 1e-6): 0.2 · 15 is 3
        kept = torch.where(mask, sums.sum, 0.0)
        if not self.inverse_sparsity:
            return kept
        live = int((sums.sum != 0).sum())
        left = int((kept != 0).sum())
        return kept * (live / left) if left else kept
