"""AdaCons: weight each group's direction by how much it agrees with the mean gradient.

    α_i = ⟨g_i, ḡ⟩ / ‖g_i‖;  moving average of the sorted α, dealt out again by rank;  α ← α/Σα;  w_i = α_i/‖g_i‖

Exact. Cost: nothing beside the Gramian. Oracle: the published values and the formula on full gradients
(tests/oracles/test_weightings.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zslx import GramianMethod, State, setting

CANCELLED = 1e-12  # a sum this small relative to its terms is rounding error


@dataclass(frozen=True)
class AdaCons(GramianMethod):
    """Averages the directions of the group gradients, those that agree with the mean weighing more.

    Acts always. Weights may be negative, and where most groups oppose a long mean gradient the normalisation
    by Σα can turn the step around; both are the published method. Where Σα is zero the weights are 1/K, the
    plain step. The memory (α by rank, not by group) starts afresh when the number of groups changes.
    `momentum` = 0.99 is the authors' example.
    """

    name = "adacons"
    source = "Choukroun et al. 2024, arXiv 2411.03742"
    cost = "Gramian; solver 0.6 ms at K=256"

    signed = True

    momentum: float = setting(0.99, "share of the old sorted coefficients kept", low=0.0, high=0.99999)

    def init_groups(self, num_groups: int, generator: torch.Generator) -> State:
        return {"generator": generator, "coefficients": torch.zeros(0, dtype=torch.float64)}

    def packed_solve(self, gramians: Tensor, losses: Tensor, states: Sequence[State]) -> Tensor:
        norms = gramians.diagonal(dim1=1, dim2=2).sqrt()
        inverse = torch.where(norms > 0, 1 / norms, 0.0)
        ordered, rank = (gramians.mean(2) * inverse).sort(stable=True)
        for own, state in zip(ordered, states, strict=True):
            remembered = state["coefficients"]
            if len(remembered) == len(own):
                own.copy_(self.momentum * remembered + (1 - self.momentum) * own)
            state["coefficients"] = own.clone()
        alpha = torch.empty_like(ordered).scatter_(1, rank, ordered)
        total = alpha.sum(1, keepdim=True)
        vanished = total.abs() <= CANCELLED * alpha.abs().sum(1, keepdim=True)
        return torch.where(vanished, 1 / losses.shape[1], alpha / total * inverse)
