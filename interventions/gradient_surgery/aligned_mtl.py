"""Aligned-MTL: make the singular values of the group gradients equal, w = √s · V Λ^(−1/2) Vᵀ · 1/K.

G = V Λ Vᵀ over the eigenvalues that are not zero (above K·2⁻⁵² of the largest); s their least, median or mean.
Exact. Cost: one eigendecomposition. Oracle: TorchJD's AlignedMTLWeighting (tests/oracles/test_weightings.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zslx.intervention import State, setting
from zslx.surgery import Surgery

CANCELLED = 1e-12  # weights this small relative to 1/K are rounding error


@dataclass(frozen=True)
class AlignedMTL(Surgery):
    """Replaces the group gradients by the nearest mutually orthogonal ones of one length, and averages them.

    Acts always. Weights: 1/K where the gradients are orthogonal and of one length; some may be negative. The
    preference vector is 1/K, which is also returned where no weight is left (a mean gradient of zero); one
    reference code sums instead, K times as much. `variant` says which eigenvalue the lengths are set to: `min` is
    the paper's, `rmse` (the mean) the original code's.
    """

    name = "aligned_mtl"
    source = "Senushkin et al. 2023, arXiv 2305.19000"
    cost = "Gramian; solver 0.5 ms at K=64, 8 ms at K=256"

    variant: str = setting("min", "eigenvalue that all are set to", choices=("min", "median", "rmse"))

    def solve(self, gramian: Tensor, losses: Tensor, state: State) -> Tensor:
        values, vectors = torch.linalg.eigh(gramian)
        kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
        if not kept.any():
            return torch.full_like(losses, 1 / len(losses))
        values, vectors = values[kept], vectors[:, kept]
        target = {"min": values[0], "median": values.median(), "rmse": values.mean()}[self.variant]
        weights = vectors @ ((target / values).sqrt() * vectors.mean(0))
        vanished = weights.abs().max() <= CANCELLED / len(losses)
        return torch.full_like(losses, 1 / len(losses)) if vanished else weights
