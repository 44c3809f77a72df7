"""The cosines C = D⁻¹GD⁻¹ of group gradients, D = √diag G, and the solution of C x = b of least norm.

Exact; eigenvalues below K·2⁻⁵² of the largest count as zero. Cost: one eigendecomposition a Gramian. Oracles: those of
imtl_g and config, which are built on it.
"""

from __future__ import annotations

import numpy as np
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
    eps = cosines.shape[-1] * np.finfo(float).eps
    pseudoinverse = torch.from_numpy(np.linalg.pinv(cosines.numpy(), rcond=eps, hermitian=True))
    return (pseudoinverse * right[:, None]).sum(2)
