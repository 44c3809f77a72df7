"""CAGrad: in a ball around the mean gradient, the direction whose worst group improves most.

    max_d min_k ⟨g_k, d⟩  subject to ‖d − g₀‖ ≤ c ‖g₀‖,   g₀ = Σ g_k / K
    d = Σ (1/K + y_k) g_k,   y = argmin_{y ≥ 0} ½ yᵀGy + (G1/K − μ1)ᵀy,   μ such that ‖Σ y_k g_k‖ = c ‖g₀‖

μ is the worst group's improvement. ‖Σ y_k g_k‖ is the distance of g₀ from {d: ⟨g_k, d⟩ ≥ μ}, so convex and
increasing in μ, with slope 1ᵀy over itself: Newton's method from the right converges, and bisection stands by
for rounding. Where the hull of the gradients holds zero no d improves every group and μ ≤ 0: d = 0 has μ = 0, and
the programs for μ < 0 are bounded. If then the ball holds some d with μ = 0, the dual's minimum is g_w = 0, which
says nothing about d: taken is the d nearest to g₀ (DualProj's, exact), which is optimal and short of the ball's edge.
The paper's formula divides by ‖g_w‖ there; TorchJD takes d = 0.

Exact up to rounding and the ridge of `complementarity`: for a float64 Gramian, rank K/2 included, radius to 1e-9 and
worst group within 1e-9 ‖g₀‖ max ‖g_k‖ of the dual's bound; rounded to float32, 1e-3 (looser as c nears 1, where d
nearly cancels) and 1e-5. Cost: some five quadratic programs. Oracle: duality, and TorchJD's CAGradWeighting, a cone
solver good to about 1e-5 (tests/oracles/test_weightings.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from interventions.gradient_surgery import complementarity
from zslx import GramianMethod, State, setting

ITERATIONS = 60
PRECISION = 1e-13
SINGULAR = 10.0  # squared length of a sum, in ridges times squared weights, below which it is rounding error
CANCELLED = 1e-10  # squared length of a sum, relative to its terms', below which it is rounding error


@dataclass(frozen=True)
class CAGrad(GramianMethod):
    """Turns the mean gradient, within a ball of radius c times its length, towards the worst-off group.

    Acts always, conflict or not (it also evens out unequal progress). Weights: 1/K plus what is added;
    `rescale` divides them by 1 + c², as one reference code does. Where the ball's best direction is zero (only at
    c = 1 and a Pareto-stationary point) the weights are 1/K, the plain step; TorchJD takes zeros there.
    """

    name = "cagrad"
    source = "Liu et al. 2021, arXiv 2110.14048"
    cost = "Gramian; solver 1 ms at K=64, 9 ms at K=256; 70 ms there at rank 128"
    neutral = {"c": 0.0}

    c: float = setting(0.5, "radius of the ball, in lengths of the mean gradient", low=0.0, high=1.0)
    rescale: bool = setting(False, "divide the weights by 1 + c²; differs with scale=paper")

    def solve(self, gramian: Tensor, losses: Tensor, state: State) -> Tensor:
        weights = torch.from_numpy(conflict_averse(gramian.numpy(), self.c))
        return weights / (1 + self.c**2) if self.rescale else weights


def conflict_averse(gramian: np.ndarray, c: float) -> np.ndarray:
    """Weights (K,) of CAGrad."""
    size = len(gramian)
    gram = gramian / max(np.trace(gramian), np.finfo(float).tiny)
    radius = c * np.sqrt(max(gram.mean(), 0.0))
    weights = np.full(size, 1 / size)
    if radius > 0:
        weights += added(gram, radius)
    terms = np.abs(weights) @ np.sqrt(gram.diagonal())
    vanished = c == 1 and weights @ gram @ weights <= CANCELLED * terms**2
    return np.full(size, 1 / size) if vanished else weights


def added(gram: np.ndarray, radius: float) -> np.ndarray:
    """y (K,) for a Gramian of unit trace.

    From μ = 0 leftwards, if the ball does not reach {d: ⟨g_k, d⟩ ≥ 0}, else from the bound that one group sets: on
    the right of the root every Newton step stays there, and no program is unbounded unless the hull holds zero.
    """
    scale = complementarity.lengths(gram)
    unit = gram / np.outer(scale, scale)
    matrix = complementarity.regular(unit, complementarity.RIDGE)
    noise = SINGULAR * (matrix - unit).diagonal().max()
    to_mean = gram.mean(1)  # ⟨g_k, g₀⟩

    def program(worst: float) -> tuple[np.ndarray, float]:
        """y_k ‖g_k‖ (K,) for a given μ, and ‖Σ y_k g_k‖."""
        y = complementarity.pivot(matrix, (to_mean - worst) / scale)
        return y, np.sqrt(max(y @ unit @ y, 0.0))

    low, worst = to_mean.min(), 0.0  # nothing is added at `low`; 0 can always be had, by d = 0
    y, length = program(worst)
    nearest = y
    if length < radius:
        low = 0.0
        worst = (to_mean + radius * np.sqrt(gram.diagonal())).min()  # one group alone gets no further
        y, length = program(worst)
    high = worst
    for _ in range(ITERATIONS):
        if worst > 0 and y @ unit @ y < noise * (y @ y):
            return nearest / scale  # the hull holds zero: nothing improves every group
        if abs(length - radius) <= PRECISION * radius or high - low <= PRECISION * abs(low):
            break
        low, high = (worst, high) if length < radius else (low, worst)
        slope = (y / scale).sum()
        newton = worst - (length - radius) * length / slope if slope > 0 else low
        worst = newton if low < newton < high else (low + high) / 2
        y, length = program(worst)
    return y / scale
