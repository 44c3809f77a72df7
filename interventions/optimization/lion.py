"""Lion: the sign of an interpolated momentum.

    θ ← θ − η (sign(β₁ m + (1 − β₁) g) + λ θ);   m ← β₂ m + (1 − β₂) g

Exact. Cost: one moment instead of Adam's two. Oracle: these lines, in float64 (tests/unit/test_optimizers.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interventions.optimization.per_parameter import PerParameter, apply
from zslx import Intervention, RunView, State, setting


class LionOptimizer(PerParameter):
    """Chen et al. 2023, arXiv 2302.06675, Algorithm 2."""

    def move(self, p: Tensor, gradient: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        momentum = state.setdefault("momentum", torch.zeros_like(p))
        apply(p, torch.lerp(gradient, momentum, beta1).sign_(), group)
        momentum.lerp_(gradient, 1 - beta2)


@dataclass(frozen=True)
class Lion(Intervention):
    """Moves every weight by the same amount, in the direction of its momentum.

    Acts on the update. Its steps are larger than AdamW's at the same rate, hence `rate`, which needs tuning, with as
    many trials as the baseline's gets; there is no placebo, so that is the control. Weight decay is divided by `rate`,
    so that its product with the learning rate is the baseline's.
    """

    name = "lion"
    family = "optimization"
    source = "Chen et al. 2023, arXiv 2302.06675"
    cost = "1.00"

    rate: float = setting(0.1, "learning rate over the configured one", low=1e-4, high=10.0, log=True)
    beta1: float = setting(0.9, "share of the momentum in the direction", low=0.0, high=0.9999)
    beta2: float = setting(0.99, "share of the momentum that is kept", low=0.0, high=0.9999)

    def optimizer(self, run: RunView, groups: list[dict], state: State) -> torch.optim.Optimizer:
        scaled = [group | {"weight_decay": group["weight_decay"] / self.rate} for group in groups]
        return LionOptimizer(scaled, {"lr": run.config.optim.lr * self.rate, "betas": (self.beta1, self.beta2)})
