"""Nash-MTL: the step as a bargain between the groups, G α = 1/α on G/‖G‖_F.

α is the one minimum of ½ αᵀGα − Σ log α over α > 0, found by Newton's method. Exact up to rounding where the
Gramian is regular; RIDGE keeps a solution where it is not. Cost: some ten LU factorisations.
Oracle: the published values and the equation itself (tests/oracles/test_weightings.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interventions.gradient_surgery.bargaining import bargain, frobenius
from zslx import GramianMethod, State, setting


@dataclass(frozen=True)
class NashMTL(GramianMethod):
    """Steps so that every group gains in inverse proportion to its weight: the Nash bargaining solution.

    Acts always; opposes no group. Weights: positive, shortened so that the combined gradient has at most the
    norm `max_norm` (0: never), as in the authors' code. Departures: solved exactly at every step, where that
    code runs twenty steps of a convex-concave procedure from the last solution, so nothing is remembered here.
    """

    name = "nash_mtl"
    source = "Navon et al. 2022, arXiv 2202.01017"
    cost = "Gramian; solver 0.7 ms at K=64, 5 ms at K=256"

    max_norm: float = setting(1.0, "largest norm of the combined gradient; 0 for no bound", low=0.0, high=1e6)

    def packed_solve(self, gramians: Tensor, losses: Tensor, states: Sequence[State]) -> Tensor:
        size = frobenius(gramians)
        weights = torch.from_numpy(bargain((gramians / size[:, None]).numpy(), 1.0))
        norm = (losses.shape[1] * size).sqrt()  # αᵀGα = K by the equation, without the cancellation in the product
        return weights * (self.max_norm / norm).clamp(max=1.0) if self.max_norm > 0 else weights
