"""Cautious AdamW: no coordinate moves against its present gradient.

    u = m̂ / (√v̂ + ε);   mask_j = [u_j g_j > 0];   θ ← θ − η λ θ − η · u ∘ mask · n / (Σ mask + 1)

n coordinates of the tensor. Exact. Cost: one more pass over the update. Oracle: these lines, in float64
(tests/unit/test_optimizers.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from zslx import Intervention, RunView, State, setting


class CautiousAdamW(torch.optim.Optimizer):
    """Liang et al. 2024, arXiv 2411.16085, Algorithm 2; the scale as in their code."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            (beta1, beta2), lr = group["betas"], group["lr"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state |= {"step": 0, "mean": torch.zeros_like(p), "square": torch.zeros_like(p)}
                state["step"] += 1
                state["mean"].lerp_(p.grad, 1 - beta1)
                state["square"].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
                size = (state["square"] / (1 - beta2 ** state["step"])).sqrt_().add_(group["eps"])
                update = state["mean"] / (1 - beta1 ** state["step"]) / size
                if group["cautious"]:
                    mask = update * p.grad > 0
                    update *= mask * (mask.numel() / (mask.sum(dtype=p.dtype) + 1))
                p.mul_(1 - lr * group["weight_decay"]).add_(update, alpha=-lr)


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
