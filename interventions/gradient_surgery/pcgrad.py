"""PCGrad: from each group gradient, project away its conflict with every other one.

    for i:  c_i = e_i;  for j ≠ i in order:  if c_i·G_j < 0:  c_ij −= c_i·G_j / G_jj
    w = Σ_i c_i

Exact. All rows i of all runs are walked together, each in an order of its own: K steps of O(K²) in place of K² of O(K).
Oracle: the double loop above, and TorchJD's PCGradWeighting draw for draw (tests/oracles/test_weightings.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zslx import GramianMethod, State, setting


@dataclass(frozen=True)
class PCGrad(GramianMethod):
    """Projects each group gradient onto the normal plane of every group gradient that it conflicts with.

    Acts when two groups' gradients have a negative inner product, else it is the plain step. With two groups
    the step conflicts with neither; with more it may. Weights: the sum over groups (paper, Algorithm 1), so
    all ones without conflict; `reduction=mean` is what the reference code of some packages takes, 1/K of it. The pair
    of a group with itself is skipped. `order=ascending` visits the others by number instead of at random.
    """

    name = "pcgrad"
    source = "Yu et al. 2020, arXiv 2001.06782"
    cost = "Gramian; solver 1 ms at K=64, 16 ms at K=256"

    order: str = setting("random", "order in which a group's conflicts are removed", choices=("random", "ascending"))
    reduction: str = setting("sum", "of the projected gradients; differs with scale=paper", choices=("sum", "mean"))

    def packed_solve(self, gramians: Tensor, losses: Tensor, states: Sequence[State]) -> Tensor:
        size = gramians.shape[-1]
        generators = [state["generator"] if self.order == "random" else None for state in states]
        orders = np.stack([visiting_order(size, generator) for generator in generators])
        weights = torch.from_numpy(project_conflicts(gramians.numpy(), orders))
        return weights if self.reduction == "sum" else weights / size


def visiting_order(size: int, generator: torch.Generator | None) -> np.ndarray:
    """(K, K): row i lists all groups in the order in which row i visits them (its own number included)."""
    if generator is None:
        return np.tile(np.arange(size), (size, 1))
    return torch.stack([torch.randperm(size, generator=generator) for _ in range(size)]).numpy()


def project_conflicts(gramians: np.ndarray, orders: np.ndarray) -> np.ndarray:
    """Weights (R, K) of PCGrad for Gramians and visiting orders (R, K, K)."""
    runs, size, _ = gramians.shape
    rows = gramians.reshape(-1, size)  # those of all runs, one after the other
    own, first = np.tile(np.arange(size), runs), np.repeat(np.arange(runs) * size, size)
    squares = gramians.diagonal(axis1=1, axis2=2).ravel()
    # A zero gradient has no direction to project on: dividing by infinity leaves the row as it is.
    squared_norms = np.where(squares > 0, squares, np.inf)
    coefficients = np.tile(np.eye(size), (runs, 1))
    for visited in orders.reshape(-1, size).T:
        inner = np.einsum("ij,ij->i", coefficients, rows[first + visited])
        hit = ((inner < 0) & (visited != own)).nonzero()[0]
        other = visited[hit]
        coefficients[hit, other] -= inner[hit] / squared_norms[first[hit] + other]
    return coefficients.reshape(gramians.shape).sum(1)
