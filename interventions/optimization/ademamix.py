"""AdEMAMix: Adam with a second, slow average of the gradients.

    m₁ ← β₁ m₁ + (1 − β₁) g;   m₂ ← β₃(t) m₂ + (1 − β₃(t)) g;   v ← β₂ v + (1 − β₂) g²
    θ ← θ − η ((m̂₁ + α(t) m₂) / (√v̂ + ε) + λ θ)
    α(t) = α · min(1, t/W);   β₃(t): half-lives grow linearly from that of β₁ to that of β₃ in W steps

W is `warmup` of the run. Exact. Cost: one more moment. Oracle: these lines, in float64 (tests/unit/test_optimizers.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interventions.optimization.per_parameter import PerParameter, apply
from zslx import Intervention, RunView, State, setting


def slow_beta(step: int, warmup: float, beta1: float, beta3: float) -> float:
    """β₃(t): 1/log β is interpolated, since −log 2 / log β is the half-life of an average (their Appendix)."""
    if step >= warmup or beta3 <= beta1 or not beta1:
        return beta3
    share = step / warmup
    low, high = math.log(beta1), math.log(beta3)
    return min(beta3, math.exp(low * high / ((1 - share) * high + share * low)))


class AdEMAMixOptimizer(PerParameter):
    """Pagliardini et al. 2024, arXiv 2409.03137, Algorithm 1."""

    def move(self, p: Tensor, gradient: Tensor, group: dict[str, Any], state: dict[str, Any]) -> None:
        beta1, beta2, beta3 = group["betas"]
        if not state:
            state |= {"step": 0, **{key: torch.zeros_like(p) for key in ("fast", "slow", "square")}}
        state["step"] += 1
        t, warmup = state["step"], group["warmup"]
        state["fast"].lerp_(gradient, 1 - beta1)
        state["slow"].lerp_(gradient, 1 - slow_beta(t, warmup, beta1, beta3))
        state["square"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        alpha = group["alpha"] * (min(1.0, t / warmup) if warmup else 1.0)
        size = (state["square"] / (1 - beta2**t)).sqrt_().add_(group["eps"])
        apply(p, (state["fast"] / (1 - beta1**t)).add_(state["slow"], alpha=alpha).div_(size), group)


@dataclass(frozen=True)
class AdEMAMix(Intervention):
    """Adds to Adam's momentum an average of gradients over a much longer past.

    Acts on the update. Directions in which gradients agree over many steps gain weight against those of the last few:
    agreement over time, where surgery looks for agreement within a batch. There is no placebo: its control is the
    baseline at other learning rates.
    """

    name = "ademamix"
    family = "optimization"
    source = "Pagliardini et al. 2024, arXiv 2409.03137"
    cost = "1.05, and one more moment"

    alpha: float = setting(8.0, "weight of the slow average", low=0.0, high=100.0)
    beta3: float = setting(0.999, "decay of the slow average (published: 0.9999 for 100 times longer runs)", low=0.0,
                           high=0.999999)  # fmt: skip
    warmup: float = setting(1.0, "share of the run in which α and β₃ grow", low=0.0, high=1.0)

    def optimizer(self, run: RunView, groups: list[dict], state: State) -> torch.optim.Optimizer:
        optim = run.config.optim
        betas = (optim.beta1, optim.beta2, self.beta3)
        shared = {"lr": optim.lr, "betas": betas, "eps": optim.eps, "alpha": self.alpha}
        return AdEMAMixOptimizer(groups, shared | {"warmup": self.warmup * run.steps})
