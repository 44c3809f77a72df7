"""GradPower: each entry of the gradient raised to a power, its sign kept, before the optimizer sees it.

    g_j ← sign(g_j) |g_j|^p;   then AdamW

Exact. Cost: one pass over the gradient. Oracle: AdamW on powered gradients (tests/unit/test_optimizers.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from zslx import Intervention, RunView, State, setting


class PoweredAdamW(torch.optim.AdamW):
    """AdamW on powered gradients. The power stands in the parameter groups, so that checkpoints keep it."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad.copy_(p.grad.sign() * p.grad.abs() ** group["power"])
        super().step()


@dataclass(frozen=True)
class GradPower(Intervention):
    """Gives AdamW the gradient's entries to the power p: above 1, large entries count for more in its averages.

    Acts on the update, after clipping. Entries below 1 shrink, and ε with them matters more. There is no placebo: its
    control is the baseline at other learning rates.
    """

    name = "gradpower"
    family = "optimization"
    source = "Wang et al. 2025 (GradPower), arXiv 2505.24275"
    cost = "1.02"
    neutral = {"power": 1.0}

    power: float = setting(1.2, "p, the exponent", low=0.1, high=4.0)

    def optimizer(self, run: RunView, groups: list[dict], state: State) -> torch.optim.Optimizer:
        optim = run.config.optim
        made = PoweredAdamW if self.power != 1 else torch.optim.AdamW
        powered = [group | {"power": self.power} for group in groups]
        return made(powered, lr=optim.lr, betas=(optim.beta1, optim.beta2), eps=optim.eps, fused=True)
