"""CAGrad: in a ball around the mean gradient, the direction whose worst group improves most.

    max_d min_k ⟨g_k, d⟩  subject to ‖d − g₀‖ ≤ c ‖g₀‖,   g₀ = Σ g_k / K
    d = Σ (1/K + y_k) g_k,   y = argmin_{y ≥ 0} ½ yᵀGy + (G1/K − μ1)ᵀy,   μ such that ‖Σ y_k g_k‖ = c ‖g₀‖

μ is the worst group's improvement. ‖Σ y_k g_k‖ is the distance of g₀ from {d: ⟨g_k, d⟩ ≥ μ}, so convex and
increasing in μ, with slope 1ᵀy over itself: Newton's method from the right converges without a safeguard.
Exact up to rounding. Cost: some five quadratic programs. Oracle: TorchJD's CAGradWeighting, a cone solver good
to about 1e-5 (tests/oracles/test_weightings.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from interventions.gradient_surgery import complementarity
from zslx.intervention import State, setting
from zslx.surgery import Surgery

ITERATIONS = 60
PRECISION = 1e-13
CANCELLED = 1e-10  # squared length of a sum, relative to its terms', below which it is rounding error


@dataclass(frozen=True)
class CAGrad(Surgery):
    """Turns the mean gradient, within a ball of radius c times its length, towards the worst-off group.

    Acts always, conflict or not (it also evens out unequal progress). Weights: 1/K plus what is added; the
    step is not divided by 1 + c² as one reference code does. Where the ball's best direction is zero (only at
    c = 1 and a Pareto-stationary point) the weights are 1/K, the plain step; TorchJD takes zeros there.
    """

    name = "cagrad"
    source = "Liu et al. 2021, arXiv 2110.14048"
    cost = "Gramian; solver 1 ms at K=64, 9 ms at K=256"
    neutral = {"c": 0.0}

    c: float = setting(0.5, "radius of the ball, in lengths of the mean gradient", low=0.0, high=1.0)

    def solve(self, gramian: Tensor, losses: Tensor, state: State) -> Tensor:
        return torch.from_numpy(conflict_averse(gramian.numpy(), self.c))


def conflict_averse(gramian: np.ndarray, c: float) -> np.ndarray:
    """Weights (K,) of CAGrad."""
    size = len(gramian)
    gram = gramian / max(np.trace(gramian), np.finfo(float).tiny)
    to_mean = gram.mean(1)  # ⟨g_k, g₀⟩
    radius = c * np.sqrt(max(to_mean.mean(), 0.0))
    added = np.zeros(size)
    if radius > 0:
        worst = (to_mean + radius * np.sqrt(gram.diagonal())).min()  # from one group alone: right of the root
        for _ in range(ITERATIONS):
            added = complementarity.solve(gram, (to_mean - worst)[None])[0]
            length = np.sqrt(max(added @ gram @ added, 0.0))
            if length <= radius * (1 + PRECISION) or not added.sum() > 0:
                break
            worst -= (length - radius) * length / added.sum()
    weights = 1 / size + added
    terms = np.abs(weights) @ np.sqrt(gram.diagonal())
    vanished = c == 1 and weights @ gram @ weights <= CANCELLED * terms**2
    return np.full(size, 1 / size) if vanished else weights
