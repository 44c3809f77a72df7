"""The scale of a combined gradient, and what is recorded of the Gramian that it came from."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SCALE_LIMITS = (0.1, 10.0)


def clamp(factor: float) -> float:
    low, high = SCALE_LIMITS
    return min(high, max(low, factor))


def matched_scale(gramian: Tensor, weights: Tensor) -> float:
    """√(1ᵀG1 / wᵀGw), clamped: the combined gradient gets the norm of the plain one."""
    g, w = gramian.double(), weights.double()
    plain, combined = float(g.sum()), float(w @ g @ w)
    return clamp(math.sqrt(max(plain, 0.0) / combined)) if combined > 0 else 1.0


def gramian_record(gramian: Tensor, weights: Tensor) -> dict[str, float | bool]:
    """Conflict among the groups, how far the weights are from equal, and the cosine of the result with the plain
    gradient."""
    g, w = gramian.double(), weights.double()
    norms = g.diagonal().clamp(min=0).sqrt()
    k = len(g)
    pairs = ~torch.eye(k, dtype=torch.bool, device=g.device)
    outer = (norms[:, None] * norms)[pairs]
    cosines = g[pairs][outer > 0] / outer[outer > 0]
    total = float(w.mean().abs())
    plain, combined, inner = float(g.sum()), float(w @ g @ w), float(w @ g.sum(1))
    norm = math.sqrt(max(plain, 0.0) * max(combined, 0.0))
    return {
        "negative_cosines": float((cosines < 0).double().mean()) if len(cosines) else 0.0,
        "mean_cosine": float(cosines.mean()) if len(cosines) else 0.0,
        "cosine_to_plain": inner / norm if norm else 0.0,
        "weight_spread": float(w.std(correction=0)) / total if total else 0.0,
    }
