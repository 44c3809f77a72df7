"""DualProj: project the mean gradient onto the dual cone of the group gradients.

    w = argmin_{v ≥ 1/K} vᵀ(G/tr G + ε I)v

Exact for the given ε. Cost: one quadratic program. Oracle: TorchJD's DualProjWeighting and the optimality
conditions (tests/oracles/test_weightings.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from interventions.gradient_surgery.upgrad import project
from zslx import GramianMethod, State, setting


@dataclass(frozen=True)
class DualProj(GramianMethod):
    """The mean gradient, moved the least that makes it oppose no group gradient.

    Acts only when the plain step itself opposes some group, which is rarer than a conflict between two groups;
    else it is the plain step. Weights: 1/K without conflict. The projection of Gradient Episodic Memory, with
    the mean in the place of the current task. `reg_eps` as in upgrad.
    """

    name = "dualproj"
    source = "Lopez-Paz & Ranzato 2017, arXiv 1706.08840"
    cost = "Gramian; solver 0.2 ms at K=64, 1.3 ms at K=256"

    reg_eps: float = setting(1e-4, "ridge on the Gramian of unit trace", low=0.0, high=1.0)

    def solve(self, gramian: Tensor, losses: Tensor, state: State) -> Tensor:
        size = len(gramian)
        return torch.from_numpy(project(gramian.numpy(), np.full((1, size), 1 / size), self.reg_eps)[0])
