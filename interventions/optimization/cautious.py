"""Cautious AdamW: no coordinate moves against its present gradient.

    u = m̂ / (√v̂ + ε);   mask_j = [u_j g_j > 0];   θ ← θ − η λ θ − η · u ∘ mask · n / (Σ mask + 1)

n coordinates of the tensor. Exact. Cost: one more pass over the update. Oracle: these lines, in float64
(tests/unit/test_optimizers.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interventions.optimization.per_parameter import PerParameter, adam_averages, apply
from zslx import Intervention, RunView, State, setting


class CautiousAdamW(PerParameter):
    """Liang et al. 2024, arXiv 2411.16085, Algorithm 2; the scale as in their code."""

    def move(self, p: Tensor, gradient: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        mean, size = adam_averages(p, gradient, group, state)
        update = mean / size.add_(group["eps"])
        if group["cautious"]:
            mask = update * gradient > 0
            update *= mask * (mask.numel() / (mask.sum(dtype=p.dtype) + 1))
        apply(p, update, group)


@dataclass(frozen=True)
class Cautious(Intervention):
    """Takes AdamW's update only where it agrees in sign with the gradient of the step, scaled up for what is left out.

    Acts on the update, coordinate by coordinate: momentum that the present batch opposes waits. There is no placebo:
    its control is the baseline at other learning rates. With `mask` off it is AdamW, to rounding.
    """

    name = "cautious"
    family = "optimization"
    source = "Liang et al. 2024 (Cautious Optimizers), arXiv 2411.16085"
    cost = "1.05"

    mask: bool = setting(True, "leave out coordinates whose update and gradient disagree")

    def optimizer(self, run: RunView, groups: list[dict], state: State) -> torch.optim.Optimizer:
        optim = run.config.optim
        shared = {"lr": optim.lr, "betas": (optim.beta1, optim.beta2), "eps": optim.eps, "cautious": self.mask}
        return CautiousAdamW(groups, shared)
