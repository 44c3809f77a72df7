"""Norms: of a gradient or an update that lies in several tensors, and of a weighted sum of group gradients.

Exact to float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor


def norm(parts: Iterable[Tensor]) -> float:
    """√Σ x² over all entries, accumulated in float64."""
    return math.sqrt(sum(float(part.detach().double().square().sum()) for part in parts))


def squared_norm(gramians: Tensor, weights: Tensor) -> Tensor:
    """‖Σ_k w_k g_k‖² (...) of weights (..., K), from the Gramians (..., K, K) of the g_k.

    Not by a matrix product, whose rounding may depend on how many there are: a run's numbers are its own.
    """
    return (weights[..., :, None] * gramians * weights[..., None, :]).sum(-1).sum(-1)
