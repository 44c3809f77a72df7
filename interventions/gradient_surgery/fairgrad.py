"""FairGrad: the α-fair step, G w = w^(−1/α).

w is the one minimum of ½ wᵀGw − Σ ψ(w) over w > 0 with ψ' = w^(−1/α), found by Newton's method; α = 1 is Nash-MTL
without its normalisation. Exact up to rounding where the Gramian is regular. Cost: some ten LU
factorisations. Oracle: TorchJD's FairGradWeighting and the equation itself (tests/oracles/test_weightings.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interventions.gradient_surgery.bargaining import bargain, frobenius
from zslx import GramianMethod, State, setting


@dataclass(frozen=True)
class FairGrad(GramianMethod):
    """Steps so that the groups' gains are α-fair: α = 1 proportional, large α towards the worst-off group.

    Acts always; opposes no group. Weights: positive; they scale as the gradients to the power −2α/(1+α), so
    `scale=paper` gives an unusual step size. Departure: Newton's method instead of a least-squares solver.
    """

    name = "fairgrad"
    source = "Ban & Ji 2024, arXiv 2402.15638"
    cost = "Gramian; solver 0.8 ms at K=64, 4 ms at K=256"

    alpha: float = setting(1.0, "fairness: 1 proportional, more towards the worst-off", low=0.1, high=20.0)

    def packed_solve(self, gramians: Tensor, losses: Tensor, states: Sequence[State]) -> Tensor:
        size = frobenius(gramians)
        power = 1 / self.alpha
        # With G = s·G', w = s^(−1/(1+p)) w' where w' solves the equation for G'.
        return torch.from_numpy(bargain((gramians / size[:, None]).numpy(), power)) * size ** (-1 / (1 + power))
