"""Aligned-MTL: make the singular values of the group gradients equal, w = √s · V Λ^(−1/2) Vᵀ · 1/K.

G = V Λ Vᵀ over the eigenvalues that are not zero (of the cosines: above K·2⁻⁵² of the largest); s their least,
median or mean. Exact. Cost: one eigendecomposition. An eigendecomposition of G is good to 2⁻⁵² of its largest
eigenvalue, so where the norms of the group gradients differ a lot √Λ and V are the singular values and vectors of
D·C^½ (G = D C D, C the cosines) by Jacobi's method, each good to its own digits whatever D is (Demmel & Veselić 1992).
Oracles: TorchJD's AlignedMTLWeighting, and 60-digit arithmetic (tests/oracles/test_weightings.py).
"""

from __future__ import annotations

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

    def solve(self, gramian: Tensor, losses: Tensor, state: State) -> Tensor:
        weights = self.aligned(gramian)
        return weights if self.preference == "mean" else weights * len(weights)

    def aligned(self, gramian: Tensor) -> Tensor:
        """Weights (K,) for the preference 1/K."""
        size = len(gramian)
        values, vectors = spectrum(gramian)
        if not len(values):
            return torch.full((size,), 1 / size, dtype=gramian.dtype)
        target = {"min": values[0], "median": values.median(), "rmse": values.mean()}[self.variant]
        weights = vectors @ ((target / values).sqrt() * vectors.mean(0))
        vanished = weights.abs().max() <= CANCELLED / size
        return torch.full_like(weights, 1 / size) if vanished else weights


def spectrum(gramian: Tensor) -> tuple[Tensor, Tensor]:
    """The r eigenvalues (r,) of G that are not zero, rising, and their eigenvectors (K, r)."""
    norms = gramian.diagonal().clamp_min(0).sqrt()
    if norms.max() <= SAME_LENGTH * norms.min():
        return nonzero(*torch.linalg.eigh(gramian))
    unit = torch.where(norms > 0, 1 / norms, 0.0)
    values, vectors = nonzero(*torch.linalg.eigh(unit[:, None] * gramian * unit))
    factor = norms[:, None] * vectors * values.sqrt()
    if not len(values):
        return values, vectors
    singular, left, _, scale, _, _ = lapack.dgejsv(factor.numpy(), joba=2, jobu=0, jobv=3)
    squares = torch.from_numpy(singular * (scale[0] / scale[1])).square()
    return squares.flip(0), torch.from_numpy(left).flip(1)


def nonzero(values: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    return values[kept], vectors[:, kept]
