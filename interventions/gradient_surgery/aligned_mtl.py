"""Aligned-MTL: make the singular values of the group gradients equal, w = √s · V Λ^(−1/2) Vᵀ · 1/K.

G = V Λ Vᵀ over the eigenvalues that are not zero (of the cosines: above K·2⁻⁵² of the largest); s their least,
median or mean. Exact. Cost: one eigendecomposition. An eigendecomposition of G is good to 2⁻⁵² of its largest
eigenvalue, so where the norms of the group gradients differ a lot √Λ and V are the singular values and vectors of
D·C^½ (G = D C D, C the cosines) by Jacobi's method, each good to its own digits whatever D is (Demmel & Veselić 1992).
Oracles: TorchJD's AlignedMTLWeighting, and 60-digit arithmetic (tests/oracles/test_weightings.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.linalg import lapack
from torch import Tensor

from zslx import GramianMethod, State, setting

CANCELLED = 1e-12  # weights this small relative to 1/K are rounding error
SAME_LENGTH = 1e3  # norms within this ratio cost an eigendecomposition of G at most 6 of its 16 digits


@dataclass(frozen=True)
class AlignedMTL(GramianMethod):
    """Replaces the group gradients by the nearest mutually orthogonal ones of one length, and averages them.

    Acts always. Weights: 1/K where the gradients are orthogonal and of one length; some may be negative. The
    preference vector is 1/K, which is also returned where no weight is left (a mean gradient of zero);
    `preference=sum` is 1, K times as much, as in one reference code. `variant` says which eigenvalue the lengths
    are set to: `min` is the paper's, `rmse` (the mean) the original code's.
    """

    name = "aligned_mtl"
    source = "Senushkin et al. 2023, arXiv 2305.19000"
    cost = "Gramian; solver 0.5 ms at K=64, 8 ms at K=256"

    variant: str = setting("min", "eigenvalue that all are set to", choices=("min", "median", "rmse"))
    preference: str = setting("mean", "of the groups; differs with scale=paper", choices=("mean", "sum"))

    def packed_solve(self, gramians: Tensor, losses: Tensor, states: Sequence[State]) -> Tensor:
        size = gramians.shape[-1]
        values, vectors = spectra(gramians)
        kept = values > 0
        rank = kept.sum(1, keepdim=True)
        # Those that are kept come last: the first of them, the lower one of their middle, and their mean.
        place = {"min": size - rank, "median": size - rank + (rank - 1) // 2}.get(self.variant)
        mean = values.sum(1, keepdim=True) / rank
        target = mean if place is None else values.gather(1, place.clamp(max=size - 1))
        shares = torch.where(kept, (target / values).sqrt(), 0.0) * vectors.mean(1)
        weights = (vectors * shares[:, None]).sum(2)
        vanished = (rank == 0) | (weights.abs().amax(1, keepdim=True) <= CANCELLED / size)
        weights = torch.where(vanished, 1 / size, weights)
        return weights if self.preference == "mean" else weights * size


def spectra(gramians: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (R, K) of Gramians (R, K, K), rising, those that count as zero set to it, and their eigenvectors."""
    norms = gramians.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
    of_cosines = norms.amax(1) > SAME_LENGTH * norms.amin(1)
    unit = torch.where(of_cosines[:, None] & (norms > 0), 1 / norms, 1.0)
    values, vectors = torch.linalg.eigh(unit[:, :, None] * gramians * unit[:, None])
    values[values <= values[:, -1:] * values.shape[1] * torch.finfo(values.dtype).eps] = 0.0
    for r in of_cosines.nonzero().flatten():
        kept = values[r] > 0
        if kept.any():
            factor = norms[r][:, None] * vectors[r][:, kept] * values[r][kept].sqrt()
            singular, left, _, scale, _, _ = lapack.dgejsv(factor.numpy(), joba=2, jobu=0, jobv=3)
            values[r, kept] = torch.from_numpy(singular * (scale[0] / scale[1])).square().flip(0)
            vectors[r, :, kept] = torch.from_numpy(left).flip(1)
    return values, vectors
