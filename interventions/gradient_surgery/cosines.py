"""The cosines C = D⁻¹GD⁻¹ of group gradients, D = √diag G, and the solution of C x = b of least norm.

Exact; eigenvalues below K·2⁻⁵² of the largest count as zero. Cost: one eigendecomposition a Gramian. Oracles: those of
imtl_g and config, which are built on it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def cosines_of(gramians: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """C (R, K, K) of Gramians (R, K, K), zero for a gradient of length zero; the lengths (R, K), and their inverses or
    zero."""
    norms = gramians.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
    inverse = torch.where(norms > 0, 1 / norms, 0.0)
    return inverse[:, :, None] * gramians * inverse[:, None], norms, inverse


def least(cosines: Tensor, right: Tensor) -> Tensor:
    """C⁺b (R, K) for b (R, K)."""
    values, vectors = torch.linalg.eigh(cosines)
    sizes = values.abs()
    kept = sizes > sizes.amax(1, keepdim=True) * values.shape[1] * torch.finfo(values.dtype).eps
    shares = torch.where(kept, (vectors * right[:, :, None]).sum(1) / values, 0.0)
    return (vectors * shares[:, None]).sum(2)
