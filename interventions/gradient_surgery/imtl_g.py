"""IMTL-G: the combination on which every group gradient has the same projection, w ∝ G⁺ √diag G, Σ w = 1.

Exact, with the pseudoinverse for dependent gradients (eigenvalues below K·2⁻⁵² of the largest count as zero).
Cost: one eigendecomposition. Oracle: TorchJD's IMTLGWeighting (tests/oracles/test_weightings.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interventions.gradient_surgery.cosines import cosines_of, least
from zslx import GramianMethod, State

CANCELLED = 1e-12  # a sum this small relative to its terms is rounding error
NO_SOLUTION = 1e-6  # C⁺1 this small, too (of float32 gradients): of a regular C it is at least 1/K


@dataclass(frozen=True)
class IMTLG(GramianMethod):
    """Gives the step the same length along every group's gradient direction.

    Acts always. Weights: sum 1, some may be negative. Where they would sum to zero (opposite gradients, say) no
    such combination exists and they are 1/K, the plain step; TorchJD takes zeros there. This is the gradient
    part of IMTL; its loss part is another method.
    """

    name = "imtl_g"
    source = "Liu et al. 2021, Towards Impartial Multi-task Learning (ICLR); general form: arXiv 2406.16232"
    cost = "Gramian; solver 0.4 ms at K=64, 8 ms at K=256"

    def packed_solve(self, gramians: Tensor, losses: Tensor, states: Sequence[State]) -> Tensor:
        # Through the cosines C = D⁻¹GD⁻¹, w ∝ D⁻¹C⁻¹1: gradients of very different length cost no digits.
        cosines, norms, inverse = cosines_of(gramians)
        equal = least(cosines, (norms > 0).to(norms))
        largest = equal.abs().amax(1, keepdim=True)
        # What is rounding error here would be multiplied by up to the ratio of the norms.
        ratio = norms.amax(1, keepdim=True) * inverse
        solution = ratio * torch.where(equal.abs() > CANCELLED * largest, equal, 0.0)
        total = solution.sum(1, keepdim=True)
        nowhere = (largest <= NO_SOLUTION) | (total.abs() <= CANCELLED * solution.abs().sum(1, keepdim=True))
        return torch.where(nowhere, 1 / losses.shape[1], solution / total)
