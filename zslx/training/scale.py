"""The scale of a combined gradient, and what is recorded of the Gramian that it came from; for R runs at once.

Each run's numbers are bit for bit those that it has alone: sums go over one axis at a time, row by row. (A sum over two
is divided among threads in one way for a single run, and in another for several; so is torch's `std`.)
"""

from __future__ import annotations

import torch
from torch import Tensor

from zslx.gradients.norm import squared_norm

SCALE_LIMITS = (0.1, 10.0)


def clamp(factor: float) -> float:
    low, high = SCALE_LIMITS
    return min(high, max(low, factor))


def matched_scale(gramians: Tensor, weights: Tensor) -> Tensor:
    """√(1ᵀG1 / wᵀGw) (R,), clamped: the combined gradient gets the norm of the plain one."""
    g, w = gramians.double(), weights.double()
    plain, combined = g.sum(2).sum(1).clamp(min=0), squared_norm(g, w)
    return torch.where(combined > 0, (plain / combined).sqrt().clamp(*SCALE_LIMITS), 1.0)


def gramian_records(gramians: Tensor, weights: Tensor) -> list[dict[str, float | bool]]:
    """For each run, conflict among the groups, how far the weights (R, K) are from equal, and the cosine of the result
    with the plain gradient."""
    g, w = gramians.double(), weights.double()
    norms = g.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    outer = norms[:, :, None] * norms[:, None]
    pairs = (outer > 0) & ~torch.eye(g.shape[-1], dtype=torch.bool, device=g.device)
    cosines = torch.where(pairs, g / torch.where(pairs, outer, 1.0), 0.0)
    count = pairs.sum((1, 2)).clamp(min=1)
    total = w.mean(1).abs()
    plain, combined, inner = g.sum(2).sum(1), squared_norm(g, w), (w * g.sum(2)).sum(1)
    spread = (w - w.mean(1, keepdim=True)).square().mean(1).sqrt()
    norm = plain.clamp(min=0).sqrt() * combined.clamp(min=0).sqrt()
    found = {
        "negative_cosines": (cosines < 0).sum((1, 2)) / count,
        "mean_cosine": cosines.sum(2).sum(1) / count,
        "cosine_to_plain": torch.where(norm > 0, inner / norm, 0.0),
        "weight_spread": torch.where(total > 0, spread / total, 0.0),
    }
    rows = torch.stack([column.double() for column in found.values()], dim=1).tolist()
    return [dict(zip(found, row, strict=True)) for row in rows]
