"""Gradient Vaccine: raise the cosine of each pair of group gradients to its moving average.

    φ = c_i·G_j / (‖c_i‖_G D_j);  if φ < φ̂_ij:
        c_ij += ‖c_i‖_G (φ̂ √(1−φ²) − φ √(1−φ̂²)) / (D_j √(1−φ̂²))
    φ̂_ij ← (1−β) φ̂_ij + β φ;   w = Σ_i c_i        D = √diag G

Exact; √(1−φ̂²) in the denominator is at least EPSILON, for two groups that have always been parallel.
All rows i of all runs are walked together, as in pcgrad. Oracle: TorchJD's GradVacWeighting draw for draw
(tests/oracles/test_weightings.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zslx import GramianMethod, State, setting

EPSILON = 1e-8


@dataclass(frozen=True)
class GradVac(GramianMethod):
    """Like pcgrad, but the pair's cosine is raised to its own moving average instead of to 0.

    Acts also without conflict, once the average cosine of a pair is positive. Weights: the sum over groups.
    Remembers one cosine a pair of group numbers, so it means most where group k is the same thing at every
    step (domain, token_class, loss_quantile, token_frequency) and least for sequences, where pair (i, j) is
    another pair of texts each time. A pair with an empty group is left as it is. The memory starts afresh when
    the number of groups changes. β = 0.5 is the common reference code's; the paper uses 0.01.
    """

    name = "gradvac"
    source = "Wang et al. 2020, arXiv 2010.05874"
    cost = "Gramian; solver 3 ms at K=64, 60 ms at K=256"
    keeps_empty = True

    beta: float = setting(0.5, "rate of the moving average of the cosines", low=0.0, high=1.0)
    order: str = setting("random", "order in which a group's partners are visited", choices=("random", "ascending"))

    def init_groups(self, num_groups: int, generator: torch.Generator) -> State:
        targets = torch.zeros(num_groups, num_groups, dtype=torch.float64)
        return {"generator": generator, "cosines": targets}

    def packed_solve(self, gramians: Tensor, losses: Tensor, states: Sequence[State]) -> Tensor:
        size = gramians.shape[-1]
        afresh = torch.zeros(size, size, dtype=torch.float64)
        known = [state["cosines"] if len(state["cosines"]) == size else afresh for state in states]
        generators = [state["generator"] if self.order == "random" else None for state in states]
        orders = np.stack([partners(size, generator) for generator in generators])
        targets = torch.stack(known)
        weights = torch.from_numpy(vaccinate(gramians.numpy(), targets.numpy(), orders, self.beta))
        for state, cosines in zip(states, targets, strict=True):
            state["cosines"] = cosines.clone()
        return weights


def partners(size: int, generator: torch.Generator | None) -> np.ndarray:
    """(K, K−1): row i lists the groups other than i in the order in which row i visits them."""
    if generator is None:
        positions = np.tile(np.arange(size - 1), (size, 1))
    else:
        draws = [torch.randperm(size - 1, generator=generator) for _ in range(size)]
        positions = torch.stack(draws).numpy()
    return positions + (positions >= np.arange(size)[:, None])


def vaccinate(gramians: np.ndarray, targets: np.ndarray, orders: np.ndarray, beta: float) -> np.ndarray:
    """Weights (R, K) for orders (R, K, K−1); the target cosines (R, K, K) are updated in place."""
    runs, size, _ = gramians.shape
    gram, targets = gramians.reshape(-1, size), targets.reshape(-1, size)  # rows of all runs, one after the other
    rows, first = np.arange(len(gram)), np.repeat(np.arange(runs) * size, size)
    norms = np.sqrt(gramians.diagonal(axis1=1, axis2=2)).ravel()
    coefficients = np.tile(np.eye(size), (runs, 1))
    products = gram.copy()  # c_i G
    for other in orders.reshape(len(gram), -1).T:
        row_norms = np.sqrt(np.maximum(np.einsum("ij,ij->i", products, coefficients), 0))
        scale = row_norms * norms[first + other]
        known = scale > 0
        cosine = np.divide(products[rows, other], scale, out=np.zeros(len(rows)), where=known)
        cosine = np.clip(cosine, -1.0, 1.0)
        target = targets[rows, other]
        raised = known & (cosine < target)
        hit, j, phi, goal = rows[raised], other[raised], cosine[raised], target[raised]
        of_other = first[hit] + j
        sine, goal_sine = np.sqrt(1 - phi**2), np.sqrt(1 - goal**2)
        step = row_norms[raised] * (goal * sine - phi * goal_sine) / (norms[of_other] * np.maximum(goal_sine, EPSILON))
        coefficients[hit, j] += step
        products[hit] += step[:, None] * gram[of_other]
        targets[rows[known], other[known]] = (1 - beta) * target[known] + beta * cosine[known]
    return coefficients.reshape(gramians.shape).sum(1)
