"""ConFIG: the direction with the same cosine to every group gradient, as long as their projections on it.

    v = C⁺1,   d = D⁻¹v / √(vᵀCv),   w = (1ᵀGd) d        D = √diag G, C = D⁻¹GD⁻¹

Exact, from the Gramian alone. Cost: one eigendecomposition. Oracle: TorchJD's ConFIG, which takes the
pseudoinverse of the full matrix of gradients (tests/oracles/test_weightings.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interventions.gradient_surgery.cosines import cosines_of, least
from zslx import GramianMethod, State

CANCELLED = 1e-6  # C⁺1 this small is rounding error (of float32 gradients, too): of a regular C it is at least 1/K


@dataclass(frozen=True)
class ConFIG(GramianMethod):
    """Steps where all group gradients agree equally, so that it opposes none of them.

    Acts always: the lengths of the group gradients no longer decide the direction. Weights: of the size of a
    sum. With dependent gradients there may be no such direction, and the least-squares one may oppose a group.
    Where there is none at all (gradients that cancel) the weights are 1, the plain step. A group whose gradient
    is zero gets the weight 0.
    """

    name = "config"
    source = "Liu et al. 2024, arXiv 2408.11104"
    cost = "Gramian; solver 0.5 ms at K=64, 8 ms at K=256"

    def packed_solve(self, gramians: Tensor, losses: Tensor, states: Sequence[State]) -> Tensor:
        cosines, norms, inverse = cosines_of(gramians)
        solution = least(cosines, torch.ones_like(losses))
        image = (cosines * solution[:, None]).sum(2)
        squared = (solution * image).sum(1, keepdim=True)
        nowhere = (squared <= 0) | (solution.abs().amax(1, keepdim=True) <= CANCELLED)
        # norms · C (norms · direction): the sum of the projections on the direction.
        length = (norms * image).sum(1, keepdim=True) / squared
        return torch.where(nowhere, 1.0, length * solution * inverse)
